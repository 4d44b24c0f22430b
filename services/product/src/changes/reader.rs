//! Reads the log, a bounded part of it at each look.

use std::collections::HashMap;

use sqlx::PgConnection;
use tokio::time::{Duration, Instant};

use super::place::Place;
use crate::{
    error::Error,
    store::change::{self, Change},
};

/// Entries read by one statement.
const PAGE: usize = 10_000;
/// Pages read by one look. Where there are more, as after a load, everything is dropped once instead.
const MAX_PAGES: usize = 4;
/// Changes told one by one within [`WINDOW`], for which each cache remembers the newest revision so long. More are told
/// as everything.
const MAX_CHANGES: usize = 50_000;
const WINDOW: Duration = Duration::from_secs(10);

/// The result of a look at the log.
#[derive(Debug)]
pub enum Look {
    /// It is not known yet from where on all changes are seen.
    Unknown,
    /// There is more than a look reads; the next one goes on.
    Behind,
    /// All that changed since the look before.
    Changes(Vec<Change>),
    /// More changed than is told one by one.
    Everything,
}

/// Follows the log to its end.
#[derive(Debug)]
pub struct Reader {
    pub place: Place,
    /// The last look did not reach the end: what is read until one does is told as everything.
    behind: bool,
    window: Instant,
    told: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { place: Place::default(), behind: false, window: Instant::now(), told: 0 }
    }
}

impl Reader {
    /// Reads what is new up to `newest`, the highest number that was given.
    pub async fn look(&mut self, conn: &mut PgConnection, newest: i64) -> Result<Look, Error> {
        if self.place.settled().is_some_and(|settled| newest < settled) {
            tracing::warn!(newest, "the change log is shorter than it was: all caches begin anew");
            (self.place, self.behind) = (Place::default(), true);
        }
        if self.place.is_at(newest) && !self.behind {
            return Ok(Look::Changes(Vec::new()));
        }
        self.place.see(newest, &change::writers(conn).await?);
        if self.place.settled().is_none() {
            return Ok(Look::Unknown);
        }
        if self.behind {
            // Everything is told in the end: entries that are visible now need not be read.
            self.place.settle();
        }
        let Some(changes) = self.read(conn).await? else {
            self.behind = true;
            return Ok(Look::Behind);
        };
        self.place.settle();
        if self.window.elapsed() > WINDOW {
            (self.window, self.told) = (Instant::now(), 0);
        }
        self.told += changes.len();
        if std::mem::take(&mut self.behind) || self.told > MAX_CHANGES {
            self.told = 0;
            return Ok(Look::Everything);
        }
        Ok(Look::Changes(changes))
    }

    /// Reads all that was not read yet; `None` where that is too much for one look.
    async fn read(&mut self, conn: &mut PgConnection) -> Result<Option<Vec<Change>>, Error> {
        let (mut changes, mut covered) = (HashMap::new(), i64::MIN);
        for _ in 0..MAX_PAGES {
            let unread = self.place.unread(covered);
            if unread.is_empty() {
                return Ok(Some(changes.into_values().collect()));
            }
            let page = change::page(conn, &unread, i64::try_from(PAGE).unwrap_or(i64::MAX)).await?;
            let last = page.numbers.last().copied().filter(|_| page.numbers.len() >= PAGE);
            self.place.read(last, &page.numbers);
            changes.extend(page.changes.into_iter().map(|change| (change.product_id, change)));
            let Some(last) = last else {
                return Ok(Some(changes.into_values().collect()));
            };
            covered = last;
        }
        Ok(None)
    }
}
