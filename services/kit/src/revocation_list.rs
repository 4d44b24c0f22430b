//! A revocation list: the sessions or service accounts that were revoked before their tokens expire (RFC 7009).
//!
//! The list is sharded: a look-up takes the lock of one shard, and an insertion changes one entry in place. The memory is
//! bounded. A full list drops the half that expires first. From then on it rejects every token that expires no later, so
//! that no revoked token becomes valid again. The affected clients refresh.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use uuid::Uuid;

/// Bounds the list: twelve revocations a second for a day. The list then takes about 55 MiB with its spare capacity.
const MAX_SESSIONS: usize = 1_000_000;
/// The number of shards, each with a lock of its own.
const SHARDS: usize = 64;
/// The interval between two removals of entries whose tokens have all expired. Seconds.
const PRUNE_INTERVAL: i64 = 60;

type Shard = RwLock<HashMap<Uuid, i64>>;

#[derive(Debug)]
pub struct RevocationList {
    /// The sessions, each with the expiry of its last token (Unix seconds).
    shards: Box<[Shard]>,
    hasher: RandomState,
    /// The expiry up to which all tokens are rejected (Unix seconds).
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

    /// Returns whether a session is revoked.
    pub fn contains(&self, sid: &Uuid) -> bool {
        self.shard(sid).read().unwrap_or_else(PoisonError::into_inner).contains_key(sid)
    }

    /// Returns whether a token that expires at `exp` is rejected because the list has dropped entries up to this expiry.
    pub fn rejects_expiry(&self, exp: i64) -> bool {
        exp <= self.min_exp.load(Ordering::Acquire)
    }

    /// Adds sessions, each with the expiry of its last token. Returns those that were not in the list.
    pub fn extend(&self, sessions: impl IntoIterator<Item = (Uuid, i64)>, now: i64) -> Vec<Uuid> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= writer.prune_at {
            writer.prune_at = now + PRUNE_INTERVAL;
            writer.len = self.retain(|expires_at| expires_at >= now);
        }
        let mut added = Vec::new();
        for (sid, expires_at) in sessions {
            if expires_at < now || self.rejects_expiry(expires_at) {
                continue;
            }
            let previous =
                self.shard(&sid).write().unwrap_or_else(PoisonError::into_inner).insert(sid, expires_at);
            if previous.is_none() {
                added.push(sid);
                writer.len += 1;
            }
            if writer.len > self.max_sessions {
                writer.len = self.evict_half();
            }
        }
        added
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).len
    }

    /// Evicts the half that expires first, and rejects tokens that expire no later. Returns the number of entries left.
    fn evict_half(&self) -> usize {
        let mut expiries: Vec<i64> = Vec::with_capacity(self.max_sessions + 1);
        for shard in &self.shards {
            expiries.extend(shard.read().unwrap_or_else(PoisonError::into_inner).values());
        }
        let middle = expiries.len() / 2;
        let (_, &mut min_exp, _) = expiries.select_nth_unstable(middle);
        // Before the eviction, so that a revoked token is rejected at every moment.
        self.min_exp.fetch_max(min_exp, Ordering::AcqRel);
        let left = self.retain(|expires_at| expires_at > min_exp);
        metrics::counter!("revocation_list_sheds_total").increment(1);
        tracing::warn!(min_exp, left, "revocation list full: tokens that expire earlier are refused");
        left
    }

    fn retain(&self, keep: impl Fn(i64) -> bool) -> usize {
        let mut left = 0;
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, expires_at| keep(*expires_at));
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
    fn a_session_is_returned_once_and_removed_after_its_tokens_expired() {
        let list = RevocationList::default();
        let revoked = sessions(1..4);
        let first = list.extend(revoked.clone(), NOW);
        assert_eq!(first, revoked.iter().map(|(sid, _)| *sid).collect::<Vec<_>>());
        assert!(list.extend(revoked.clone(), NOW).is_empty(), "nothing is new");
        assert!(revoked.iter().all(|(sid, _)| list.contains(sid)));
        assert!(list.extend([], NOW + PRUNE_INTERVAL).is_empty());
        assert!(!revoked.iter().any(|(sid, _)| list.contains(sid)), "their tokens have expired");
        assert!(list.extend(revoked, NOW + PRUNE_INTERVAL).is_empty(), "an expired one is not added");
    }

    #[test]
    fn a_full_list_stays_within_its_bound_and_rejects_evicted_sessions() {
        let list = RevocationList::with_capacity(100);
        let revoked = sessions(1000..2000);
        list.extend(revoked.clone(), NOW);
        let len: usize = list.shards.iter().map(|shard| shard.read().unwrap().len()).sum();
        assert!((1..=100).contains(&len), "{len}");
        for (sid, expires_at) in &revoked {
            // A token expires no later than its entry.
            assert!(list.contains(sid) || list.rejects_expiry(*expires_at), "becomes valid again");
        }
        assert!(!list.rejects_expiry(NOW + 2000), "a token that expires later is accepted");
    }
}
