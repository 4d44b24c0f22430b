//! The stock audit: the balances of the ledger up to a checkpoint, and the rows behind it.
//!
//! No statement reads the ledger from its beginning. `fold` adds rows up to the watermark to the balances.
//! `audit_slice` and `find_hold_mismatches` compare the balances plus the rows behind the checkpoint with the
//! stock and the holds. `sum_ledger` sums up the whole ledger again, page by page.

use shoppee_kit::pg::PgPool;
use sqlx::{PgConnection, Postgres, Transaction};

/// Begins a transaction whose statements read one snapshot, and returns it with the checkpoint. Its
/// statements use the index of the ledger for the rows behind the checkpoint, even if PostgreSQL has no
/// statistics on their number.
pub async fn begin_snapshot(pool: &PgPool) -> sqlx::Result<(Transaction<'static, Postgres>, i64)> {
    let mut tx = pool.begin_with("begin isolation level repeatable read read only").await?;
    sqlx::query!("set local enable_seqscan = off").execute(&mut *tx).await?;
    let ledger_id = fetch_checkpoint(&mut tx).await?;
    Ok((tx, ledger_id))
}

/// Returns the checkpoint: the ledger id up to which the balances include all rows.
pub async fn fetch_checkpoint(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!("select ledger_id from product.stock_checkpoint").fetch_one(conn).await
}

/// The row of product.stock_checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// The balances include all ledger rows up to this id.
    pub ledger_id: i64,
    /// The position of the recount.
    pub recount: RecountPosition,
}

/// Returns whether a recount is running, and the time since the last one ended, in seconds.
pub async fn fetch_recount_age(conn: &mut PgConnection) -> sqlx::Result<(bool, f64)> {
    let row = sqlx::query!(
        r#"select recount_product_id <> 0 or recount_ledger_id <> 0 as "running!",
                  extract(epoch from clock_timestamp() - recounted_at)::double precision as "age!"
           from product.stock_checkpoint"#
    )
    .fetch_one(conn)
    .await?;
    Ok((row.running, row.age))
}

/// The position of a recount: a product, its last row that was included, and the sums so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecountPosition {
    pub product_id: i64,
    pub ledger_id: i64,
    pub sums: Sums,
}

/// The ledger's sums for a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub available: i64,
    pub held: i64,
}

/// Locks the checkpoint; `None` if another replica has locked it.
pub async fn lock_checkpoint(conn: &mut PgConnection) -> sqlx::Result<Option<Checkpoint>> {
    let row = sqlx::query!(
        "select ledger_id, recount_product_id, recount_ledger_id, recount_available, recount_held
         from product.stock_checkpoint
         for update skip locked"
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Checkpoint {
        ledger_id: row.ledger_id,
        recount: RecountPosition {
            product_id: row.recount_product_id,
            ledger_id: row.recount_ledger_id,
            sums: Sums { available: row.recount_available, held: row.recount_held },
        },
    }))
}

/// Adds up to `limit` ledger rows behind `after`, up to `settled`, to the balances, and advances the locked
/// checkpoint. Returns whether there are more.
pub async fn fold(conn: &mut PgConnection, after: i64, settled: i64, limit: i64) -> sqlx::Result<bool> {
    let page = sqlx::query!(
        r#"with page as materialized (
               select id, product_id, kind, quantity
               from product.stock_ledger
               where id > $1 and id <= $2
               order by id
               limit $3
           ),
           folded as (
               insert into product.stock_balance as balance (product_id, available, held)
               select product_id,
                      coalesce(sum(quantity) filter (where kind <> 'sale'), 0),
                      coalesce(sum(quantity) filter (where kind = 'sale'), 0)
                      - coalesce(sum(quantity) filter (where kind in ('hold', 'release')), 0)
               from page
               group by product_id
               on conflict (product_id) do update
               set available = balance.available + excluded.available, held = balance.held + excluded.held
           )
           select count(*) as "rows!", max(id) as last from page"#,
        after,
        settled,
        limit,
    )
    .fetch_one(&mut *conn)
    .await?;
    let more = page.rows >= limit;
    // product.change shares the sequence: there is no ledger row between the last one and `settled`.
    let ledger_id = page.last.filter(|_| more).unwrap_or(settled);
    sqlx::query!("update product.stock_checkpoint set ledger_id = $1", ledger_id).execute(conn).await?;
    Ok(more)
}

/// The audit of a slice of the products.
#[derive(Debug)]
pub struct Slice {
    /// The last product; `None` if it is the last of all.
    pub last: Option<i64>,
    /// The products that violate the invariant.
    pub violations: Vec<i64>,
}

