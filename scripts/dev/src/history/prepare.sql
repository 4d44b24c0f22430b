-- Prepares the tables of the later scripts: shoppers, products, and the steps that lead to each fate. :customers are the
-- ids of the users of the load, the large ones first; :shoppers is the number of other users.
create schema history;

create unlogged table history.shopper (number bigint primary key, id bigint not null);
with registered as (
    insert into auth.account (username, email, password_hash, created_at)
    select 'shopper-' || n, 'shopper-' || n || '@customers.example',
           (select password_hash from auth.account where id = (:customers)[1]), now() - interval '401 days'
    from generate_series(1, :shoppers) n
    returning id
)
insert into history.shopper (number, id) select row_number() over (order by id) - 1, id from registered;
insert into orders.cart (user_id, updated_at) select id, now() - interval '401 days' from history.shopper;

create unlogged table history.product as
    select row_number() over (order by id) - 1 as number, id, sku, name, price
    from product.product where status = 'active';
alter table history.product add primary key (number);

-- The steps of each fate: resulting version, status before and after, actor, and time since the order was placed.
create table history.step (
    fate text, version bigint, previous_status text, status text, actor text, reason text, delay interval,
    primary key (fate, version)
);
insert into history.step values
    ('completed', 1, null, 'pending', 'customer', null, '0'),
    ('completed', 2, 'pending', 'paid', 'customer', null, '5 minutes'),
    ('completed', 3, 'paid', 'shipped', 'admin', null, '1 day'),
    ('completed', 4, 'shipped', 'completed', 'customer', null, '4 days'),
    ('shipped', 1, null, 'pending', 'customer', null, '0'),
    ('shipped', 2, 'pending', 'paid', 'customer', null, '5 minutes'),
    ('shipped', 3, 'paid', 'shipped', 'admin', null, '1 day'),
    ('paid', 1, null, 'pending', 'customer', null, '0'),
    ('paid', 2, 'pending', 'paid', 'customer', null, '5 minutes'),
    ('refunded', 1, null, 'pending', 'customer', null, '0'),
    ('refunded', 2, 'pending', 'paid', 'customer', null, '5 minutes'),
    ('refunded', 3, 'paid', 'cancelled', 'admin', 'damaged', '1 hour'),
    ('cancelled', 1, null, 'pending', 'customer', null, '0'),
    ('cancelled', 2, 'pending', 'cancelled', 'customer', 'changed my mind', '10 minutes'),
    ('expired', 1, null, 'pending', 'customer', null, '0'),
    ('expired', 2, 'pending', 'cancelled', 'system', 'expired', '15 minutes'),
    ('open', 1, null, 'pending', 'customer', null, '0');
create view history.fate as
    select fate, max(version) as version, max(delay) as delay,
           (array_agg(status order by version desc))[1] as status
    from history.step group by fate;

-- The orders to write next, and their lines.
create unlogged table history.draft (
    n bigint, user_id bigint, created_at timestamptz, fate text, lines integer, first_product bigint
);
create unlogged table history.entry (
    n bigint primary key, user_id bigint, id uuid, attempt_id uuid, created_at timestamptz, fate text, status text,
    version bigint, changed_at timestamptz, total bigint, seq bigint
);
create unlogged table history.line (
    n bigint, user_id bigint, order_id uuid, product_id bigint, sku text, name text, unit_price bigint,
    quantity bigint
);
