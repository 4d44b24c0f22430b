-- Accounts, their sessions, and what keeps both safe.

-- Usernames and e-mails are ASCII, and compared without regard to case whatever the server's locale: "C".
create table auth.account (
    id bigint generated always as identity,
    username text not null,
    email text not null,
    -- argon2id in PHC form: parameters, salt and hash.
    password_hash text not null,
    -- Grows with every change of the password, not when the same one is hashed anew.
    password_version bigint not null default 1,
    role text not null default 'user',
    disabled boolean not null default false,
    created_at timestamptz not null,
    constraint account_pkey primary key (id),
    constraint account_username_length check (char_length(username) between 3 and 32),
    constraint account_email_length check (char_length(email) between 3 and 254),
    constraint account_role_known check (role in ('user', 'admin'))
);
create unique index account_username_key on auth.account (lower(username collate "C"));
create unique index account_email_key on auth.account (lower(email collate "C"));
create index account_admins on auth.account (id) where role = 'admin';

-- What one sign-in began: the family of its refresh tokens, and the access tokens that carry its id.
create table auth.session (
    id uuid not null,
    user_id bigint not null,
    user_agent text not null,
    created_at timestamptz not null,
    last_used_at timestamptz not null,
    -- When its refresh token runs out.
    expires_at timestamptz not null,
    -- When the last of its access tokens runs out.
    access_expires_at timestamptz not null,
    -- By the clock of the database, which is one for all replicas.
    ended_at timestamptz,
    constraint session_pkey primary key (id),
    constraint session_account foreign key (user_id) references auth.account (id)
);
create index session_of_user on auth.session (user_id) where ended_at is null;
create index session_ended on auth.session (ended_at) where ended_at is not null;
create index session_expiry on auth.session (expires_at);

create table auth.refresh_token (
    -- SHA-256; the token itself is nowhere.
    hash bytea not null,
    session_id uuid not null,
    used_at timestamptz,
    -- With the token itself, which only its owner has, this gives its successor once more.
    successor_salt bytea,
    constraint refresh_token_pkey primary key (hash),
    constraint refresh_token_session foreign key (session_id) references auth.session (id) on delete cascade,
    constraint refresh_token_hash_length check (octet_length(hash) = 32),
    constraint refresh_token_used_whole check ((used_at is null) = (successor_salt is null))
);
create index refresh_token_of_session on auth.refresh_token (session_id);
create unique index refresh_token_one_unused on auth.refresh_token (session_id) where used_at is null;
create index refresh_token_used on auth.refresh_token (used_at) where used_at is not null;

-- The latest password tries of an account, or of a name that no account has; oldest first, by the database's
-- clock.
create table auth.password_try (
    subject bytea not null,
    tried_at timestamptz[] not null,
    constraint password_try_pkey primary key (subject),
    constraint password_try_bounded check (cardinality(tried_at) between 1 and 10)
);

-- Registrations that the others have not been told of.
create table auth.outbox (
    id bigint generated always as identity,
    user_id bigint not null,
    traceparent text not null,
    created_at timestamptz not null,
    constraint outbox_pkey primary key (id)
);