/// Compares the next `limit` products after `after` with the ledger, in the snapshot of `checkpoint`. The
/// available quantity must be the balance plus the rows behind the checkpoint, and `in_stock` must agree with
/// it.
pub async fn audit_slice(
    conn: &mut PgConnection,
    checkpoint: i64,
    after: i64,
    limit: i64,
) -> sqlx::Result<Slice> {
    // The rows behind the checkpoint are read once. Read per product, PostgreSQL would scan all index entries
    // of the product.
    let row = sqlx::query!(
        r#"with slice as (
               select product_id, available
               from product.stock
               where product_id > $2
               order by product_id
               limit $3
           ),
           new as (
               select product_id, sum(quantity) as available
               from product.stock_ledger
               where id > $1 and kind <> 'sale'
               group by product_id
           )
           select max(slice.product_id) as last,
                  count(*) as "products!",
                  coalesce(array_agg(slice.product_id) filter (
                      where slice.available <> coalesce(balance.available, 0) + coalesce(new.available, 0)
                         or product.in_stock <> (slice.available > 0)
                  ), '{}') as "violations!"
           from slice
           join product.product product on product.id = slice.product_id
           left join product.stock_balance balance on balance.product_id = slice.product_id
           left join new on new.product_id = slice.product_id"#,
        checkpoint,
        after,
        limit,
    )
    .fetch_one(conn)
    .await?;
    Ok(Slice { last: row.last.filter(|_| row.products == limit), violations: row.violations })
}

/// Returns up to `limit` products whose held quantity in the ledger differs from the active holds, in the
/// snapshot of `checkpoint`.
pub async fn find_hold_mismatches(
    conn: &mut PgConnection,
    checkpoint: i64,
    limit: i64,
) -> sqlx::Result<Vec<i64>> {
    // `offset 0` is an optimization fence: the planner looks up lines by the key of the hold instead of
    // scanning all lines.
    sqlx::query_scalar!(
        r#"with books as (
               select product_id, sum(held) as held
               from (
                   select product_id, held from product.stock_balance where held <> 0
                   union all
                   select product_id, case kind when 'sale' then quantity else - quantity end
                   from product.stock_ledger
                   where id > $1 and kind in ('hold', 'release', 'sale')
               ) entries
               group by product_id
           ),
           holds as (
               select line.product_id, sum(line.quantity) as held
               from product.stock_hold hold
               cross join lateral (
                   select product_id, quantity from product.hold_line where order_id = hold.order_id offset 0
               ) line
               where hold.state = 'held'
               group by line.product_id
           )
           select product_id as "product_id!"
           from books
           full join holds using (product_id)
           where coalesce(books.held, 0) <> coalesce(holds.held, 0)
           order by product_id
           limit $2"#,
        checkpoint,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// The sums of some rows of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductSum {
    pub product_id: i64,
    pub last: i64,
    pub rows: i64,
    pub sums: Sums,
}

/// Sums up the next `limit` ledger rows behind `position`, up to `checkpoint`, by product and in the order of
/// products.
pub async fn sum_ledger(
    conn: &mut PgConnection,
    position: RecountPosition,
    checkpoint: i64,
    limit: i64,
) -> sqlx::Result<Vec<ProductSum>> {
    let rows = sqlx::query!(
        r#"select product_id, max(id) as "last!", count(*) as "rows!",
                  coalesce(sum(quantity) filter (where kind <> 'sale'), 0)::bigint as "available!",
                  (coalesce(sum(quantity) filter (where kind = 'sale'), 0)
                   - coalesce(sum(quantity) filter (where kind in ('hold', 'release')), 0))::bigint as "held!"
           from (
               select product_id, id, kind, quantity
               from product.stock_ledger
               where (product_id, id) > ($1, $2) and id <= $3
               order by product_id, id
               limit $4
           ) page
           group by product_id
           order by product_id"#,
        position.product_id,
        position.ledger_id,
        checkpoint,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let sums = rows.into_iter().map(|row| ProductSum {
        product_id: row.product_id,
        last: row.last,
        rows: row.rows,
        sums: Sums { available: row.available, held: row.held },
    });
    Ok(sums.collect())
}

/// Returns the balances of the products from `first` to `last`, in their order.
pub async fn fetch_balances(
    conn: &mut PgConnection,
    first: i64,
    last: i64,
) -> sqlx::Result<Vec<(i64, Sums)>> {
    let rows = sqlx::query!(
        "select product_id, available, held
         from product.stock_balance
         where product_id between $1 and $2
         order by product_id",
        first,
        last,
    )
    .fetch_all(conn)
    .await?;
    let balances =
        rows.into_iter().map(|row| (row.product_id, Sums { available: row.available, held: row.held }));
    Ok(balances.collect())
}

/// Saves the position of the recount; `None` if it has ended.
pub async fn save_recount(conn: &mut PgConnection, position: Option<RecountPosition>) -> sqlx::Result<()> {
    let (at, ended) = (position.unwrap_or_default(), position.is_none());
    sqlx::query!(
        "update product.stock_checkpoint
         set recount_product_id = $1, recount_ledger_id = $2, recount_available = $3, recount_held = $4,
             recounted_at = case when $5 then clock_timestamp() else recounted_at end",
        at.product_id,
        at.ledger_id,
        at.sums.available,
        at.sums.held,
        ended,
    )
    .execute(conn)
    .await?;
    Ok(())
}
