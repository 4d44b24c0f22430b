-- Idempotency keys of what admins write, kept in the transaction of the effect.
create table product.idempotency (
    user_id bigint not null,
    -- The operation.
    scope text not null,
    key text not null,
    fingerprint bytea not null,
    -- Empty while a batch is being worked on.
    answer bytea not null default '',
    -- Of a batch, which is several transactions: whose turn it is, and until when it is not taken over.
    claim uuid,
    claimed_until timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    constraint idempotency_pkey primary key (user_id, scope, key)
);

-- For the cleanup, and for the bound on the answers of one user.
create index idempotency_created_at_idx on product.idempotency (created_at);
create index idempotency_user_id_created_at_idx on product.idempotency (user_id, created_at);

-- Rows of a batch that are done, each written in the transaction of its effect: a repeat leaves them out. Gone with
-- their key.
create table product.batch_progress (
    user_id bigint not null,
    scope text not null,
    key text not null,
    row_index integer not null,
    product_id bigint not null,
    version bigint not null,
    revision bigint not null,
    constraint batch_progress_pkey primary key (user_id, scope, key, row_index),
    constraint batch_progress_idempotency_fkey foreign key (user_id, scope, key)
        references product.idempotency (user_id, scope, key) on delete cascade
);
