-- Tombstones of order ids: a checkout held stock under such an id and ended without an order. An order with the id cannot be
-- written any more, so that the hold can be released.
create table orders.voided_order (
    order_id uuid not null constraint voided_order_pkey primary key,
    -- The end of the release of the hold; null before.
    released_at timestamptz
);
create index voided_order_pending_idx on orders.voided_order (order_id) where released_at is null;
create index voided_order_released_at_idx on orders.voided_order (released_at);
