//! The reader of the change log, which reads a bounded number of entries per poll.

use std::collections::HashMap;

use sqlx::PgConnection;
use tokio::time::{Duration, Instant};

use super::watermark::Watermark;
use crate::{
    error::Error,
    store::change::{self, Change},
};

/// Entries read by one statement.
const PAGE_SIZE: usize = 10_000;
/// Pages read by one poll. If there are more, as after a bulk load, all caches are invalidated once instead.
const MAX_PAGES_PER_POLL: usize = 4;
/// Changes delivered individually within [`WINDOW`]. Each cache tracks a minimum revision per change for that
/// long, so more changes are delivered as [`PollOutcome::Everything`].
const MAX_CHANGES_PER_WINDOW: usize = 50_000;
const WINDOW: Duration = Duration::from_secs(10);

/// The outcome of a poll.
#[derive(Debug)]
pub enum PollOutcome {
    /// The watermark is not known yet.
    NotReady,
    /// The poll did not reach the end of the log; the next poll continues.
    Behind,
    /// All changes since the previous poll.
    Changes(Vec<Change>),
    /// Too many changes to deliver individually.
    Everything,
}

/// Follows the log to its end.
#[derive(Debug)]
pub struct Reader {
    pub watermark: Watermark,
    /// The last poll did not reach the end of the log. The next poll that reaches it returns
    /// [`PollOutcome::Everything`].
    is_behind: bool,
    window_start: Instant,
    delivered: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { watermark: Watermark::default(), is_behind: false, window_start: Instant::now(), delivered: 0 }
    }
}

impl Reader {
    /// Reads the new entries up to `last_id`, the last assigned id.
    pub async fn poll(&mut self, conn: &mut PgConnection, last_id: i64) -> Result<PollOutcome, Error> {
        if self.watermark.get().is_some_and(|watermark| last_id < watermark) {
            tracing::warn!(last_id, "the change log was reset: all caches are invalidated");
            (self.watermark, self.is_behind) = (Watermark::default(), true);
        }
        if self.watermark.is_at(last_id) && !self.is_behind {
            return Ok(PollOutcome::Changes(Vec::new()));
        }
        self.watermark.observe(last_id, &change::fetch_writers(conn).await?);
        if self.watermark.get().is_none() {
            return Ok(PollOutcome::NotReady);
        }
        if self.is_behind {
            // The outcome will be `Everything`, so entries that are visible now need not be read.
            self.watermark.advance();
        }
        let Some(changes) = self.read(conn).await? else {
            self.is_behind = true;
            return Ok(PollOutcome::Behind);
        };
        self.watermark.advance();
        if self.window_start.elapsed() > WINDOW {
            (self.window_start, self.delivered) = (Instant::now(), 0);
        }
        self.delivered += changes.len();
        if std::mem::take(&mut self.is_behind) || self.delivered > MAX_CHANGES_PER_WINDOW {
            self.delivered = 0;
            return Ok(PollOutcome::Everything);
        }
        Ok(PollOutcome::Changes(changes))
    }

    /// Reads all unread entries; `None` if there are more than one poll may read.
    async fn read(&mut self, conn: &mut PgConnection) -> Result<Option<Vec<Change>>, Error> {
        let (mut changes, mut covered) = (HashMap::new(), i64::MIN);
        for _ in 0..MAX_PAGES_PER_POLL {
            let unread = self.watermark.unread_ranges(covered);
            if unread.is_empty() {
                return Ok(Some(changes.into_values().collect()));
            }
            let page =
                change::fetch_page(conn, &unread, i64::try_from(PAGE_SIZE).unwrap_or(i64::MAX)).await?;
            let last = page.ids.last().copied().filter(|_| page.ids.len() >= PAGE_SIZE);
            self.watermark.record_read(last, &page.ids);
            changes.extend(page.changes.into_iter().map(|change| (change.product_id, change)));
            let Some(last) = last else {
                return Ok(Some(changes.into_values().collect()));
            };
            covered = last;
        }
        Ok(None)
    }
}
