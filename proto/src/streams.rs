//! The Redis streams of events: their names, bounds and the field that holds the message.

/// The field of every entry that holds the encoded message.
pub const MESSAGE_FIELD: &str = "event";

/// The stream of registrations, from auth to order; [`crate::auth::v1::UserRegistered`].
pub const USERS_STREAM: &str = "users";
/// The minimum number of entries that [`USERS_STREAM`] keeps (approximate MAXLEN): more than a day of registrations.
pub const USERS_MAXLEN: u64 = 100_000;

/// The number of fan-out streams. Writers shard them by user; every gateway reads all of them.
pub const SHARDS: i64 = 4;
/// The minimum number of entries that a fan-out stream keeps (approximate MAXLEN): minutes at full load, for a gateway
/// that was disconnected for seconds.
pub const FAN_OUT_MAXLEN: u64 = 100_000;

/// The minimum number of entries that a user's history stream keeps (approximate MAXLEN).
pub const HISTORY_MAXLEN: u64 = 500;
/// The TTL of a user's history stream after its last event: 7 days.
pub const HISTORY_TTL_SECONDS: i64 = 7 * 24 * 3600;

/// The key with the epoch of the streams, a random value: it changes when Redis has lost its data.
pub const EPOCH_KEY: &str = "events:epoch";

/// Returns the name of the fan-out stream with the events of a user; [`crate::order::v1::OrderEvent`]. The braces are the
/// hash tag of a Redis Cluster.
pub fn fan_out_stream(user_id: i64) -> String {
    shard_stream(user_id.rem_euclid(SHARDS))
}

/// Returns the names of all fan-out streams.
pub fn fan_out_streams() -> Vec<String> {
    (0..SHARDS).map(shard_stream).collect()
}

fn shard_stream(shard: i64) -> String {
    format!("events:{{{shard}}}")
}

/// Returns the name of a user's history stream; the id of an entry is `<seq>-0`, from the event's `seq`.
pub fn history_stream(user_id: i64) -> String {
    format!("events:user:{user_id}")
}
