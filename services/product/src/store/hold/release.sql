-- Releases the holds of some orders, with what is sold where the request returns it. Returns the states before, of the
-- orders that have a hold. The steps depend on each other's rows, and so lock in the global order.
with request as (
    select order_id, returns_sold
    from unnest((select $1::uuid[]), (select $2::boolean[])) as r (order_id, returns_sold)
),
line as materialized (
    select line.order_id, line.product_id, line.quantity
    from request
    join product.hold_line line on line.order_id = request.order_id
),
locked as materialized (
    select stock.product_id
    from product.stock stock
    where stock.product_id = any (array(select product_id from line))
    order by stock.product_id
    for no key update
),
hold as materialized (
    select hold.order_id, hold.state,
           hold.state = 'held' or hold.state = 'committed' and request.returns_sold as is_releasable
    from request
    join product.stock_hold hold on hold.order_id = request.order_id
    where (select count(*) from locked) >= 0
    order by hold.order_id
    for update of hold
),
released as (
    update product.stock_hold target
    set state = 'released', updated_at = $3
    from hold
    where target.order_id = hold.order_id and hold.is_releasable
    returning target.order_id, hold.state
),
returned as (
    select line.product_id, line.order_id, line.quantity, released.state
    from released
    join line on line.order_id = released.order_id
),
moved as (
    update product.stock stock
    set available = stock.available + total.units, revision = stock.revision + 1
    from (select product_id, sum(quantity)::bigint as units from returned group by product_id) total
    where stock.product_id = total.product_id and stock.product_id = any (array(select product_id from line))
    returning stock.product_id, stock.available > 0 and stock.available <= total.units as is_toggled
),
movement as (
    insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
    select product_id, case state when 'held' then 'release' else 'return' end, quantity, order_id, $3
    from returned
),
back_in_stock as materialized (
    select product.id
    from product.product product
    where product.id in (select product_id from moved where is_toggled)
    order by product.id
    for no key update
),
shown as (
    update product.product product set in_stock = true from back_in_stock where product.id = back_in_stock.id
)
select order_id as "order_id!", state as "state!" from hold;
