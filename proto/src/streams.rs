//! Where events travel in Redis: the names of the streams, and the field that holds the message.

/// Holds the encoded message in every entry.
pub const FIELD: &str = "event";

/// Registrations, from auth to order; [`crate::auth::v1::UserRegistered`].
pub const USERS: &str = "users";
/// Entries that [`USERS`] keeps at least: far more than an order service that was away for a day has missed.
pub const USERS_KEPT: u64 = 100_000;

/// How many fan-out streams there are. Every gateway reads all of them; writers spread over them by user.
pub const SHARDS: i64 = 4;
/// Entries a fan-out stream keeps at least: minutes at full load, for a gateway that was away for seconds.
pub const FAN_OUT_KEPT: u64 = 100_000;

/// Entries a user's own stream keeps at least.
pub const HISTORY_KEPT: u64 = 500;
/// How long a user's own stream outlives its last event. Seconds: 7 days.
pub const HISTORY_TTL: i64 = 7 * 24 * 3600;

/// Holds a random word for as long as Redis has not lost its data.
pub const EPOCH: &str = "events:epoch";

/// The fan-out stream with the events of this user; [`crate::order::v1::OrderEvent`]. The braces make it one slot of a
/// Redis Cluster.
pub fn fan_out(user_id: i64) -> String {
    shard(user_id.rem_euclid(SHARDS))
}

/// All fan-out streams.
pub fn fan_outs() -> Vec<String> {
    (0..SHARDS).map(shard).collect()
}

fn shard(number: i64) -> String {
    format!("events:{{{number}}}")
}

/// The user's own short history, with the event's `seq` as the id `<seq>-0`.
pub fn history(user_id: i64) -> String {
    format!("events:user:{user_id}")
}
