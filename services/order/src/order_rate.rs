//! The orders of each minute of the last hour. An id begins with the time of its order, so that a minute is a range of
//! ids. The count of a minute that is over does not change, and is read once.

use std::{collections::BTreeMap, ops::Range};

use shoppee_kit::pg::PgPool;
use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{order_id, store::order_rate as store};

/// The minutes of a response, the present one last.
const MINUTES: i64 = 60;
/// The minutes of one query. A request that ends early keeps the counts of its earlier queries.
const MINUTES_PER_QUERY: usize = 5;
/// The time after the end of a minute in which a checkout of that minute may commit.
const COMMIT_GRACE: Duration = Duration::seconds(30);

/// A cache of the counts of past minutes.
#[derive(Debug, Default)]
pub struct OrderRate {
    /// The counts of complete minutes, by their number since 1970. One reader at a time counts those that lack.
    complete: Mutex<BTreeMap<i64, i64>>,
}

impl OrderRate {
    /// Returns the orders of each of the last 60 minutes, the present one last.
    pub async fn read(&self, pool: &PgPool, now: OffsetDateTime) -> sqlx::Result<Vec<i64>> {
        let minutes = recent_minutes(now);
        let ended = minute_of(now - COMMIT_GRACE);
        let mut complete = self.complete.lock().await;
        complete.retain(|minute, _| minutes.contains(minute));
        let missing: Vec<i64> = minutes.clone().filter(|minute| !complete.contains_key(minute)).collect();
        let mut incomplete = BTreeMap::new();
        let mut conn = pool.acquire().await?;
        for minutes in missing.chunks(MINUTES_PER_QUERY) {
            let ranges: Vec<(Uuid, Uuid)> =
                minutes.iter().map(|minute| (first_id(*minute), first_id(minute + 1))).collect();
            let counts = store::count_in_ranges(&mut conn, &ranges).await?;
            for (minute, count) in minutes.iter().copied().zip(counts) {
                let counts = if minute < ended { &mut *complete } else { &mut incomplete };
                counts.insert(minute, count);
            }
        }
        let count = |minute| complete.get(&minute).or_else(|| incomplete.get(&minute)).copied();
        Ok(minutes.map(|minute| count(minute).unwrap_or_default()).collect())
    }
}

/// Returns the number of the minute since 1970.
fn minute_of(at: OffsetDateTime) -> i64 {
    at.unix_timestamp().div_euclid(60)
}

fn recent_minutes(now: OffsetDateTime) -> Range<i64> {
    let next = minute_of(now) + 1;
    next - MINUTES..next
}

/// Returns the lowest id of a minute.
fn first_id(minute: i64) -> Uuid {
    let start = OffsetDateTime::from_unix_timestamp(minute * 60).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    order_id::first_at(start)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_id_lies_in_the_minute_of_its_time() {
        let at = datetime!(2026-01-01 12:34:59.999 UTC);
        let minutes = recent_minutes(at);
        assert_eq!((minutes.end - minutes.start, minute_of(at)), (MINUTES, minutes.end - 1));
        let id = order_id::new(at);
        assert!((first_id(minute_of(at))..first_id(minute_of(at) + 1)).contains(&id));
    }
}
