//! Detection of stale pooled connections: after the loss of one connection, every idle connection is tested before its
//! next use. A server that restarts, fails over or terminates its sessions ends all connections of a pool at once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use sqlx::{Connection as _, PgConnection, pool::PoolConnectionMetadata};

use super::health::millis_since_start;

/// The time of the last loss, in milliseconds since the start; 0 if there was none.
static LAST_LOSS: AtomicU64 = AtomicU64::new(0);

/// Records that a connection was lost.
pub(super) fn record() {
    // One more, so that a connection that became idle in this millisecond is tested.
    LAST_LOSS.fetch_max(millis_since_start(Instant::now()) + 1, Ordering::Relaxed);
}

/// Returns whether an idle connection is usable; pings the server only if a connection was lost since it became idle.
pub(super) async fn is_usable(connection: &mut PgConnection, metadata: PoolConnectionMetadata) -> bool {
    let last_loss = LAST_LOSS.load(Ordering::Relaxed);
    let idle_since = Instant::now().checked_sub(metadata.idle_for).map_or(0, millis_since_start);
    idle_since > last_loss || last_loss == 0 || connection.ping().await.is_ok()
}
