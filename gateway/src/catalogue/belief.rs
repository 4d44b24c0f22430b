//! Until when what is kept may be believed, by what the product service tells.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use shoppee_proto::PRODUCT_LAG;
use tokio::time::Instant;

/// Answers are believed for so long after a look of the service at its log of changes: a change must show within a
/// second.
const TRUST: Duration = Duration::from_millis(600);
const NEVER: u64 = u64::MAX;

/// Two moments between which answers are believed. Milliseconds since the start.
#[derive(Debug)]
pub struct Belief {
    start: Instant,
    from: AtomicU64,
    until: AtomicU64,
}

impl Belief {
    pub fn none(now: Instant) -> Self {
        Self { start: now, from: AtomicU64::new(NEVER), until: AtomicU64::new(0) }
    }

    /// Some changes may have been missed. Other replicas of the service may not know of them yet, and what they tell is
    /// not to be kept: there is belief again when they have had time, after the next news.
    pub fn end(&self) {
        self.from.store(NEVER, Ordering::Release);
    }

    /// Everything that was committed until `age` ago was told, but for what was before the belief ended. After a long
    /// silence it is not known how long these news were on their way.
    pub fn renew(&self, now: Instant, age: Duration) {
        let now = now - self.start;
        let silent = millis(now) >= self.until.load(Ordering::Acquire).saturating_add(millis(PRODUCT_LAG));
        if self.from.load(Ordering::Acquire) == NEVER || silent {
            self.from.store(millis(now + PRODUCT_LAG), Ordering::Release);
        }
        self.until.store(millis((now + TRUST).saturating_sub(age)), Ordering::Release);
    }

    pub fn holds(&self, now: Instant) -> bool {
        let now = millis(now - self.start);
        self.from.load(Ordering::Acquire) <= now && now < self.until.load(Ordering::Acquire)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const FRESH: Duration = Duration::ZERO;

    /// Begun by news of that age, and renewed by others when all replicas have had their time, which is told.
    fn settled(age: Duration) -> (Belief, Instant) {
        let start = Instant::now();
        let (belief, settled) = (Belief::none(start), start + PRODUCT_LAG);
        assert!(!belief.holds(start));
        belief.renew(start, age);
        assert!(!belief.holds(settled - MOMENT));
        belief.renew(settled, age);
        (belief, settled)
    }

    #[test]
    fn it_begins_when_no_replica_can_be_behind_the_first_news() {
        let (belief, now) = settled(FRESH);
        assert!(belief.holds(now));
    }

    #[test]
    fn it_ends_when_no_news_come() {
        let (belief, now) = settled(FRESH);
        assert!(belief.holds(now + TRUST - MOMENT));
        assert!(!belief.holds(now + TRUST));
    }

    #[test]
    fn it_ends_earlier_where_news_are_old() {
        for (age, holds) in [(TRUST.saturating_sub(MOMENT), true), (TRUST, false), (10 * TRUST, false)] {
            let (belief, now) = settled(age);
            assert_eq!(belief.holds(now), holds, "{age:?}");
        }
    }

    #[test]
    fn it_begins_anew_where_changes_were_missed() {
        let (belief, now) = settled(FRESH);
        belief.end();
        assert!(!belief.holds(now));
        belief.renew(now, FRESH);
        assert!(!belief.holds(now));
        belief.renew(now + PRODUCT_LAG, FRESH);
        assert!(belief.holds(now + PRODUCT_LAG));
    }
    #[test]
    fn it_begins_anew_after_a_long_silence() {
        let (belief, now) = settled(FRESH);
        let soon = now + TRUST + PRODUCT_LAG - MOMENT;
        belief.renew(soon, FRESH);
        assert!(belief.holds(soon));
        // As of a process that stood still: the news may be as old as that.
        let late = soon + TRUST + PRODUCT_LAG;
        belief.renew(late, FRESH);
        assert!(!belief.holds(late));
    }
}
