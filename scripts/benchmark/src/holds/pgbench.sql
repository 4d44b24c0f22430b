-- The rows of one hold with one line, as one bare statement.
\set product random(:first, :last)
with taken as (
    update product.stock set available = available - 1, revision = revision + 1
    where product_id = :product and available >= 1
    returning product_id
), id as (
    select gen_random_uuid() as id, product.sku, product.name, product.price
    from product.product where product.id = :product
), hold as (
    insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
    select id, 'held', now() + interval '15 min', now(), now() from id, taken
), hold_line as (
    insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
    select id, :product, 1, sku, name, price from id, taken
)
insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
select taken.product_id, 'hold', -1, id, now() from id, taken;
