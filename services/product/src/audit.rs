//! The audit of the stock: for every product, supplied = available + held + sold, by the ledger.
//!
//! Four workers, none of which gets slower with the length of the history:
//! - `fold` adds settled rows of the ledger to the balances and moves the checkpoint.
//! - `look` goes round all products and compares what is available with the balance plus the rows behind the
//!   checkpoint.
//! - `look_at_holds` compares what the ledger says is held with the living holds.
//! - `recount` adds up the whole ledger again, a page at a time, and compares the sums with the balances.
//!   So it finds a row that was changed or deleted afterwards too.

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
    changes::Changes,
    store::audit::{self as store, Counted, Recount, Sums},
};

/// The interval at which settled rows of the ledger are added to the balances.
const FOLD_INTERVAL: Duration = Duration::from_secs(1);
/// Rows of the ledger folded in one transaction: a tenth of `statement_timeout` on a slow disk.
const FOLD_LIMIT: i64 = 10_000;
/// The interval at which a slice of the products is looked at: 5 000 a second, a million in 200 s.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_LIMIT: i64 = 5_000;
/// The interval at which the living holds are compared with the ledger.
const HOLDS_INTERVAL: Duration = Duration::from_secs(5);
/// Numbers of the log behind the checkpoint up to which products are compared. More are folded first.
const MAX_TAIL: i64 = 500_000;
/// The interval at which a page is recounted: 4 000 rows a second, 6 000 000 in 25 minutes.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(5);
const RECOUNT_LIMIT: i64 = 20_000;
/// The pause between two recounts of everything, in seconds.
const RECOUNT_PAUSE: f64 = 3600.0;
/// Violations that are remembered; one is too many.
const MAX_VIOLATIONS: usize = 10_000;

/// Starts the four workers.
pub fn start(process: &Process, ready: &watch::Receiver<bool>, pool: &PgPool, changes: &Changes) {
    let audit = Audit { pool: pool.clone(), changes: changes.clone(), books: Arc::default() };
    // As long as nothing was found; the first round takes a while.
    metrics::gauge!("stock_invariant_violations").set(0.0);
    let age = |name: &'static str| {
        let age = Age::default();
        age.export(process, metrics::gauge!("audit_age_seconds", "audit" => name));
        age
    };
    let one = audit.clone();
    worker::spawn(process, "stock-fold", FOLD_INTERVAL, ready.clone(), move || {
        let audit = one.clone();
        async move { audit.fold().await }
    });
    let (one, stock) = (audit.clone(), age("stock"));
    worker::spawn(process, "stock-audit", LOOK_INTERVAL, ready.clone(), move || {
        let (audit, age) = (one.clone(), stock.clone());
        async move { audit.look(&age).await }
    });
    let (one, holds) = (audit.clone(), age("holds"));
    worker::spawn(process, "hold-audit", HOLDS_INTERVAL, ready.clone(), move || {
        let (audit, age) = (one.clone(), holds.clone());
        async move { audit.look_at_holds(&age).await }
    });
    let ledger = age("ledger");
    worker::spawn(process, "stock-recount", RECOUNT_INTERVAL, ready.clone(), move || {
        let (audit, age) = (audit.clone(), ledger.clone());
        async move { audit.recount(&age).await }
    });
}

/// Cheap to clone.
#[derive(Clone, Debug)]
struct Audit {
    pool: PgPool,
    changes: Changes,
    books: Arc<Mutex<Books>>,
}

/// The place of the round, and the products that do not balance.
#[derive(Debug, Default)]
struct Books {
    /// The last product that was looked at.
    after: i64,
    /// The time at which the round began; `None` between two rounds.
    began: Option<Instant>,
    /// Products of which something else is available than the ledger says,
    stock: BTreeSet<i64>,
    /// or something else is held,
    holds: BTreeSet<i64>,
    /// or whose ledger has other sums than it had.
    ledger: BTreeSet<i64>,
}

