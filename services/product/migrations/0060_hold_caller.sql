-- The client that created a hold. Only this client lists it: another service's holds need no order. Holds from before the
-- column are the order service's, as are those of a previous version that runs beside this one.
alter table product.stock_hold add column caller text;
