//! The check of positions: finds connections that lack an event which Redis did not deliver, while Redis is away or at the
//! end of a stream. It compares the position of each connection with the latest event of its user, which the order service
//! returns for many users at once.

use std::{sync::Arc, time::Duration};

use shoppee_kit::tasks::Tasks;
use shoppee_proto::order::v1::GetEventPositionsRequest;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    hub::{self, Hub},
    stream_reader::DeliveryState,
};
use crate::{auth::Anonymous, upstream::Upstream};

/// The interval of checks of users whose stream Redis does not deliver.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The number of checks in which all other users are checked once.
const CHECKS_PER_CYCLE: usize = 8;
/// Bounds the users of a call; the order service allows no more.
const MAX_USERS: usize = 1_000;
/// The time in which a committed event arrives by Redis, so that the check does not ask for it as well.
const DELIVERY_GRACE: Duration = Duration::from_millis(200);

/// Spawns the task.
pub fn spawn(hub: &Arc<Hub>, delivery: &Arc<DeliveryState>, upstream: &Upstream, tasks: &Tasks) {
    let (hub, delivery, upstream) = (hub.clone(), delivery.clone(), upstream.clone());
    let stop = tasks.shutdown_token();
    tasks.spawn("positions", async move {
        let check = async {
            let mut ticks = interval(CHECK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for turn in (0..CHECKS_PER_CYCLE).cycle() {
                ticks.tick().await;
                for users in due_users(&hub, &delivery, turn).chunks(MAX_USERS) {
                    check_users(&hub, &upstream, users).await;
                }
            }
        };
        stop.run_until_cancelled(check).await;
        Ok(())
    });
}

/// Returns the users to check in this turn of the cycle.
fn due_users(hub: &Hub, delivery: &DeliveryState, turn: usize) -> Vec<i64> {
    let users = (0..hub::SHARDS).flat_map(|shard| {
        let is_due = shard % CHECKS_PER_CYCLE == turn;
        hub.users(shard).into_iter().filter(move |user_id| is_due || !delivery.is_delivered(*user_id))
    });
    users.collect()
}

/// Requests a sync of the connections that lack an event. A failed call is made up for by the next check.
async fn check_users(hub: &Hub, upstream: &Upstream, users: &[i64]) {
    let request = GetEventPositionsRequest { user_ids: users.to_vec() };
    match upstream.call(&Anonymous, request).await {
        Ok(response) => {
            sleep(DELIVERY_GRACE).await;
            for (user_id, seq) in users.iter().zip(response.last_seqs) {
                hub.request_sync_behind(*user_id, seq);
            }
        }
        Err(problem) => tracing::debug!(code = problem.code.as_str(), "positions not checked"),
    }
}
