//! The stock audit: for every product, supplied = available + held + sold, by the ledger.
//!
//! Four workers run it, and none gets slower as the history grows:
//! - `fold` adds the ledger rows up to the watermark to the balances and advances the checkpoint.
//! - `audit_slice` iterates over all products and compares the available quantity with the balance plus the
//!   rows behind the checkpoint.
//! - `audit_holds` compares the held quantity in the ledger with the active holds.
//! - `recount` sums up the whole ledger again, page by page, and compares the sums with the balances. It
//!   detects rows that were changed or deleted later.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoppee_kit::pg::PgPool;
use shoppee_kit::{
    age::Age,
    process::Process,
    worker::{self, Round},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    change_log::ChangeLog,
    store::audit::{self as store, ProductSum, RecountPosition, Sums},
};

/// The interval at which ledger rows are folded into the balances.
const FOLD_INTERVAL: Duration = Duration::from_secs(1);
/// Ledger rows folded in one transaction: a tenth of `statement_timeout` on a slow disk.
const FOLD_BATCH: i64 = 10_000;
/// The interval at which a slice of the products is audited: 5 000 a second, a million in 200 s.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);
const AUDIT_BATCH: i64 = 5_000;
/// The interval at which the active holds are compared with the ledger.
const HOLD_AUDIT_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of ids behind the checkpoint at which products are compared. If there are more, they
/// are folded first.
const MAX_UNFOLDED_IDS: i64 = 500_000;
/// The interval at which a page is recounted: 4 000 rows a second, 6 000 000 in 25 minutes.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(5);
const RECOUNT_BATCH: i64 = 20_000;
/// The minimum time between two recounts of the whole ledger. Seconds.
const RECOUNT_PAUSE_SECONDS: f64 = 3600.0;
/// The maximum number of violations that are tracked. One is already an incident.
const MAX_VIOLATIONS: usize = 10_000;

/// The results of the audit in this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct StockAudit {
    state: Arc<Mutex<AuditState>>,
    age: Age,
}

impl StockAudit {
    /// Returns the number of products whose stock differs from their ledger.
    pub fn violations(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).violations()
    }

    /// Returns the time since the stock of all products was compared.
    pub fn age(&self) -> Duration {
        self.age.get()
    }
}

/// Starts the four workers.
pub fn start(
    process: &Process,
    ready: &watch::Receiver<bool>,
    pool: &PgPool,
    change_log: &ChangeLog,
) -> StockAudit {
    let auditor = StockAuditor { pool: pool.clone(), change_log: change_log.clone(), state: Arc::default() };
    // The gauge exists before the first pass has finished.
    metrics::gauge!("stock_invariant_violations").set(0.0);
    let age = |name: &'static str| {
        let age = Age::default();
        age.export(process, metrics::gauge!("audit_age_seconds", "audit" => name));
        age
    };
    let shared = auditor.clone();
    worker::spawn(process, "stock-fold", FOLD_INTERVAL, ready.clone(), move || {
        let auditor = shared.clone();
        async move { auditor.fold().await }
    });
    let (shared, stock) = (auditor.clone(), age("stock"));
    let results = StockAudit { state: auditor.state.clone(), age: stock.clone() };
    worker::spawn(process, "stock-audit", AUDIT_INTERVAL, ready.clone(), move || {
        let (auditor, age) = (shared.clone(), stock.clone());
        async move { auditor.audit_slice(&age).await }
    });
    let (shared, holds) = (auditor.clone(), age("holds"));
    worker::spawn(process, "hold-audit", HOLD_AUDIT_INTERVAL, ready.clone(), move || {
        let (auditor, age) = (shared.clone(), holds.clone());
        async move { auditor.audit_holds(&age).await }
    });
    let ledger = age("ledger");
    worker::spawn(process, "stock-recount", RECOUNT_INTERVAL, ready.clone(), move || {
        let (auditor, age) = (auditor.clone(), ledger.clone());
        async move { auditor.recount(&age).await }
    });
    results
}

/// The stock auditor; cheap to clone.
#[derive(Clone, Debug)]
struct StockAuditor {
    pool: PgPool,
    change_log: ChangeLog,
    state: Arc<Mutex<AuditState>>,
}

/// The position of the current pass, and the violations.
#[derive(Debug, Default)]
struct AuditState {
    /// The last product that was audited.
    after: i64,
    /// The start of the current pass; `None` between two passes.
    started_at: Option<Instant>,
    /// Products whose available quantity differs from the ledger.
    stock: BTreeSet<i64>,
    /// Products whose held quantity differs from the ledger.
    holds: BTreeSet<i64>,
    /// Products whose recount differs from their balance.
    ledger: BTreeSet<i64>,
}

