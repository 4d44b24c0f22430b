//! Limits that a gateway keeps for itself while Redis is away: the same algorithm as `gcra.lua`, on its own
//! clock, in memory that is bounded.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{Subject, Verdict, policy::Policy};

/// How many gateways there are, as far as one knows that cannot ask: a guard against guessing must hold over
/// all.
const GATEWAYS: u32 = 3;
/// So that requests do not wait for each other.
const SHARDS: usize = 16;
/// About 100 bytes each: 13 MiB over all shards.
const MOST_ENTRIES: usize = 8 * 1024;

type Entries = HashMap<(&'static str, Subject), Duration>;

/// When all that was let in will have been worked off.
#[derive(Debug)]
pub struct Local {
    hasher: RandomState,
    shards: [Mutex<Entries>; SHARDS],
}

impl Default for Local {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl Local {
    /// `now` is on any clock that begins before the first request.
    pub fn check(&self, policies: &[Policy], subject: Subject, now: Duration) -> Vec<Verdict> {
        let shard = usize::try_from(self.hasher.hash_one(subject) % SHARDS as u64).unwrap_or_default();
        let mut entries = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let steps: Vec<(Verdict, Duration)> = policies
            .iter()
            .map(|policy| {
                let before = entries.get(&(policy.name, subject)).copied().unwrap_or_default();
                step(policy, before.max(now), now)
            })
            .collect();
        if steps.iter().all(|(verdict, _)| verdict.let_in) {
            make_room(&mut entries, now);
            for (policy, (_, due)) in policies.iter().zip(&steps) {
                entries.insert((policy.name, subject), *due);
            }
        }
        steps.into_iter().map(|(verdict, _)| verdict).collect()
    }
}

fn step(policy: &Policy, before: Duration, now: Duration) -> (Verdict, Duration) {
    let window = policy.quota.window;
    let count = if policy.guard { (policy.quota.count / GATEWAYS).max(1) } else { policy.quota.count };
    let interval = window / count;
    let after = before + interval;
    let let_in = after.saturating_sub(now) <= window;
    let due = if let_in { after } else { before };
    let whole_in = due.saturating_sub(now);
    let free = window.saturating_sub(whole_in);
    let remaining = free.as_nanos() / interval.as_nanos().max(1);
    let verdict = Verdict {
        let_in,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        // Nothing where it was let in: that is what being let in means.
        next_in: after.saturating_sub(now).saturating_sub(window),
        whole_in,
    };
    (verdict, due)
}

/// Entries whose quota is whole again say nothing. Should there still be too many, some are forgotten: a
/// flood from so many addresses is not held off by limits per address anyway.
fn make_room(entries: &mut Entries, now: Duration) {
    if entries.len() < MOST_ENTRIES {
        return;
    }
    entries.retain(|_, due| *due > now);
    let mut keep = false;
    if entries.len() >= MOST_ENTRIES {
        entries.retain(|_, _| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::policy::POLICIES;

    fn user(id: i64) -> Subject {
        Subject::User(id)
    }

    #[test]
    fn a_burst_and_then_the_steady_rate() {
        let (local, policy) = (Local::default(), &POLICIES[0]);
        let at = |now| (0..100).filter(|_| local.check(&[*policy], user(1), now)[0].let_in).count();
        let mut now = Duration::from_secs(100);
        assert_eq!(at(now), 40);
        let refused = local.check(&[*policy], user(1), now)[0];
        assert_eq!((refused.remaining, refused.next_in), (0, Duration::from_millis(50)));
        now += refused.next_in;
        assert_eq!(at(now), 1, "the time to wait was true");
        now += policy.quota.window;
        assert_eq!(at(now), 40);
        assert!(local.check(&[*policy], user(2), now)[0].let_in, "another user is not concerned");
    }

    #[test]
    fn what_one_policy_refuses_no_other_counts() {
        let (local, anonymous, login) = (Local::default(), &POLICIES[1], &POLICIES[2]);
        let let_in = |_: &u32| {
            local.check(&[*anonymous, *login], user(1), Duration::ZERO).iter().all(|verdict| verdict.let_in)
        };
        assert_eq!((0..100).filter(let_in).count(), 10, "a guard's quota is shared by three gateways");
        assert_eq!(local.check(&[*anonymous], user(1), Duration::ZERO)[0].remaining, 60 - 10 - 1);
    }

    #[test]
    fn memory_is_bounded() {
        let local = Local::default();
        for id in 0..400_000 {
            local.check(&[POLICIES[0]], user(id), Duration::ZERO);
        }
        let held: usize = local.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= SHARDS * MOST_ENTRIES, "{held}");
    }
}
