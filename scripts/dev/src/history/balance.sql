-- Sets the audit's balances up to the end of the ledger, and makes a recount of the whole ledger due.
truncate product.stock_balance;
insert into product.stock_balance (product_id, available, held)
select product_id,
       coalesce(sum(quantity) filter (where kind <> 'sale'), 0),
       coalesce(sum(quantity) filter (where kind = 'sale'), 0)
       - coalesce(sum(quantity) filter (where kind in ('hold', 'release')), 0)
from product.stock_ledger
group by product_id;
update product.stock_checkpoint
set ledger_id = (select max(id) from product.stock_ledger), recount_product_id = 0, recount_ledger_id = 0,
    recount_available = 0, recount_held = 0, recounted_at = now() - interval '1 hour';
