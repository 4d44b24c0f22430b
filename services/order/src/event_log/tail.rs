//! The newest entries of the log in memory. One reader per process fills the tail for all streams, so that a stream that
//! is up to date costs no query. Without a stream the reader rests.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoppee_kit::{log_throttle::LogThrottle, tasks::Tasks};
use shoppee_proto::order::v1::OrderEvent;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{EventLog, PAGE_SIZE, Page, RETRY_DELAY};
use crate::store::event_log;

/// The interval of reads of the head while streams are open: it bounds the delay of events that another process appends.
const HEAD_POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Bounds the entries in memory: about 2 MiB. A stream that is further behind reads from the database.
const TAIL_CAPACITY: usize = 4_096;

/// An event with its position in the log.
#[derive(Debug)]
pub struct Entry {
    pub position: i64,
    pub event: OrderEvent,
}

impl Entry {
    /// Reports whether the event has one of these statuses; true if there are none.
    fn matches(&self, statuses: &[String]) -> bool {
        statuses.is_empty() || statuses.contains(&self.event.status_word)
    }
}

#[derive(Debug, Default)]
pub struct Tail {
    entries: Mutex<VecDeque<Arc<Entry>>>,
    /// The newest position that is known to be committed.
    head: watch::Sender<i64>,
    wake: Notify,
}

impl Tail {
    /// Returns a channel with the newest position.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        let head = self.head.subscribe();
        self.wake();
        head
    }

    /// Wakes the reader.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns a page of the entries after a position; `None` if the tail lacks them.
    pub fn page(&self, after: i64, limit: i64, statuses: &[String]) -> Option<Page> {
        let entries = self.lock();
        let offset = usize::try_from(after + 1 - entries.front()?.position).ok()?;
        let limit = usize::try_from(limit).ok()?;
        let mut page = Page { entries: Vec::new(), until: after };
        for entry in entries.iter().skip(offset).take(limit) {
            page.until = entry.position;
            if entry.matches(statuses) {
                page.entries.push(entry.clone());
            }
        }
        (page.until > after).then_some(page)
    }

    /// Adds entries up to the position `until`, and announces it.
    fn extend(&self, new: Vec<Arc<Entry>>, until: i64) {
        let mut entries = self.lock();
        let mut last = entries.back().map(|last| last.position);
        // An archived event leaves a hole, and `page` counts positions.
        let is_contiguous = new
            .iter()
            .all(|entry| last.replace(entry.position).is_none_or(|previous| previous + 1 == entry.position))
            && last.is_none_or(|last| last == until);
        if is_contiguous {
            entries.extend(new);
            let excess = entries.len().saturating_sub(TAIL_CAPACITY);
            entries.drain(..excess);
        } else {
            entries.clear();
        }
        drop(entries);
        self.head.send_replace(until);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        // A panic cannot leave the entries inconsistent.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads new entries into the tail while streams are open.
pub async fn run(log: EventLog, tasks: Tasks) -> anyhow::Result<()> {
    let (failures, shutdown) = (LogThrottle::default(), tasks.shutdown_token());
    let mut position = None;
    while !shutdown.is_cancelled() {
        let is_watched = log.tail.head.receiver_count() > 0;
        tokio::select! {
            () = log.tail.wake.notified() => {}
            () = sleep(HEAD_POLL_INTERVAL), if is_watched => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        if log.tail.head.receiver_count() == 0 {
            position = None;
            log.tail.lock().clear();
            continue;
        }
        if let Err(error) = read_new(&log, &mut position).await {
            if let Some(suppressed) = failures.admit() {
                tracing::warn!(%error, suppressed, "the event log was not read");
            }
            shutdown.run_until_cancelled(sleep(RETRY_DELAY)).await;
        }
    }
    Ok(())
}

/// Reads the entries after `position`. The first read starts at the head.
async fn read_new(log: &EventLog, position: &mut Option<i64>) -> sqlx::Result<()> {
    let mut conn = log.pool.acquire().await?;
    let head = event_log::head(&mut conn).await?;
    // The head is behind if a failover has lost the last commits.
    let Some(mut after) = position.filter(|position| *position <= head) else {
        *position = Some(head);
        log.tail.lock().clear();
        log.tail.extend(Vec::new(), head);
        return Ok(());
    };
    let capacity = i64::try_from(TAIL_CAPACITY).unwrap_or(i64::MAX);
    if head - after > capacity {
        after = head - capacity;
        log.tail.lock().clear();
    }
    while after < head {
        let until = head.min(after + PAGE_SIZE);
        log.tail.extend(super::list(&mut conn, after, until, &[]).await?, until);
        (after, *position) = (until, Some(until));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(positions: std::ops::RangeInclusive<i64>) -> Vec<Arc<Entry>> {
        let entry = |position: i64| {
            let status_word = if position % 2 == 0 { "paid" } else { "pending" }.to_owned();
            Arc::new(Entry { position, event: OrderEvent { status_word, ..OrderEvent::default() } })
        };
        positions.map(entry).collect()
    }

    fn positions(page: &Page) -> Vec<i64> {
        page.entries.iter().map(|entry| entry.position).collect()
    }

    #[test]
    fn a_page_has_the_entries_after_a_position() {
        let tail = Tail::default();
        assert!(tail.page(0, 10, &[]).is_none());
        tail.extend(entries(5..=9), 9);
        assert!(tail.page(3, 10, &[]).is_none(), "entry 4 is not in memory");
        let page = tail.page(4, 3, &[]).unwrap();
        assert_eq!((positions(&page), page.until), (vec![5, 6, 7], 7));
        assert!(tail.page(9, 10, &[]).is_none(), "there is no later entry");
        assert_eq!(*tail.subscribe().borrow(), 9);
    }

    #[test]
    fn a_filtered_page_moves_past_other_entries() {
        let tail = Tail::default();
        tail.extend(entries(5..=9), 9);
        let page = tail.page(4, 10, &["paid".to_owned()]).unwrap();
        assert_eq!((positions(&page), page.until), (vec![6, 8], 9));
    }

    #[test]
    fn the_tail_is_bounded_and_drops_entries_after_a_hole() {
        let tail = Tail::default();
        tail.extend(entries(1..=5_000), 5_000);
        assert_eq!(tail.lock().front().unwrap().position, 5_001 - i64::try_from(TAIL_CAPACITY).unwrap());
        for (new, until) in [(entries(5_002..=5_003), 5_003), (Vec::new(), 5_004)] {
            tail.extend(new, until);
            assert!(tail.page(5_000, 10, &[]).is_none());
            assert_eq!(*tail.subscribe().borrow(), until, "the database has the entries");
        }
        tail.extend(entries(5_005..=5_006), 5_007);
        assert!(tail.page(5_004, 10, &[]).is_none(), "entry 5007 is missing");
    }
}
