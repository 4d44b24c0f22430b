//! Order ids: UUIDv7 (RFC 9562), which begin with the time of their creation by the database's clock. So ids of all
//! processes are in one order, whatever the clock of a machine says.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

/// The bits of a UUIDv7 below its milliseconds.
const BITS_BELOW_TIME: u32 = 80;

/// Returns a new order id.
pub fn new(now: OffsetDateTime) -> Uuid {
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.nanosecond()))
}

/// Returns the id below all ids of this time and later.
pub fn first_at(time: OffsetDateTime) -> Uuid {
    let milliseconds = time.unix_timestamp_nanos() / 1_000_000;
    Uuid::from_u128(u128::try_from(milliseconds).unwrap_or_default() << BITS_BELOW_TIME)
}

/// Returns the age of an order id; zero for an id of the future.
pub fn age(id: Uuid, now: OffsetDateTime) -> Duration {
    let created = i128::try_from(id.as_u128() >> BITS_BELOW_TIME).unwrap_or_default();
    let milliseconds = (now.unix_timestamp_nanos() / 1_000_000).saturating_sub(created);
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-02-03 04:05:06.789 UTC);

    #[test]
    fn an_order_id_has_the_time_of_its_creation() {
        let id = new(NOW);
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(age(id, NOW + Duration::from_millis(1500)), Duration::from_millis(1500));
        assert_eq!(age(id, NOW - Duration::from_secs(1)), Duration::ZERO);
        assert_ne!(id, new(NOW));
    }

    #[test]
    fn ids_of_a_time_are_above_its_first_id_and_below_the_next_one() {
        let id = new(NOW);
        assert!(first_at(NOW) < id && id < first_at(NOW + Duration::from_millis(1)));
    }
}
