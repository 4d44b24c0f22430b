//! A cache lease (Gray and Cheriton, 1989): the period for which cached responses may be served without asking the
//! product service.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use shoppee_proto::PRODUCT_MAX_STALENESS;
use tokio::time::Instant;

/// The validity of the lease after the service read its change log. A change must show within a second.
const LEASE_TTL: Duration = Duration::from_millis(600);
const NEVER: u64 = u64::MAX;

/// The lease is valid between two times, in milliseconds since the start.
#[derive(Debug)]
pub struct CacheLease {
    start: Instant,
    valid_from: AtomicU64,
    valid_until: AtomicU64,
}

impl CacheLease {
    /// Returns a lease that is not valid before its first renewal.
    pub fn new(now: Instant) -> Self {
        Self { start: now, valid_from: AtomicU64::new(NEVER), valid_until: AtomicU64::new(0) }
    }

    /// Revokes the lease after a gap in the change stream. It becomes valid again one [`PRODUCT_MAX_STALENESS`] after the next
    /// renewal, when no replica of the service can serve data from before the gap.
    pub fn revoke(&self) {
        self.valid_from.store(NEVER, Ordering::Release);
    }

    /// Renews the lease with a message that covers all changes up to `age` ago. After a long silence, the message may
    /// have been delayed for as long: the lease then starts anew.
    pub fn renew(&self, now: Instant, age: Duration) {
        let now = now - self.start;
        let lapsed_at =
            self.valid_until.load(Ordering::Acquire).saturating_add(millis(PRODUCT_MAX_STALENESS));
        if self.valid_from.load(Ordering::Acquire) == NEVER || millis(now) >= lapsed_at {
            self.valid_from.store(millis(now + PRODUCT_MAX_STALENESS), Ordering::Release);
        }
        self.valid_until.store(millis((now + LEASE_TTL).saturating_sub(age)), Ordering::Release);
    }

    pub fn is_valid(&self, now: Instant) -> bool {
        let now = millis(now - self.start);
        self.valid_from.load(Ordering::Acquire) <= now && now < self.valid_until.load(Ordering::Acquire)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const NO_AGE: Duration = Duration::ZERO;

    /// Returns a lease that messages of this age renewed at its start and one `PRODUCT_MAX_STALENESS` later, and the latter time.
    fn renewed_lease(age: Duration) -> (CacheLease, Instant) {
        let start = Instant::now();
        let (lease, now) = (CacheLease::new(start), start + PRODUCT_MAX_STALENESS);
        assert!(!lease.is_valid(start));
        lease.renew(start, age);
        assert!(!lease.is_valid(now - MOMENT));
        lease.renew(now, age);
        (lease, now)
    }

    #[test]
    fn a_new_lease_is_valid_once_no_replica_can_be_behind_its_first_message() {
        let (lease, now) = renewed_lease(NO_AGE);
        assert!(lease.is_valid(now));
    }

    #[test]
    fn a_lease_expires_without_a_message() {
        let (lease, now) = renewed_lease(NO_AGE);
        assert!(lease.is_valid(now + LEASE_TTL - MOMENT));
        assert!(!lease.is_valid(now + LEASE_TTL));
    }

    #[test]
    fn a_lease_expires_earlier_if_its_messages_are_old() {
        for (age, valid) in
            [(LEASE_TTL.saturating_sub(MOMENT), true), (LEASE_TTL, false), (10 * LEASE_TTL, false)]
        {
            let (lease, now) = renewed_lease(age);
            assert_eq!(lease.is_valid(now), valid, "{age:?}");
        }
    }

    #[test]
    fn a_revoked_lease_is_valid_again_one_product_lag_after_the_next_message() {
        let (lease, now) = renewed_lease(NO_AGE);
        lease.revoke();
        assert!(!lease.is_valid(now));
        lease.renew(now, NO_AGE);
        assert!(!lease.is_valid(now));
        lease.renew(now + PRODUCT_MAX_STALENESS, NO_AGE);
        assert!(lease.is_valid(now + PRODUCT_MAX_STALENESS));
    }

    #[test]
    fn a_lease_starts_anew_after_a_long_silence() {
        let (lease, now) = renewed_lease(NO_AGE);
        let soon = now + LEASE_TTL + PRODUCT_MAX_STALENESS - MOMENT;
        lease.renew(soon, NO_AGE);
        assert!(lease.is_valid(soon));
        // A process that was paused reads a message that may be as old as the pause.
        let late = soon + LEASE_TTL + PRODUCT_MAX_STALENESS;
        lease.renew(late, NO_AGE);
        assert!(!lease.is_valid(late));
    }
}
