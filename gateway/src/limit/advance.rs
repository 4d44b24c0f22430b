//! Requests that were counted before they came. Somebody who may ask thousands of times in a window, and has several
//! requests waiting at once, will ask again within milliseconds: those are counted together with the ones that wait, and
//! let in when they come, without a word to Redis. Never more than the quota is let in. What has not come soon is counted
//! back; until then it is only kept from the upper half of a large quota, so that nobody is refused for it who is not at
//! its end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Set, Subject, Verdict, global::Decision};

/// A quota that is large: no person comes near it.
const LARGE: u32 = 1000;
/// Of one caller at a time, from which on more are expected.
const SEVERAL: usize = 4;
/// How many are expected for each that waits. A look at Redis takes a fraction of a millisecond, so that this is what
/// comes within a few.
const EXPECTED: usize = 8;
/// Whatever has not come by then is counted back.
pub const LIFE: Duration = Duration::from_millis(50);
/// Callers who are so busy at the same time; others are asked about one by one.
const MOST: usize = 1024;

fn is_large(set: &Set) -> bool {
    set.policies.iter().all(|policy| policy.quota.count >= LARGE)
}

/// Who is counted, and by which policies: requests are equal where both are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who(Subject, usize);

impl Who {
    pub fn of(set: &Arc<Set>, subject: Subject) -> Self {
        Self(subject, Arc::as_ptr(set).addr())
    }
}

#[derive(Debug, Default)]
pub struct Advances(Mutex<HashMap<Who, Advance>>);

#[derive(Debug)]
struct Advance {
    set: Arc<Set>,
    decision: Arc<Decision>,
    /// Those that have not come yet.
    left: i64,
    /// When the first of them were counted, and the last.
    first: Instant,
    last: Instant,
}

/// Requests that were counted and did not come.
#[derive(Debug)]
pub struct Unused {
    pub set: Arc<Set>,
    pub subject: Subject,
    pub left: i64,
    /// Since when at most.
    pub age: Duration,
}

impl Advances {
    /// How many to count in advance when so many equal requests wait.
    pub fn asked(&self, set: &Set, waiting: usize) -> usize {
        let expected = is_large(set) && waiting >= SEVERAL && self.lock().len() < MOST;
        if expected { EXPECTED * waiting } else { 0 }
    }

    /// Lets one in that was counted before; `None` where none is left.
    pub fn take(&self, set: &Arc<Set>, subject: Subject) -> Option<Vec<Verdict>> {
        if !is_large(set) {
            return None;
        }
        let mut known = self.lock();
        let advance = known.get_mut(&Who::of(set, subject)).filter(|advance| advance.left > 0)?;
        advance.left -= 1;
        Some(advance.decision.verdicts_in_advance(advance.left))
    }

    /// Remembers those that were counted before they came.
    pub fn put(&self, set: &Arc<Set>, subject: Subject, decision: &Arc<Decision>) {
        if decision.advance == 0 {
            return;
        }
        let (mut known, now, who) = (self.lock(), Instant::now(), Who::of(set, subject));
        if let Some(advance) = known.get_mut(&who) {
            if advance.left == 0 {
                advance.first = now;
            }
            advance.left += decision.advance;
            (advance.last, advance.decision) = (now, decision.clone());
        } else {
            let (set, decision, left) = (set.clone(), decision.clone(), decision.advance);
            known.insert(who, Advance { set, decision, left, first: now, last: now });
        }
    }

    /// Takes out whatever did not come in time.
    pub fn unused(&self) -> Vec<Unused> {
        let gone = |_: &Who, advance: &mut Advance| advance.last.elapsed() >= LIFE;
        let gone: Vec<_> = self.lock().extract_if(gone).collect();
        let unused = gone.into_iter().filter(|(_, advance)| advance.left > 0);
        unused
            .map(|(Who(subject, _), Advance { set, left, first, .. })| Unused {
                set,
                subject,
                left,
                age: first.elapsed(),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, Advance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::limit::{Policy, policy::POLICIES};

    fn set(count: u32) -> Arc<Set> {
        let mut policy = POLICIES[0];
        policy.quota.count = count;
        Set::of(&[policy], |_: &Policy| true).unwrap()
    }

    #[test]
    fn only_large_quotas_of_busy_callers_are_counted_in_advance() {
        let advances = Advances::default();
        let asked = |count, waiting| advances.asked(&set(count), waiting);
        assert_eq!(asked(LARGE, SEVERAL), EXPECTED * SEVERAL);
        assert_eq!(asked(LARGE, SEVERAL - 1), 0);
        assert!(POLICIES.iter().all(|policy| asked(policy.quota.count, 100) == 0), "a person's is exact");
    }

    #[test]
    fn as_many_as_were_counted_are_let_in_and_the_rest_is_told() {
        let (advances, set) = (Advances::default(), set(LARGE));
        let subject = Subject::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let counted = |advance| {
            let answer = [4, advance, 600, 0, 1];
            Arc::new(Decision::read(1, &mut answer.into_iter()).unwrap())
        };
        let take = || advances.take(&set, subject).map(|verdicts| verdicts[0].remaining);
        let taken = || std::iter::from_fn(take);
        advances.put(&set, subject, &counted(3));
        assert_eq!(taken().collect::<Vec<_>>(), [602, 601, 600]);
        advances.put(&set, subject, &counted(2));
        advances.put(&set, subject, &counted(3));
        assert_eq!(taken().take(4).count(), 4);
        assert!(advances.unused().is_empty(), "it may still come");
        std::thread::sleep(LIFE);
        let unused = advances.unused();
        assert_eq!((unused.len(), unused[0].left), (1, 1));
        assert!(unused[0].age >= LIFE);
        assert_eq!(taken().count(), 0);
    }
}
