-- What changed in the catalogue, for caches: every process reads this log behind its end, and learns within a
-- fraction of a second which products it must not show as they were.
--
-- Movements of stock are in the ledger anyway; every other change is a row here. Both take their numbers from one
-- sequence, so that one number says how far the whole log was read. A transaction must have written or locked a row
-- before it takes a number: readers tell by the transactions that are running whether a number can still appear.
create table product.change (
    id bigint not null default nextval('product.stock_ledger_id_seq'),
    product_id bigint not null,
    at timestamptz not null,
    constraint change_pkey primary key (id)
);

-- What a product looks like is version + stock.revision + tree.revision: each only grows, so of two answers the one
-- with the larger sum is the newer, and answers with the same sum are the same.
alter table product.stock add column revision bigint not null default 0;

-- Names and slugs of categories are shown with their products.
create table product.tree (
    revision bigint not null default 0,
    only_row boolean not null default true,
    constraint tree_pkey primary key (only_row),
    constraint tree_only_row_check check (only_row)
);

insert into product.tree default values;
