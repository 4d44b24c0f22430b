//! A queue of users with committed events, for a task that handles the events user by user.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Bounds the users in a queue. A poll of the database finds the events of the others.
const MAX_QUEUED_USERS: usize = 10_000;

/// A set of users, with the wake-up of its task. Clones share one queue.
#[derive(Clone, Debug, Default)]
pub struct UserQueue {
    users: Arc<Mutex<HashSet<i64>>>,
    wake: Arc<Notify>,
}

impl UserQueue {
    /// Queues users, and wakes the task.
    pub fn push(&self, users: impl IntoIterator<Item = i64>) {
        let mut queue = self.lock();
        for user_id in users {
            if queue.len() < MAX_QUEUED_USERS {
                queue.insert(user_id);
            }
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Removes all users from the queue.
    pub fn take(&self) -> Vec<i64> {
        self.lock().drain().collect()
    }

    /// Waits until users were queued.
    pub async fn notified(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<i64>> {
        // A panic cannot leave the set inconsistent.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_drops_users_beyond_its_bound() {
        let queue = UserQueue::default();
        queue.push(0..20_000);
        assert_eq!(queue.take().len(), MAX_QUEUED_USERS);
        assert!(queue.take().is_empty());
    }
}