/// One of the three comparisons of [`AuditState`].
type Comparison = fn(&mut AuditState) -> &mut BTreeSet<i64>;

impl AuditState {
    /// Replaces the violations of the products from `first` to `last`, and logs the new ones.
    fn record(&mut self, comparison: Comparison, name: &str, (first, last): (i64, i64), violations: &[i64]) {
        let violating = comparison(self);
        let before = violating.clone();
        violating.retain(|id| !(first..=last).contains(id));
        for id in violations {
            if !before.contains(id) {
                tracing::error!(
                    product.id = id,
                    comparison = name,
                    "supplied is not available + held + sold"
                );
            }
            if violating.len() < MAX_VIOLATIONS {
                violating.insert(*id);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        metrics::gauge!("stock_invariant_violations").set(self.violations() as f64);
    }

    /// Returns the number of products with a violation.
    fn violations(&self) -> usize {
        self.stock.iter().chain(&self.holds).chain(&self.ledger).collect::<BTreeSet<_>>().len()
    }
}

impl StockAuditor {
    async fn fold(&self) -> sqlx::Result<Round> {
        let Some(watermark) = self.change_log.watermark() else {
            return Ok(Round::Done);
        };
        let mut conn = self.pool.acquire().await?;
        if store::fetch_checkpoint(&mut conn).await? >= watermark {
            return Ok(Round::Done);
        }
        drop(conn);
        let mut tx = self.pool.begin().await?;
        // Another replica holds the lock if there is none.
        let Some(checkpoint) =
            store::lock_checkpoint(&mut tx).await?.filter(|checkpoint| checkpoint.ledger_id < watermark)
        else {
            return Ok(Round::Done);
        };
        let more = store::fold(&mut tx, checkpoint.ledger_id, watermark, FOLD_BATCH).await?;
        tx.commit().await?;
        Ok(Round::more_if(more))
    }

    async fn audit_slice(&self, age: &Age) -> sqlx::Result<Round> {
        let started = Instant::now();
        let (after, pass_started) = {
            let mut state = self.state();
            (state.after, *state.started_at.get_or_insert(started))
        };
        let (mut tx, checkpoint) = store::begin_snapshot(&self.pool).await?;
        if self.is_behind(checkpoint) {
            return Ok(Round::Done);
        }
        let slice = store::audit_slice(&mut tx, checkpoint, after, AUDIT_BATCH).await?;
        tx.rollback().await?;
        let mut state = self.state();
        let range = (after.saturating_add(1), slice.last.unwrap_or(i64::MAX));
        state.record(|state| &mut state.stock, "stock", range, &slice.violations);
        // The pass restarts after the last product.
        state.after = slice.last.unwrap_or(0);
        if slice.last.is_none() {
            state.started_at = None;
            age.reset(pass_started);
        }
        Ok(Round::Done)
    }

    async fn audit_holds(&self, age: &Age) -> sqlx::Result<Round> {
        let pass_started = Instant::now();
        let (mut tx, checkpoint) = store::begin_snapshot(&self.pool).await?;
        if self.is_behind(checkpoint) {
            return Ok(Round::Done);
        }
        let limit = i64::try_from(MAX_VIOLATIONS).unwrap_or(i64::MAX);
        let violations = store::find_hold_mismatches(&mut tx, checkpoint, limit).await?;
        tx.rollback().await?;
        self.state().record(|state| &mut state.holds, "holds", (i64::MIN, i64::MAX), &violations);
        age.reset(pass_started);
        Ok(Round::Done)
    }

    /// Recounts the next page.
    async fn recount(&self, age: &Age) -> sqlx::Result<Round> {
        let mut conn = self.pool.acquire().await?;
        let (running, seconds) = store::fetch_recount_age(&mut conn).await?;
        drop(conn);
        let ended = Duration::try_from_secs_f64(seconds).ok().and_then(|ago| Instant::now().checked_sub(ago));
        if let Some(ended) = ended {
            age.reset(ended);
        }
        if !running && seconds < RECOUNT_PAUSE_SECONDS {
            return Ok(Round::Done);
        }
        let mut tx = self.pool.begin().await?;
        // Another replica holds the lock if there is none.
        let Some(checkpoint) = store::lock_checkpoint(&mut tx).await? else {
            return Ok(Round::Done);
        };
        let position = checkpoint.recount;
        let counted = store::sum_ledger(&mut tx, position, checkpoint.ledger_id, RECOUNT_BATCH).await?;
        let page = Page::new(position, counted);
        let balances = store::fetch_balances(&mut tx, page.first, page.last).await?;
        let violations = page.compare(&balances);
        store::save_recount(&mut tx, page.next).await?;
        tx.commit().await?;
        self.state().record(|state| &mut state.ledger, "ledger", (page.first, page.last), &violations);
        Ok(Round::Done)
    }

    /// Reports whether too many rows are behind the checkpoint, so that they have to be folded first. The age
    /// of the audit grows meanwhile.
    fn is_behind(&self, checkpoint: i64) -> bool {
        self.change_log.last_id().saturating_sub(checkpoint) > MAX_UNFOLDED_IDS
    }

    fn state(&self) -> std::sync::MutexGuard<'_, AuditState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sums of one page of a recount.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// All rows of the products from `first` to `last` are included.
    first: i64,
    last: i64,
    sums: Vec<(i64, Sums)>,
    /// The start of the next page; `None` after the last.
    next: Option<RecountPosition>,
}

impl Page {
    fn new(position: RecountPosition, counted: Vec<ProductSum>) -> Self {
        let full = counted.iter().map(|counted| counted.rows).sum::<i64>() >= RECOUNT_BATCH;
        let mut sums = vec![(position.product_id, position.sums)];
        let mut last = position.ledger_id;
        for counted in counted {
            last = counted.last;
            match sums.last_mut() {
                Some((product_id, sums)) if *product_id == counted.product_id => {
                    sums.available += counted.sums.available;
                    sums.held += counted.sums.held;
                }
                Some(_) | None => sums.push((counted.product_id, counted.sums)),
            }
        }
        let first = position.product_id;
        // The next page may have more rows of the last product of a full page.
        match sums.pop_if(|_| full) {
            Some((product_id, unfinished)) => {
                let next = RecountPosition { product_id, ledger_id: last, sums: unfinished };
                Self { first, last: product_id - 1, sums, next: Some(next) }
            }
            None => Self { first, last: i64::MAX, sums, next: None },
        }
    }

    /// Returns the products whose balance differs from the recount. Products without rows or without a
    /// balance count as 0.
    fn compare(&self, balances: &[(i64, Sums)]) -> Vec<i64> {
        let entries = |of: &[(i64, Sums)]| -> BTreeSet<(i64, i64, i64)> {
            let named = of.iter().filter(|(_, sums)| *sums != Sums::default());
            named.map(|(id, sums)| (*id, sums.available, sums.held)).collect()
        };
        let different: BTreeSet<i64> =
            entries(&self.sums).symmetric_difference(&entries(balances)).map(|(id, ..)| *id).collect();
        different.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [i64; 0] = [];

    fn sums(available: i64, held: i64) -> Sums {
        Sums { available, held }
    }

    fn counted(product_id: i64, last: i64, rows: i64, available: i64) -> ProductSum {
        ProductSum { product_id, last, rows, sums: sums(available, 0) }
    }

    #[test]
    fn a_product_on_several_pages_is_compared_after_its_last_row() {
        let first = Page::new(
            RecountPosition::default(),
            vec![counted(1, 10, 5, 3), counted(2, RECOUNT_BATCH, RECOUNT_BATCH - 5, 4)],
        );
        assert_eq!((first.first, first.last), (0, 1));
        assert_eq!(first.compare(&[(1, sums(3, 0))]), NONE);
        let position = first.next.expect("more");
        assert_eq!(position, RecountPosition { product_id: 2, ledger_id: RECOUNT_BATCH, sums: sums(4, 0) });

        let second = Page::new(position, vec![counted(2, 30_000, RECOUNT_BATCH, 6)]);
        assert_eq!((second.first, second.last), (2, 1), "no product is complete");
        let position = second.next.expect("more");

        let third = Page::new(position, vec![counted(3, 9, 1, 1)]);
        assert_eq!((third.first, third.last, third.next), (2, i64::MAX, None));
        assert_eq!(third.compare(&[(2, sums(10, 0)), (3, sums(1, 0))]), NONE);
    }

    #[test]
    fn different_sums_and_missing_rows_are_violations() {
        let page = Page::new(RecountPosition::default(), vec![counted(1, 10, 5, 3), counted(2, 11, 1, 1)]);
        assert_eq!(page.compare(&[(1, sums(4, 0)), (2, sums(1, 0))]), [1], "other sums");
        assert_eq!(page.compare(&[(1, sums(3, 0)), (2, sums(1, 0)), (5, sums(2, 1))]), [5], "rows are gone");
        assert_eq!(page.compare(&[(1, sums(3, 0))]), [2], "the balance is gone");
        assert_eq!(page.compare(&[(1, sums(3, 0)), (2, sums(1, 0)), (6, sums(0, 0))]), NONE);
    }
}