/// One of the three comparisons of [`Books`].
type Comparison = fn(&mut Books) -> &mut BTreeSet<i64>;

impl Books {
    /// Replaces what was found in the products from `first` to `last`, and says what is new.
    fn note(&mut self, comparison: Comparison, name: &str, (first, last): (i64, i64), violations: &[i64]) {
        let known = comparison(self);
        let before = known.clone();
        known.retain(|id| !(first..=last).contains(id));
        for id in violations {
            if !before.contains(id) {
                tracing::error!(
                    product.id = id,
                    comparison = name,
                    "supplied is not available + held + sold"
                );
            }
            if known.len() < MAX_VIOLATIONS {
                known.insert(*id);
            }
        }
        let all: BTreeSet<&i64> = self.stock.iter().chain(&self.holds).chain(&self.ledger).collect();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        metrics::gauge!("stock_invariant_violations").set(all.len() as f64);
    }
}

impl Audit {
    async fn fold(&self) -> sqlx::Result<Round> {
        let Some(settled) = self.changes.settled() else {
            return Ok(Round::Done);
        };
        let mut conn = self.pool.acquire().await?;
        if store::checkpoint(&mut conn).await? >= settled {
            return Ok(Round::Done);
        }
        drop(conn);
        let mut tx = self.pool.begin().await?;
        // Another replica folds where there is none.
        let Some(checkpoint) =
            store::lock(&mut tx).await?.filter(|checkpoint| checkpoint.ledger_id < settled)
        else {
            return Ok(Round::Done);
        };
        let more = store::fold(&mut tx, checkpoint.ledger_id, settled, FOLD_LIMIT).await?;
        tx.commit().await?;
        Ok(Round::more_if(more))
    }

    async fn look(&self, age: &Age) -> sqlx::Result<Round> {
        let started = Instant::now();
        let (after, began) = {
            let mut books = self.books();
            (books.after, *books.began.get_or_insert(started))
        };
        let (mut tx, checkpoint) = store::snapshot(&self.pool).await?;
        if self.is_behind(checkpoint) {
            return Ok(Round::Done);
        }
        let slice = store::slice(&mut tx, checkpoint, after, LOOK_LIMIT).await?;
        tx.rollback().await?;
        let mut books = self.books();
        let range = (after.saturating_add(1), slice.last.unwrap_or(i64::MAX));
        books.note(|books| &mut books.stock, "stock", range, &slice.violations);
        // After the last product, the first again.
        books.after = slice.last.unwrap_or(0);
        if slice.last.is_none() {
            books.began = None;
            age.reset(began);
        }
        Ok(Round::Done)
    }

    async fn look_at_holds(&self, age: &Age) -> sqlx::Result<Round> {
        let began = Instant::now();
        let (mut tx, checkpoint) = store::snapshot(&self.pool).await?;
        if self.is_behind(checkpoint) {
            return Ok(Round::Done);
        }
        let most = i64::try_from(MAX_VIOLATIONS).unwrap_or(i64::MAX);
        let violations = store::held(&mut tx, checkpoint, most).await?;
        tx.rollback().await?;
        self.books().note(|books| &mut books.holds, "holds", (i64::MIN, i64::MAX), &violations);
        age.reset(began);
        Ok(Round::Done)
    }

    /// Recounts the next page.
    async fn recount(&self, age: &Age) -> sqlx::Result<Round> {
        let mut conn = self.pool.acquire().await?;
        let (running, seconds) = store::recount_age(&mut conn).await?;
        drop(conn);
        let ended = Duration::try_from_secs_f64(seconds).ok().and_then(|ago| Instant::now().checked_sub(ago));
        if let Some(ended) = ended {
            age.reset(ended);
        }
        if !running && seconds < RECOUNT_PAUSE {
            return Ok(Round::Done);
        }
        let mut tx = self.pool.begin().await?;
        // Another replica recounts where there is none.
        let Some(checkpoint) = store::lock(&mut tx).await? else {
            return Ok(Round::Done);
        };
        let place = checkpoint.recount;
        let counted = store::count(&mut tx, place, checkpoint.ledger_id, RECOUNT_LIMIT).await?;
        let page = Page::new(place, counted);
        let balances = store::balances(&mut tx, page.first, page.last).await?;
        let violations = page.compare(&balances);
        store::save_recount(&mut tx, page.next).await?;
        tx.commit().await?;
        self.books().note(|books| &mut books.ledger, "ledger", (page.first, page.last), &violations);
        Ok(Round::Done)
    }

