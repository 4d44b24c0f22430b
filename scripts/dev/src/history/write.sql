-- Writes the drafts into the tables of the services, in the form that the services write.
truncate history.entry, history.line;
analyze history.draft;

with drafted as (
    select draft.*, md5(n::text) as random, product.number,
           -- The time in milliseconds is the prefix, as in a UUIDv7.
           lpad(to_hex((extract(epoch from created_at) * 1000)::bigint), 12, '0') as time
    from history.draft
    cross join lateral (
        -- The lines have different products: no multiple of this step below 1000 is a multiple of the product count.
        select mod(first_product + part * 331, (select count(*) from history.product)) as number
        from generate_series(0, lines - 1) part
    ) product
)
insert into history.line
select n, user_id, (time || '7' || left(random, 3) || '8' || substr(random, 4, 15))::uuid, product.id, product.sku,
       product.name, product.price, 1 + mod(n, 3)
from drafted
join history.product product on product.number = drafted.number
order by n;

insert into history.entry
select n, draft.user_id, booked.order_id, md5('attempt' || n)::uuid, created_at, fate, fate.status, fate.version,
       created_at + fate.delay, booked.total,
       coalesce(cursor.seq, 0)
       + sum(fate.version) over (partition by draft.user_id order by n) - fate.version
from history.draft
join history.fate fate using (fate)
join (
    select n, order_id, sum(unit_price * quantity) as total from history.line group by n, order_id
) booked using (n)
left join orders.event_cursor cursor on cursor.user_id = draft.user_id;
analyze history.entry;
analyze history.line;

insert into orders.orders (user_id, id, status, total, currency, shipping_address, version, expires_at, paid_at,
                           refunded_at, carrier, tracking_number, shipped_at, cancel_reason, expired, created_at,
                           updated_at)
select user_id, id, status, total, 'EUR', :address, version, created_at + interval '15 minutes',
       case when fate in ('completed', 'shipped', 'paid', 'refunded') then created_at + interval '5 minutes' end,
       case when fate = 'refunded' then changed_at end,
       case when fate in ('completed', 'shipped') then 'Slow Mail' end,
       case when fate in ('completed', 'shipped') then 'SM' || n end,
       case when fate in ('completed', 'shipped') then created_at + interval '1 day' end,
       (select reason from history.step where step.fate = entry.fate and step.version = entry.version),
       fate = 'expired', created_at, changed_at
from history.entry
order by n;

insert into orders.order_line (user_id, order_id, product_id, sku, name, unit_price, quantity)
select user_id, order_id, product_id, sku, name, unit_price, quantity from history.line order by n;

insert into orders.event (user_id, seq, order_id, status, previous_status, total, currency, version, actor, reason,
                          at, traceparent)
select user_id, seq + step.version, id, step.status, step.previous_status, total, 'EUR', step.version, step.actor,
       step.reason, created_at + step.delay,
       '00-' || md5(n::text) || '-' || left(md5(step.version::text), 16) || '-00'
from history.entry
join history.step step using (fate)
order by created_at + step.delay;

insert into orders.event_cursor (user_id, seq)
select user_id, max(seq + version) from history.entry group by user_id
on conflict (user_id) do update set seq = excluded.seq;

-- One order in twenty has a declined attempt. Some pending orders have an open attempt: the provider took the money and
-- the process died.
create unlogged table history.attempt as
select n, user_id, id as order_id, attempt_id as id, total, created_at + interval '5 minutes' as at,
       case when fate = 'refunded' then 'refunded' when fate = 'open' then 'charging' else 'captured' end as state,
       case when mod(n, 20) = 0 and fate <> 'open' then 2 else 1 end as fence
from history.entry
where fate in ('completed', 'shipped', 'paid', 'refunded') or (fate = 'open' and mod(n, 100) = 0);
update history.attempt set at = clock_timestamp() where state = 'charging';
insert into history.attempt
select n, user_id, order_id, md5('declined' || n)::uuid, total, at - interval '1 minute', 'declined', 1
from history.attempt
where fence = 2;
insert into orders.payment_attempt (user_id, order_id, id, state, started_at, next_try_at, fence,
                                    refund_requested_at)
select user_id, order_id, id, state, at, at, fence,
       case when state = 'refunded' then at + interval '55 minutes' end
from history.attempt
order by n;
insert into orders.sandbox_charge (attempt_id, outcome, amount, currency, at)
select id, case state when 'captured' then 'approved' when 'charging' then 'approved' else state end, total, 'EUR', at
from history.attempt
order by n;
drop table history.attempt;

insert into product.stock_hold (order_id, state, expires_at, created_at, updated_at)
select id,
       case
           when fate in ('completed', 'shipped', 'paid') then 'committed'
           when fate = 'open' then 'held'
           when fate = 'expired' and mod(n, 10) = 0 then 'expired'
           else 'released'
       end,
       created_at + interval '16 minutes', created_at, changed_at
from history.entry
order by n;

insert into product.hold_line (order_id, product_id, quantity, sku, name, unit_price)
select order_id, product_id, quantity, sku, name, unit_price from history.line order by n;

-- Supplies the units that were sold and not released, so that the available stock stays unchanged.
insert into product.stock_ledger (product_id, kind, quantity, reason, at)
select product_id, 'supply', sum(quantity), 'history', min(created_at) - interval '1 hour'
from history.line
join history.entry using (n)
where fate in ('completed', 'shipped', 'paid', 'open')
group by product_id;
insert into product.stock_ledger (product_id, kind, quantity, order_id, at)
select product_id, kind, sign * quantity, order_id, at
from (
    select product_id, order_id, quantity, 'hold' as kind, -1 as sign, created_at as at
    from history.line join history.entry using (n)
    union all
    select product_id, order_id, quantity, 'sale', -1, created_at + interval '5 minutes'
    from history.line join history.entry using (n)
    where fate in ('completed', 'shipped', 'paid', 'refunded')
    union all
    select product_id, order_id, quantity, case when fate = 'refunded' then 'return' else 'release' end, 1, changed_at
    from history.line join history.entry using (n)
    where fate in ('refunded', 'cancelled', 'expired')
) movement
order by at;
