-- The rows of one order with one line, as one bare statement: what PostgreSQL alone does in the time of an order.
\set buyer random(1, 10000)
\set product random(:first, :last)
with bought as (
    update product.stock set available = available - 1 where product_id = :product and available >= 1
    returning product_id
), number as (
    insert into orders.event_cursor as cursor (user_id, seq) values (1000000000 + :buyer, 1)
    on conflict (user_id) do update set seq = cursor.seq + 1
    returning user_id, seq
), id as (
    select gen_random_uuid() as id, product.sku, product.name, product.price
    from product.product where product.id = :product
), hold as (
    insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
    select id, 'held', now() + interval '16 min', now(), now() from id
), hold_line as (
    insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
    select id, :product, 1, sku, name, price from id
), ledger as (
    insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
    select bought.product_id, 'hold', -1, id, now() from id, bought
), placed as (
    insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at, created_at,
                               updated_at)
    select number.user_id, id.id, 'pending', id.price, 'EUR',
           '{"recipient": "Ann Lee", "line1": "1 Main St", "city": "Springfield", "postal_code": "12345", "country": "US"}',
           1, now() + interval '15 min', now(), now()
    from id, number
), line as (
    insert into orders.order_line (user_id, order_id, product_id, sku, name, unit_price, quantity)
    select number.user_id, id.id, :product, sku, name, price, 1 from id, number
), event as (
    insert into orders.event (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
    select number.user_id, number.seq, id.id, 'pending', id.price, 'EUR', 1, 'customer', now(),
           '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    from id, number
)
insert into orders.outbox (lane, user_id, seq, message)
select mod(number.user_id, 8)::smallint, number.user_id, number.seq, decode(repeat('ab', 120), 'hex')
from number;