    /// Reports whether so much is behind the checkpoint that it has to be folded first. The age of the audit grows
    /// meanwhile.
    fn is_behind(&self, checkpoint: i64) -> bool {
        self.changes.newest().saturating_sub(checkpoint) > MAX_TAIL
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sums that a page of the ledger adds to a recount.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// All rows of the products from `first` to `last` are counted.
    first: i64,
    last: i64,
    sums: Vec<(i64, Sums)>,
    /// The beginning of the next page; `None` after the last.
    next: Option<Recount>,
}

impl Page {
    fn new(place: Recount, counted: Vec<Counted>) -> Self {
        let full = counted.iter().map(|counted| counted.rows).sum::<i64>() >= RECOUNT_LIMIT;
        let mut sums = vec![(place.product_id, place.sums)];
        let mut last = place.ledger_id;
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
        let first = place.product_id;
        // Of the last product of a full page there may be more rows.
        match sums.pop_if(|_| full) {
            Some((product_id, unfinished)) => {
                let next = Recount { product_id, ledger_id: last, sums: unfinished };
                Self { first, last: product_id - 1, sums, next: Some(next) }
            }
            None => Self { first, last: i64::MAX, sums, next: None },
        }
    }

    /// The products whose balance is not what was counted; those without rows, or without a balance, have 0.
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

    fn counted(product_id: i64, last: i64, rows: i64, available: i64) -> Counted {
        Counted { product_id, last, rows, sums: sums(available, 0) }
    }

    #[test]
    fn a_product_that_goes_over_several_pages_is_compared_after_its_last_row() {
        let first = Page::new(
            Recount::default(),
            vec![counted(1, 10, 5, 3), counted(2, RECOUNT_LIMIT, RECOUNT_LIMIT - 5, 4)],
        );
        assert_eq!((first.first, first.last), (0, 1));
        assert_eq!(first.compare(&[(1, sums(3, 0))]), NONE);
        let place = first.next.expect("more");
        assert_eq!(place, Recount { product_id: 2, ledger_id: RECOUNT_LIMIT, sums: sums(4, 0) });

        let second = Page::new(place, vec![counted(2, 30_000, RECOUNT_LIMIT, 6)]);
        assert_eq!((second.first, second.last), (2, 1), "no product is complete");
        let place = second.next.expect("more");

        let third = Page::new(place, vec![counted(3, 9, 1, 1)]);
        assert_eq!((third.first, third.last, third.next), (2, i64::MAX, None));
        assert_eq!(third.compare(&[(2, sums(10, 0)), (3, sums(1, 0))]), NONE);
    }

    #[test]
    fn other_sums_and_missing_rows_are_violations() {
        let page = Page::new(Recount::default(), vec![counted(1, 10, 5, 3), counted(2, 11, 1, 1)]);
        assert_eq!(page.compare(&[(1, sums(4, 0)), (2, sums(1, 0))]), [1], "other sums");
        assert_eq!(page.compare(&[(1, sums(3, 0)), (2, sums(1, 0)), (5, sums(2, 1))]), [5], "rows are gone");
        assert_eq!(page.compare(&[(1, sums(3, 0))]), [2], "the balance is gone");
        assert_eq!(page.compare(&[(1, sums(3, 0)), (2, sums(1, 0)), (6, sums(0, 0))]), NONE);
    }
}
