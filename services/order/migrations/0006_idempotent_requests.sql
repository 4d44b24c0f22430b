-- Keys of writes that call no other service between key and effect: the row is written in the transaction of the effect,
-- so that it exists only where the effect does. Orders and payments have orders.idempotency, with a lease.
create table orders.idempotent_request (
    user_id bigint not null,
    scope text not null,
    key text not null,
    fingerprint bytea not null,
    answer bytea not null,
    created_at timestamptz not null,
    constraint idempotent_request_pkey primary key (user_id, scope, key)
);
-- The newest of a user are kept, and nothing older than a day.
create index idempotent_request_user_idx on orders.idempotent_request (user_id, created_at);
create index idempotent_request_created_idx on orders.idempotent_request (created_at);
