//! Revocation list: the sessions that ended before their tokens expire.
//!
//! A look-up takes one lock of many, and an insertion changes one entry in place: nothing is copied. The memory is
//! bounded. A full list forgets the half that expires first. From then on it refuses every token that expires no later,
//! so that no revoked token comes back to life: those clients refresh.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use uuid::Uuid;

/// Bounds the list: twelve ends a second, for a day. With its spare room the list then takes about 55 MiB.
const MAX_SESSIONS: usize = 1_000_000;
/// Parts of the list, each with a lock of its own.
const SHARDS: usize = 64;
/// The interval between two removals of entries that no living token needs. Seconds.
const PRUNE_INTERVAL: i64 = 60;

type Shard = RwLock<HashMap<Uuid, i64>>;

#[derive(Debug)]
pub struct RevocationList {
    /// Each session, with the time after which none of its tokens is valid (Unix seconds).
    shards: Box<[Shard]>,
    hasher: RandomState,
    /// The time of expiry up to which tokens are refused (Unix seconds).
    min_exp: AtomicI64,
    writer: Mutex<Writer>,
    max_sessions: usize,
}

#[derive(Debug, Default)]
struct Writer {
    len: usize,
    prune_at: i64,
}

impl Default for RevocationList {
    fn default() -> Self {
        Self::with_capacity(MAX_SESSIONS)
    }
}

impl RevocationList {
    fn with_capacity(max_sessions: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: RandomState::new(),
            min_exp: AtomicI64::new(i64::MIN),
            writer: Mutex::default(),
            max_sessions,
        }
    }

    /// Reports whether a session is revoked.
    pub fn contains(&self, sid: &Uuid) -> bool {
        self.shard(sid).read().unwrap_or_else(PoisonError::into_inner).contains_key(sid)
    }

    /// Reports whether a token that expires at `exp` is refused because the list had no room for such an early expiry.
    pub fn refuses_expiry(&self, exp: i64) -> bool {
        exp <= self.min_exp.load(Ordering::Acquire)
    }

    /// Adds sessions, each with the time after which it may be forgotten. Returns those that were not in the list.
    pub fn extend(&self, sessions: impl IntoIterator<Item = (Uuid, i64)>, now: i64) -> Vec<Uuid> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= writer.prune_at {
            writer.prune_at = now + PRUNE_INTERVAL;
            writer.len = self.retain(|forget_at| forget_at >= now);
        }
        let mut added = Vec::new();
        for (sid, forget_at) in sessions {
            if forget_at < now || self.refuses_expiry(forget_at) {
                continue;
            }
            let previous =
                self.shard(&sid).write().unwrap_or_else(PoisonError::into_inner).insert(sid, forget_at);
            if previous.is_none() {
                added.push(sid);
                writer.len += 1;
            }
            if writer.len > self.max_sessions {
                writer.len = self.shed();
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("revoked_sessions").set(writer.len as f64);
        added
    }

    /// Forgets the half that expires first, and refuses what expires no later. Returns the number left.
    fn shed(&self) -> usize {
        let mut expiries: Vec<i64> = Vec::with_capacity(self.max_sessions + 1);
        for shard in &self.shards {
            expiries.extend(shard.read().unwrap_or_else(PoisonError::into_inner).values());
        }
        let middle = expiries.len() / 2;
        let (_, &mut min_exp, _) = expiries.select_nth_unstable(middle);
        // Before anything is forgotten: a token is refused at every moment.
        self.min_exp.fetch_max(min_exp, Ordering::AcqRel);
        let left = self.retain(|forget_at| forget_at > min_exp);
        metrics::counter!("revocation_list_sheds_total").increment(1);
        tracing::warn!(min_exp, left, "revocation list full: tokens that expire earlier are refused");
        left
    }

    fn retain(&self, keep: impl Fn(i64) -> bool) -> usize {
        let mut left = 0;
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, forget_at| keep(*forget_at));
            if shard.capacity() > 4 * (shard.len() + SHARDS) {
                shard.shrink_to_fit();
            }
            left += shard.len();
        }
        left
    }

    fn shard(&self, sid: &Uuid) -> &Shard {
        let hash = self.hasher.hash_one(sid);
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        &self.shards[hash as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_702_886_400;

    fn sessions(expiries: std::ops::Range<i64>) -> Vec<(Uuid, i64)> {
        expiries.map(|after| (Uuid::now_v7(), NOW + after)).collect()
    }

    #[test]
    fn a_session_is_reported_once_and_forgotten_with_its_tokens() {
        let list = RevocationList::default();
        let ended = sessions(1..4);
        let first = list.extend(ended.clone(), NOW);
        assert_eq!(first, ended.iter().map(|(sid, _)| *sid).collect::<Vec<_>>());
        assert!(list.extend(ended.clone(), NOW).is_empty(), "nothing is new");
        assert!(ended.iter().all(|(sid, _)| list.contains(sid)));
        assert!(list.extend([], NOW + PRUNE_INTERVAL).is_empty());
        assert!(!ended.iter().any(|(sid, _)| list.contains(sid)), "their tokens have expired");
        assert!(list.extend(ended, NOW + PRUNE_INTERVAL).is_empty(), "an expired one is not added");
    }

    #[test]
    fn a_full_list_stays_within_its_bound_and_refuses_what_it_forgets() {
        let list = RevocationList::with_capacity(100);
        let ended = sessions(1000..2000);
        list.extend(ended.clone(), NOW);
        let held: usize = list.shards.iter().map(|shard| shard.read().unwrap().len()).sum();
        assert!((1..=100).contains(&held), "{held}");
        for (sid, forget_at) in &ended {
            // A token expires no later than its session may be forgotten.
            assert!(list.contains(sid) || list.refuses_expiry(*forget_at), "lives on");
        }
        assert!(!list.refuses_expiry(NOW + 2000), "a token that expires later is accepted");
    }
}
