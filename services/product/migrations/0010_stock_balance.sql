-- The audit of the stock: sums of the ledger up to a checkpoint, so that its cost follows what is new and not the length
-- of the history.

-- The sums of each product over all rows of the ledger up to product.stock_checkpoint.ledger_id.
create table product.stock_balance (
    product_id bigint not null,
    -- The sum of everything but sales: what can be bought.
    available bigint not null,
    -- What is held: holds that were neither released nor sold.
    held bigint not null,
    constraint stock_balance_pkey primary key (product_id)
) with (fillfactor = 50);

-- Which products have something held, for the comparison with the holds.
create index stock_balance_held_idx on product.stock_balance (product_id) where held <> 0;

-- Up to where the ledger is summed, and how far the slow recount of all of it is. One row; whichever replica has locked
-- it goes on.
create table product.stock_checkpoint (
    -- No row of the ledger up to this one can appear any more, and all of them are in the balances.
    ledger_id bigint not null default 0,
    -- The product that is recounted, the last of its rows that was, and their sums.
    recount_product_id bigint not null default 0,
    recount_ledger_id bigint not null default 0,
    recount_available bigint not null default 0,
    recount_held bigint not null default 0,
    -- When the last recount of everything ended.
    recounted_at timestamptz not null default now(),
    only_row boolean not null default true,
    constraint stock_checkpoint_pkey primary key (only_row),
    constraint stock_checkpoint_only_row_check check (only_row)
);

insert into product.stock_checkpoint default values;

-- The rows of one product behind a number, without a look at the table. It takes the place of the index by kind, which
-- answered nothing else.
create index stock_ledger_product_id_id_idx on product.stock_ledger (product_id, id) include (kind, quantity);
drop index product.stock_ledger_product_id_idx;

-- The rows of one order, for the audit that joins orders, holds and the ledger.
create index stock_ledger_order_id_idx on product.stock_ledger (order_id) where order_id is not null;
