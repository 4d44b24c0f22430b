-- Service accounts: identities of programs that call the API in their own name.
create table auth.service_account (
    -- A UUIDv7; the `client_id`, and the claim `sid` of the tokens.
    id uuid not null,
    name text not null,
    scopes text[] not null,
    -- SHA-256 of a secret of 256 random bits.
    secret_hash bytea not null,
    -- The secret before the last rotation, and its end.
    previous_secret_hash bytea,
    previous_secret_expires_at timestamptz,
    created_at timestamptz not null,
    expires_at timestamptz,
    last_used_at timestamptz,
    -- The theoretical arrival time of the next token (GCRA), which limits the rate of tokens.
    next_token_at timestamptz,
    revoked_at timestamptz,
    -- The transaction of the revocation, as in auth.session.
    revoked_tx bigint,
    -- The time at which every token has expired that was issued before the revocation.
    tokens_expire_at timestamptz,
    constraint service_account_pkey primary key (id),
    constraint service_account_name_length check (char_length(name) between 1 and 64),
    constraint service_account_scopes_bounded check (cardinality(scopes) between 1 and 32),
    constraint service_account_hash_length check (octet_length(secret_hash) = 32),
    constraint service_account_previous_whole
        check ((previous_secret_hash is null) = (previous_secret_expires_at is null)),
    constraint service_account_revoked_whole
        check ((revoked_at is null) = (revoked_tx is null) and (revoked_at is null) = (tokens_expire_at is null))
);
create index service_account_revoked_tx on auth.service_account (revoked_tx, id) where revoked_tx is not null;

-- The idempotency keys of requests that give an account a secret, kept for a day. The secret is not stored: it is derived
-- from the salt and a key that only the process has.
create table auth.service_account_key (
    admin_id bigint not null,
    -- The operation and its object.
    scope text not null,
    key text not null,
    fingerprint bytea not null,
    -- The response without the secret.
    answer bytea not null,
    secret_salt bytea not null,
    secret_hash bytea not null,
    created_at timestamptz not null,
    constraint service_account_key_pkey primary key (admin_id, scope, key),
    constraint service_account_key_length check (char_length(key) between 1 and 255)
);
create index service_account_key_age on auth.service_account_key (created_at);
