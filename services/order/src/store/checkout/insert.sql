-- Writes new orders. $1 to $13: the orders; $14 to $19: their lines, with the index of the order.
with request as (
    select * from unnest($1::bigint[], $2::uuid[], $3::text[], $4::bytea[], $5::bigint[], $6::boolean[],
                         $7::bigint[], $8::text[], $9::jsonb[], $10::timestamptz[], $11::timestamptz[],
                         $12::text[], $13::bytea[])
        with ordinality as r (user_id, id, key, response, seq, empties_cart, total, currency,
                              shipping_address, expires_at, created_at, traceparent, message, index)
), line as (
    select * from unnest($14::bigint[], $15::bigint[], $16::text[], $17::text[], $18::bigint[], $19::bigint[])
        as l (index, product_id, sku, name, unit_price, quantity)
), keyed as (
    select request.index from request
    join orders.idempotency as held
        on held.user_id = request.user_id and held.scope = 'create' and held.key = request.key
    where held.order_id = request.id and held.answer is null
    for update of held
), unmoved as (
    select request.index from request
    join orders.event_cursor as cursor on cursor.user_id = request.user_id
    where cursor.seq = request.seq - 1
    -- No order of another user waits for a transaction that is about to write an event of this one.
    for update of cursor skip locked
), cart as (
    select request.index, held.user_id from request
    join orders.cart as held on held.user_id = request.user_id
    where request.empties_cart
    for update of held
), cart_line as (
    select cart.index, cart.user_id, held.product_id, held.quantity, line.quantity as ordered from cart
    join line on line.index = cart.index
    join orders.cart_line as held
        on held.user_id = cart.user_id and held.product_id = line.product_id
    where held.quantity >= line.quantity
    for update of held
), decided as (
    select request.*,
           request.key is null or exists (select from keyed where keyed.index = request.index) as has_key,
           exists (select from unmoved where unmoved.index = request.index) as is_current,
           not request.empties_cart
               or (select count(*) from cart_line where cart_line.index = request.index)
                = (select count(*) from line where line.index = request.index) as has_cart
    from request
), accepted as (
    select * from decided where has_key and is_current and has_cart
), answered as (
    update orders.idempotency as held set answer = accepted.response from accepted
    where held.user_id = accepted.user_id and held.scope = 'create' and held.key = accepted.key
), numbered as (
    update orders.event_cursor as cursor set seq = accepted.seq from accepted
    where cursor.user_id = accepted.user_id
), placed as (
    insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at,
                               created_at, updated_at)
    select user_id, id, 'pending', total, currency, shipping_address, 1, expires_at, created_at, created_at
    from accepted
), placed_line as (
    insert into orders.order_line (user_id, order_id, product_id, sku, name, unit_price, quantity)
    select accepted.user_id, accepted.id, line.product_id, line.sku, line.name, line.unit_price, line.quantity
    from accepted join line on line.index = accepted.index
), recorded as (
    insert into orders.event (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
    select user_id, seq, id, 'pending', total, currency, 1, 'customer', created_at, traceparent from accepted
), queued as (
    -- The lane is for relays of the version before, which may run beside this one.
    insert into orders.outbox (lane, user_id, seq, message)
    select mod(user_id, 8)::smallint, user_id, seq, message from accepted
), emptied as (
    delete from orders.cart_line as held using accepted, cart_line
    where cart_line.index = accepted.index and cart_line.quantity = cart_line.ordered
      and held.user_id = cart_line.user_id and held.product_id = cart_line.product_id
), reduced as (
    update orders.cart_line as held set quantity = cart_line.quantity - cart_line.ordered
    from accepted, cart_line
    where cart_line.index = accepted.index and cart_line.quantity > cart_line.ordered
      and held.user_id = cart_line.user_id and held.product_id = cart_line.product_id
), touched as (
    update orders.cart as held set updated_at = accepted.created_at from accepted
    where accepted.empties_cart and held.user_id = accepted.user_id
)
select has_key as "has_key!", is_current as "is_current!", has_cart as "has_cart!"
from decided order by index
