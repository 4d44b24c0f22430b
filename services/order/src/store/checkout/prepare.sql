-- Claims keys and reads accounts and carts. $1 to $5: the checkouts; $6: the end of the leases; $7: now; $8: claims from
-- before are replaced.
with request as (
    select * from unnest($1::bigint[], $2::text[], $3::bytea[], $4::uuid[], $5::boolean[])
        with ordinality as r (user_id, key, fingerprint, order_id, reads_cart, index)
), new_cursor as (
    insert into orders.event_cursor (user_id, seq)
    select distinct user_id, 0 from request order by user_id
    on conflict (user_id) do nothing
), claimed as (
    insert into orders.idempotency
        (user_id, scope, key, fingerprint, order_id, claimed_until, created_at)
    select user_id, 'create', key, fingerprint, order_id, $6, $7 from request
    where key is not null order by user_id, key
    on conflict (user_id, scope, key) do nothing
    returning user_id, key
), expired as (
    select request.* from request
    join orders.idempotency as claim
        on claim.user_id = request.user_id and claim.scope = 'create' and claim.key = request.key
    where claim.created_at < $8
    -- No checkout waits for a key of another one.
    for update of claim skip locked
), replaced as (
    update orders.idempotency as claim
    set fingerprint = expired.fingerprint, order_id = expired.order_id, answer = null, claimed_until = $6,
        created_at = $7
    from expired
    where claim.user_id = expired.user_id and claim.scope = 'create' and claim.key = expired.key
    returning claim.user_id, claim.key
), acquired as (
    select user_id, key from claimed union all select user_id, key from replaced
)
select acquired.user_id is not null as "is_claimed!",
       claim.fingerprint as "fingerprint?", claim.order_id as "order_id?",
       claim.claimed_until as "claimed_until?", claim.answer as "answer?",
       coalesce(cursor.seq, 0) as "seq!", unpaid.orders as "unpaid_orders!",
       reserved.products as "reserved_products?: Vec<i64>", reserved.units as "reserved_units?: Vec<i64>",
       cart.products as "cart_products?: Vec<i64>", cart.quantities as "cart_quantities?: Vec<i64>",
       cart.prices as "cart_prices?: Vec<Option<i64>>"
from request
left join acquired on acquired.user_id = request.user_id and acquired.key = request.key
left join orders.idempotency as claim
    on claim.user_id = request.user_id and claim.scope = 'create' and claim.key = request.key
left join orders.event_cursor as cursor on cursor.user_id = request.user_id
left join lateral (
    select count(*) as orders, array_agg(o.id) as ids from orders.orders as o
    where o.user_id = request.user_id and o.status = 'pending'
      -- Not a condition for the index of all pending orders by their expiry, which are many.
      and o.expires_at - $7 > interval '0'
) as unpaid on true
left join lateral (
    select array_agg(product.id) as products, array_agg(product.units) as units
    from (
        select line.product_id as id, sum(line.quantity)::bigint as units
        from unnest(unpaid.ids) as unpaid_order (id)
        join orders.order_line as line on line.user_id = request.user_id and line.order_id = unpaid_order.id
        group by line.product_id
    ) as product
) as reserved on unpaid.orders > 0
left join lateral (
    select array_agg(line.product_id order by line.added_at, line.product_id) as products,
           array_agg(line.quantity order by line.added_at, line.product_id) as quantities,
           array_agg(line.shown_price order by line.added_at, line.product_id) as prices
    from orders.cart_line as line where line.user_id = request.user_id
) as cart on request.reads_cart
order by request.index
