//! The registry of open connections. It closes idle ones where new ones wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    activity::{Activity, Timeouts},
    unsent::Accounts,
};

/// Idle connections that one eviction closes: finding them costs more than closing them.
const EVICTION_BATCH_SIZE: usize = 32;

/// The open connections.
#[derive(Debug)]
pub struct Connections {
    accounts: Arc<Accounts>,
    activities: Mutex<BTreeMap<u64, Arc<Activity>>>,
}

impl Connections {
    /// Creates the registry of connections with at most `max_unsent_bytes` in total.
    pub fn new(max_unsent_bytes: usize) -> Arc<Self> {
        Arc::new(Self { accounts: Accounts::new(max_unsent_bytes), activities: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Activity>>> {
        self.activities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection until the guard is dropped.
    pub fn open(self: &Arc<Self>, timeouts: Timeouts) -> ConnectionGuard {
        let (id, account) = self.accounts.open();
        let activity = Arc::new(Activity::new(timeouts, account));
        self.lock().insert(id, activity.clone());
        ConnectionGuard { connections: self.clone(), id, activity }
    }

    /// Closes the connections that have been idle longest, for new ones.
    pub fn evict_idle(&self) {
        let activities = self.lock();
        let live = activities.values().filter(|activity| !activity.account.is_evicted());
        let mut idle: Vec<_> = live.filter_map(|activity| Some((activity.idle_since()?, activity))).collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, activity) in idle.into_iter().take(EVICTION_BATCH_SIZE) {
            activity.account.evict("full");
        }
    }
}

/// A guard for the registration of an open connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    connections: Arc<Connections>,
    id: u64,
    pub activity: Arc<Activity>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.accounts.close(self.id);
        self.connections.lock().remove(&self.id);
    }
}
