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
    join orders.idempotency as claim
        on claim.user_id = request.user_id and claim.scope = 'create' and claim.key = request.key
    where claim.order_id = request.id and claim.answer is null
    order by claim.user_id
    for update of claim
), voided as (
    select order_id from orders.voided_order where order_id = any($2::uuid[])
), unmoved as (
    select request.index from request
    join orders.event_cursor as cursor on cursor.user_id = request.user_id
    where cursor.seq = request.seq - 1
    -- No order of another user waits for a transaction that is about to write an event of this one, or its cart.
    for update of cursor skip locked
), stored_cart as (
    select request.index, cart.user_id from request
    join orders.cart on cart.user_id = request.user_id
    where request.empties_cart
), cart as (
    select stored_cart.index, stored_cart.user_id from stored_cart
    join orders.cart as locked on locked.user_id = stored_cart.user_id
    for update of locked skip locked
), ordered_line as (
    select cart.index, cart.user_id, stored.product_id, stored.quantity, line.quantity as ordered from cart
    join line on line.index = cart.index
    join orders.cart_line as stored
        on stored.user_id = cart.user_id and stored.product_id = line.product_id
    where stored.quantity >= line.quantity
    for update of stored
), decided as (
    select request.*,
           request.key is null or exists (select from keyed where keyed.index = request.index) as has_key,
           exists (select from unmoved where unmoved.index = request.index)
               and (not exists (select from stored_cart where stored_cart.index = request.index)
                    or exists (select from cart where cart.index = request.index)) as is_current,
           -- The lock of orders.orders is older than the snapshot of this statement: see orphan_holds.rs.
           not exists (select from voided where voided.order_id = request.id)
               and request.created_at > clock_timestamp() - interval '10 minutes'
               and (not request.empties_cart
                    or (select count(*) from ordered_line where ordered_line.index = request.index)
                     = (select count(*) from line where line.index = request.index)) as is_valid
    from request
), accepted as (
    select * from decided where has_key and is_current and is_valid
), answered as (
    update orders.idempotency as claim set answer = accepted.response from accepted
    where claim.user_id = accepted.user_id and claim.scope = 'create' and claim.key = accepted.key
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
    delete from orders.cart_line as stored using accepted, ordered_line
    where ordered_line.index = accepted.index and ordered_line.quantity = ordered_line.ordered
      and stored.user_id = ordered_line.user_id and stored.product_id = ordered_line.product_id
), reduced as (
    update orders.cart_line as stored set quantity = ordered_line.quantity - ordered_line.ordered
    from accepted, ordered_line
    where ordered_line.index = accepted.index and ordered_line.quantity > ordered_line.ordered
      and stored.user_id = ordered_line.user_id and stored.product_id = ordered_line.product_id
), touched as (
    update orders.cart as stored set updated_at = accepted.created_at from accepted
    where accepted.empties_cart and stored.user_id = accepted.user_id
)
select has_key as "has_key!", is_current as "is_current!", is_valid as "is_valid!"
from decided order by index
