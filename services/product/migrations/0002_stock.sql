-- The stock, apart from the catalogue: its rows are narrow and change with every order, and none of their
-- changing columns is indexed, so that an update stays within its page.
--
-- Locks are taken in one order everywhere, or two baskets would wait for each other for ever: stock rows by
-- product id, then holds, then product rows by id.

create table product.stock (
    product_id bigint not null,
    -- What can be bought now.
    available bigint not null,
    constraint stock_pkey primary key (product_id),
    constraint stock_product_id_fkey foreign key (product_id) references product.product (id),
    constraint stock_available_check check (available >= 0)
) with (fillfactor = 50);

-- What an order has taken. A hold that was released before it arrived has a row without lines, so that it is
-- refused when it does.
create table product.stock_hold (
    order_id uuid not null,
    state text not null,
    -- A hold past its time is over, also before its stock was put back.
    expires_at timestamptz not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint stock_hold_pkey primary key (order_id),
    constraint stock_hold_state_check check (state in ('held', 'committed', 'released', 'expired'))
) with (fillfactor = 80);

create index stock_hold_expires_at_idx on product.stock_hold (expires_at) where state = 'held';

-- Written once, together with its hold; what the catalogue said at that moment. No foreign keys here and in
-- the ledger: products and holds are never deleted, and each check would lock a row that every order of the
-- product shares.
create table product.hold_line (
    order_id uuid not null,
    product_id bigint not null,
    quantity bigint not null,
    sku text not null,
    name text not null,
    unit_price bigint not null,
    constraint hold_line_pkey primary key (order_id, product_id),
    constraint hold_line_quantity_check check (quantity > 0)
);

-- Every movement, in the transaction that makes it. The quantity is what is added to `available`, but for a
-- sale, which takes its (negative) quantity from what is held.
create table product.stock_ledger (
    id bigint generated always as identity,
    product_id bigint not null,
    kind text not null,
    quantity bigint not null,
    order_id uuid,
    reason text,
    at timestamptz not null,
    constraint stock_ledger_pkey primary key (id),
    constraint stock_ledger_kind_check
        check (kind in ('supply', 'hold', 'release', 'sale', 'return', 'adjustment')),
    constraint stock_ledger_quantity_check check (quantity <> 0)
);

create index stock_ledger_product_id_idx on product.stock_ledger (product_id, kind) include (quantity);

-- For every product, at every moment: supplied = available + held + sold. What was supplied comes from the
-- ledger, what is held and sold from the holds themselves.
create view product.conservation as
    select s.product_id,
           coalesce(l.supplied, 0)::bigint as supplied,
           s.available,
           coalesce(h.held, 0)::bigint as held,
           coalesce(h.sold, 0)::bigint as sold
    from product.stock s
    left join (
        select product_id, sum(quantity) as supplied
        from product.stock_ledger
        where kind in ('supply', 'adjustment')
        group by product_id
    ) l on l.product_id = s.product_id
    left join (
        select line.product_id,
               sum(line.quantity) filter (where hold.state = 'held') as held,
               sum(line.quantity) filter (where hold.state = 'committed') as sold
        from product.hold_line line
        join product.stock_hold hold on hold.order_id = line.order_id
        group by line.product_id
    ) h on h.product_id = s.product_id;
