-- Drops the indexes. Recreating them after all rows are written costs a third of maintaining them. Primary keys stay.
create table history.dropped_index as
    select format('%I.%I', schema.nspname, index.relname) as name,
           -- An index of a partitioned table is recreated with those of its partitions.
           replace(pg_get_indexdef(index.oid), ' ON ONLY ', ' ON ') as definition
    from pg_index entry
    join pg_class index on index.oid = entry.indexrelid
    join pg_class indexed on indexed.oid = entry.indrelid
    join pg_namespace schema on schema.oid = indexed.relnamespace
    where (schema.nspname, indexed.relname) in (
              ('orders', 'orders'), ('orders', 'order_line'), ('orders', 'event'), ('orders', 'payment_attempt'),
              ('product', 'stock_hold'), ('product', 'hold_line'), ('product', 'stock_ledger')
          )
      and not entry.indisprimary;

do $$
declare
    dropped text;
begin
    for dropped in select name from history.dropped_index loop
        execute 'drop index ' || dropped;
    end loop;
end
$$;
