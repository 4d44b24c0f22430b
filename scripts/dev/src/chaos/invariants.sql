-- The invariants over the tables of all services, for a superuser. Returns a row for each violation: the invariant, and
-- the product, order or user that violates it.
select 'supplied = available + held + sold' as invariant, product_id::text as id
from product.conservation
where supplied <> available + held + sold
union all
select 'available equals the sum of the ledger without sales', s.product_id::text
from product.stock as s
join (select product_id, sum(quantity) as sum from product.stock_ledger where kind <> 'sale' group by 1) as l
    on l.product_id = s.product_id
where l.sum <> s.available
union all
select 'total = sum of price × quantity', o.id::text
from orders.orders as o
join (select user_id, order_id, sum(unit_price * quantity) as sum from orders.order_line group by 1, 2) as l
    on l.user_id = o.user_id and l.order_id = o.id
where l.sum <> o.total
union all
select 'event numbers have no gap and end at the cursor', c.user_id::text
from orders.event_cursor as c
left join (select user_id, count(*) as count, max(seq) as max, min(seq) as min from orders.event group by 1) as e
    on e.user_id = c.user_id
where (coalesce(e.count, 0), coalesce(e.max, 0), coalesce(e.min, 1)) <> (c.seq, c.seq, 1)
union all
select 'the event log has each event once, in the order of its user', c.user_id::text
from orders.event_cursor as c
left join (
    select user_id, count(*) as count, bool_and(seq = coalesce(previous, 0) + 1) as in_order
    from (select user_id, seq, lag(seq) over (partition by user_id order by position) as previous
          from orders.event_log) as entries
    group by 1
) as l on l.user_id = c.user_id
where coalesce(l.count, 0) <> c.seq or not l.in_order
union all
select 'each step of an order is one event', o.id::text
from orders.orders as o
left join (select user_id, order_id, count(*) as count from orders.event group by 1, 2) as e
    on e.user_id = o.user_id and e.order_id = o.id
where coalesce(e.count, 0) <> o.version
union all
select 'histories are legal paths', order_id::text
from orders.event
where (coalesce(previous_status, ''), status) not in
    (('', 'pending'), ('pending', 'paid'), ('pending', 'cancelled'), ('paid', 'shipped'), ('paid', 'cancelled'),
     ('shipped', 'completed'))
union all
select 'an unpaid order has its stock', o.id::text
from orders.orders as o
left join product.stock_hold as h on h.order_id = o.id
where o.status = 'pending' and o.expires_at > now() and h.state is distinct from 'held'
union all
select 'a paid order has its stock', o.id::text
from orders.orders as o
left join product.stock_hold as h on h.order_id = o.id
where o.status in ('paid', 'shipped', 'completed') and h.state is distinct from 'committed'
union all
select 'a cancelled order has no stock', o.id::text
from orders.orders as o
join product.stock_hold as h on h.order_id = o.id
where o.status = 'cancelled' and h.state in ('held', 'committed')
union all
select 'a hold of the order service has an order', h.order_id::text
from product.stock_hold as h
where h.state = 'held' and h.caller = 'order' and not exists (select from orders.orders as o where o.id = h.order_id)
union all
select 'what is sold belongs to an order of the same lines', h.order_id::text
from product.stock_hold as h
join product.hold_line as l on l.order_id = h.order_id
left join orders.order_line as o on o.order_id = l.order_id and o.product_id = l.product_id
where h.state = 'committed' and o.quantity is distinct from l.quantity
union all
select 'a paid order was charged once, others were not', o.id::text
from orders.orders as o
left join (
    select a.user_id, a.order_id,
           count(*) filter (where c.outcome = 'approved') as charged
    from orders.payment_attempt as a join orders.sandbox_charge as c on c.attempt_id = a.id
    group by 1, 2
) as p on p.user_id = o.user_id and p.order_id = o.id
where coalesce(p.charged, 0) <> case when o.status in ('paid', 'shipped', 'completed') then 1 else 0 end
