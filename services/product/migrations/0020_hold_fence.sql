-- The highest number of the calls that were about a hold's time: what an earlier payment asks late changes nothing.
alter table product.stock_hold add column fence bigint not null default 0;
