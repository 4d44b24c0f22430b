-- Takes the units of new holds and inserts them: all or, if a product does not match, none.
--
-- A parameter in a subquery has an unknown length for the planner, so that one plan serves all calls. Rows are found by
-- `any`, in one index scan: the planner would read all of a small table for a join.
with withdrawal as (
    select product_id, units, version, revision
    from unnest((select $1::bigint[]), (select $2::bigint[]), (select $3::bigint[]), (select $4::bigint[]))
        as w (product_id, units, version, revision)
),
current as materialized (
    select id, version from product.product where id = any ((select $1::bigint[])::bigint[])
),
locked as materialized (
    select stock.product_id, withdrawal.units
    from withdrawal
    join product.stock stock on stock.product_id = withdrawal.product_id
    join current on current.id = withdrawal.product_id
    where stock.product_id = any ((select $1::bigint[])::bigint[])
      and stock.available >= withdrawal.units
      and (withdrawal.revision is null or stock.revision = withdrawal.revision)
      and current.version = withdrawal.version
    order by stock.product_id
    for no key update of stock
),
taken as (
    update product.stock stock
    set available = stock.available - locked.units, revision = stock.revision + 1
    from locked
    where stock.product_id = locked.product_id and (select count(*) from locked) = cardinality($1::bigint[])
    returning stock.product_id, stock.available
),
hold as (
    insert into product.stock_hold (order_id, state, expires_at, caller, created_at, updated_at)
    select order_id, 'held', expires_at, caller, $14, $14
    from unnest((select $5::uuid[]), (select $6::timestamptz[]), (select $7::text[]))
        as h (order_id, expires_at, caller)
    where (select count(*) from taken) > 0
    order by order_id
    returning order_id
),
line as (
    insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
    select order_id, product_id, quantity, sku, name, unit_price
    from unnest((select $8::uuid[]), (select $9::bigint[]), (select $10::bigint[]), (select $11::text[]),
                (select $12::text[]), (select $13::bigint[]))
        as l (order_id, product_id, quantity, sku, name, unit_price)
    where (select count(*) from hold) > 0
    returning order_id, product_id, quantity
),
movement as (
    insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
    select product_id, 'hold', - quantity, order_id, $14 from line
),
sold_out as materialized (
    select product.id from product.product product
    where product.id in (select product_id from taken where available = 0)
      and (select count(*) from hold) > 0
    order by product.id
    for no key update
),
shown as (
    update product.product product set in_stock = false from sold_out where product.id = sold_out.id
)
select count(*) > 0 as "written!" from hold;
