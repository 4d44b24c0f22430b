-- Everything of a user stands under a key that begins with user_id, and the tables that grow are partitioned by its
-- hash: one PostgreSQL today, an engine that distributes by that column tomorrow.

create table orders.cart (
    user_id bigint not null constraint cart_pkey primary key,
    updated_at timestamptz not null
);

create table orders.cart_line (
    user_id bigint not null constraint cart_line_cart_fkey references orders.cart (user_id),
    product_id bigint not null,
    quantity bigint not null constraint cart_line_quantity_check check (quantity between 1 and 1000),
    added_at timestamptz not null,
    constraint cart_line_pkey primary key (user_id, product_id)
);

create table orders.orders (
    user_id bigint not null,
    id uuid not null,
    status text not null
        constraint orders_status_check check (status in ('pending', 'paid', 'shipped', 'completed', 'cancelled')),
    total bigint not null constraint orders_total_check check (total >= 0),
    currency text not null,
    shipping_address jsonb not null,
    version bigint not null,
    expires_at timestamptz not null,
    paid_at timestamptz,
    refunded_at timestamptz,
    carrier text,
    tracking_number text,
    shipped_at timestamptz,
    cancel_reason text,
    -- Cancelled by its own time running out.
    expired boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint orders_pkey primary key (user_id, id)
) partition by hash (user_id);

create table orders.order_line (
    user_id bigint not null,
    order_id uuid not null,
    product_id bigint not null,
    sku text not null,
    name text not null,
    unit_price bigint not null constraint order_line_unit_price_check check (unit_price >= 0),
    quantity bigint not null constraint order_line_quantity_check check (quantity between 1 and 1000),
    constraint order_line_pkey primary key (user_id, order_id, product_id)
) partition by hash (user_id);

-- The truth about what happened, in the order of the commits: seq is taken under the lock of the user's row in
-- orders.event_cursor, so it has no gap and a smaller one never commits later.
create table orders.event (
    user_id bigint not null,
    seq bigint not null,
    order_id uuid not null,
    status text not null,
    previous_status text,
    total bigint not null,
    currency text not null,
    version bigint not null,
    actor text not null constraint event_actor_check check (actor in ('customer', 'admin', 'system')),
    reason text,
    at timestamptz not null,
    traceparent text not null,
    constraint event_pkey primary key (user_id, seq)
) partition by hash (user_id);

do $$
begin
    for n in 0..9 loop
        execute format('create table orders.orders_%s partition of orders.orders
            for values with (modulus 10, remainder %s)', n, n);
        execute format('create table orders.order_line_%s partition of orders.order_line
            for values with (modulus 10, remainder %s)', n, n);
        execute format('create table orders.event_%s partition of orders.event
            for values with (modulus 10, remainder %s)', n, n);
    end loop;
end
$$;

-- Newest first over all users, for admins.
create index orders_id_idx on orders.orders (id);
create index orders_status_id_idx on orders.orders (status, id);
-- How many a user has unpaid, and which have run out.
create index orders_pending_user_idx on orders.orders (user_id) where status = 'pending';
create index orders_pending_expires_idx on orders.orders (expires_at) where status = 'pending';
create index event_order_idx on orders.event (user_id, order_id);

create table orders.event_cursor (
    user_id bigint not null constraint event_cursor_pkey primary key,
    seq bigint not null
);

-- Events on their way to Redis; gone when they are there. A lane is published by one relay at a time, in the order of
-- id, which within a user is the order of seq.
create table orders.outbox (
    lane smallint not null,
    id bigint generated always as identity,
    user_id bigint not null,
    seq bigint not null,
    created_at timestamptz not null,
    constraint outbox_pkey primary key (lane, id)
);

create table orders.outbox_lane (
    lane smallint not null constraint outbox_lane_pkey primary key
);
insert into orders.outbox_lane (lane) select generate_series(0, 7);

-- One row a key that is running or has had an effect. Without an answer it is running until claimed_until; whoever
-- comes with the key after that goes on with the same order_id.
create table orders.idempotency (
    user_id bigint not null,
    scope text not null,
    key text not null,
    fingerprint bytea not null,
    order_id uuid not null,
    claimed_until timestamptz not null,
    answer bytea,
    created_at timestamptz not null,
    constraint idempotency_pkey primary key (user_id, scope, key)
);
create index idempotency_created_idx on orders.idempotency (created_at);

create table orders.payment_attempt (
    user_id bigint not null,
    order_id uuid not null,
    id uuid not null,
    state text not null constraint payment_attempt_state_check
        check (state in ('charging', 'captured', 'declined', 'abandoned', 'refunding', 'refunded')),
    -- Under which idempotency key the answer is kept, for a recovery that must give it.
    key text,
    started_at timestamptz not null,
    constraint payment_attempt_pkey primary key (user_id, order_id, id)
);
-- One at a time.
create unique index payment_attempt_charging_key on orders.payment_attempt (user_id, order_id)
    where state = 'charging';
create index payment_attempt_open_idx on orders.payment_attempt (started_at)
    where state in ('charging', 'refunding');

-- What product has still to be told about an order's stock.
create table orders.stock_task (
    user_id bigint not null,
    order_id uuid not null,
    step text not null constraint stock_task_step_check check (step in ('commit', 'release')),
    due_at timestamptz not null,
    constraint stock_task_pkey primary key (user_id, order_id, step)
);
create index stock_task_due_idx on orders.stock_task (due_at);

-- The books of the sandbox payment provider: what a real one would keep on its side.
create table orders.sandbox_charge (
    attempt_id uuid not null constraint sandbox_charge_pkey primary key,
    outcome text not null constraint sandbox_charge_outcome_check
        check (outcome in ('approved', 'declined', 'insufficient_funds', 'voided', 'refunded')),
    amount bigint not null,
    currency text not null,
    at timestamptz not null
);

-- How far the streams of other services have been read, kept with what reading them did.
create table orders.stream_position (
    stream text not null constraint stream_position_pkey primary key,
    id text not null
);
