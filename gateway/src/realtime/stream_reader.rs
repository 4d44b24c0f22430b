//! Readers of the fan-out streams in Redis, one per stream, each on a connection of its own. Every gateway needs every
//! event, so there is no consumer group: a reader keeps its own position.
//!
//! Redis may lose entries without an error. Once a second a reader checks the epoch and the bounds of its stream. If
//! entries may have been lost, the sockets of the stream's users recover from the order service.

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fred::{
    clients::{Client, WithOptions},
    error::ErrorKind,
    interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _},
    types::{
        Value,
        config::Options,
        streams::{XReadResponse, XReadValue},
    },
};
use prost::Message as _;
use shoppee_kit::{log_throttle::LogThrottle, redis, tasks::Tasks};
use shoppee_proto::{order::v1::OrderEvent, streams};
use tokio::time::{Instant, sleep, timeout};

use super::hub::Hub;

/// Bounds the time for which a read blocks; a check is due afterwards. Milliseconds.
const BLOCK_MS: u64 = 1_000;
/// The time past [`BLOCK_MS`] after which a read counts as failed.
const READ_GRACE: Duration = Duration::from_secs(2);
/// Bounds the events of one read (`XREAD COUNT`): a small part of the capacity of a socket's queue.
const READ_COUNT: u64 = 512;
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// The delay between attempts while Redis is unavailable.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The fan-out streams whose events arrive.
#[derive(Debug)]
pub struct DeliveryState(Vec<AtomicBool>);

impl Default for DeliveryState {
    fn default() -> Self {
        Self((0..streams::SHARDS).map(|_| AtomicBool::new(false)).collect())
    }
}

impl DeliveryState {
    fn set(&self, shard: i64, is_delivered: bool) {
        if let Some(state) = usize::try_from(shard).ok().and_then(|shard| self.0.get(shard)) {
            state.store(is_delivered, Ordering::Relaxed);
        }
    }

    /// Reports whether the last read of the user's stream succeeded.
    pub fn is_delivered(&self, user_id: i64) -> bool {
        let shard = usize::try_from(user_id.rem_euclid(streams::SHARDS)).unwrap_or_default();
        self.0[shard].load(Ordering::Relaxed)
    }
}

/// Spawns the readers, which broadcast to the hub.
pub fn spawn_readers(
    clients: &redis::Clients,
    commands: &Client,
    hub: &Arc<Hub>,
    delivery: &Arc<DeliveryState>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let options = Options { timeout: Some(CHECK_TIMEOUT), ..redis::fail_fast_options() };
    for (shard, stream) in (0..).zip(streams::fan_out_streams()) {
        let reader = StreamReader {
            client: clients.blocking_client(&stream)?,
            commands: commands.with_options(&options),
            hub: hub.clone(),
            delivery: delivery.clone(),
            shard,
            stream,
            position: None,
            epoch: None,
        };
        let stop = tasks.shutdown_token();
        tasks.spawn("feed", async move {
            tokio::select! {
                () = reader.run() => Ok(()),
                () = stop.cancelled() => Ok(()),
            }
        });
    }
    Ok(())
}

/// The reader of one stream.
struct StreamReader {
    client: Client,
    commands: WithOptions<Client>,
    hub: Arc<Hub>,
    /// Records whether Redis delivers the stream.
    delivery: Arc<DeliveryState>,
    shard: i64,
    stream: String,
    /// The last entry that was read; none before the first check.
    position: Option<EntryId>,
    /// The epoch at the last check.
    epoch: Option<String>,
}

impl StreamReader {
    async fn run(mut self) {
        let failures = LogThrottle::default();
        let mut check_at = Instant::now();
        loop {
            let step = async {
                if check_at <= Instant::now() {
                    self.check_stream().await?;
                    check_at = Instant::now() + CHECK_INTERVAL;
                }
                self.read().await
            };
            let result = step.await;
            self.delivery.set(self.shard, result.is_ok());
            if let Err(error) = result {
                if let Some(suppressed) = failures.admit() {
                    tracing::warn!(%error, stream = self.stream, suppressed, "event stream read failed");
                }
                check_at = Instant::now();
                sleep(RETRY_DELAY).await;
            }
        }
    }

    /// Reads and broadcasts new events.
    async fn read(&mut self) -> Result<(), fred::error::Error> {
        let position = self.position.unwrap_or_default().to_string();
        let timeout_after = Duration::from_millis(BLOCK_MS) + READ_GRACE;
        let client =
            self.client.with_options(&Options { timeout: Some(timeout_after), ..redis::fail_fast_options() });
        let read =
            client.xread::<Value, _, _>(Some(READ_COUNT), Some(BLOCK_MS), self.stream.as_str(), position);
        let response = match read.await {
            Ok(response) if response.is_null() => return Ok(()),
            Ok(response) => response,
            Err(error) => {
                if *error.kind() == ErrorKind::Timeout {
                    // The connection may be dead, or deliver this response to the next command.
                    let _ = timeout(READ_GRACE, self.client.force_reconnection()).await;
                }
                return Err(error);
            }
        };
        let mut streams: XReadResponse<String, String, Bytes, Bytes> = response.into_xread_response()?;
        for (id, fields) in streams.remove(&self.stream).unwrap_or_default() {
            self.position = id.parse().ok().or(self.position);
            if let Some(Ok(event)) =
                fields.get(streams::MESSAGE_FIELD.as_bytes()).cloned().map(OrderEvent::decode)
            {
                self.hub.broadcast(&event);
            } else {
                tracing::warn!(stream = self.stream, id, "undecodable stream entry");
            }
        }
        Ok(())
    }

    /// Checks for lost entries. If there may be some, asks the stream's sockets to recover from the order service.
    async fn check_stream(&mut self) -> Result<(), fred::error::Error> {
        let epoch: Option<String> = self.commands.get(streams::EPOCH_KEY).await?;
        let (first, last): (Entries, Entries) = (
            self.commands.xrange_values(self.stream.as_str(), "-", "+", Some(1)).await?,
            self.commands.xrevrange_values(self.stream.as_str(), "+", "-", Some(1)).await?,
        );
        let bounds = StreamBounds { first: first_id(&first), last: first_id(&last) };
        let (position, may_have_lost) = bounds.next_position(self.position);
        let epoch_changed = self.epoch != epoch;
        self.position = Some(position);
        self.epoch = epoch;
        if may_have_lost || epoch_changed {
            tracing::info!(
                stream = self.stream,
                may_have_lost,
                epoch_changed,
                "recovering events from the order service"
            );
            let shard = self.shard;
            // After the position is set: later events are read from the stream, all earlier ones are in the database.
            self.hub.request_sync_where(|user_id| user_id.rem_euclid(streams::SHARDS) == shard);
        }
        Ok(())
    }
}

/// Entries of a stream with their ids. The fields are not decoded: an entry of another shape must not block later ones.
type Entries = Vec<XReadValue<String, Bytes, Bytes>>;

fn first_id(entries: &Entries) -> Option<EntryId> {
    entries.first()?.0.parse().ok()
}

/// The id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct EntryId {
    ms: u64,
    seq: u64,
}

impl FromStr for EntryId {
    type Err = std::num::ParseIntError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
        Ok(Self { ms: ms.parse()?, seq: seq.parse()? })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The ids of the oldest and the newest entry of a stream; none if it is empty.
#[derive(Clone, Copy, Debug)]
struct StreamBounds {
    first: Option<EntryId>,
    last: Option<EntryId>,
}

impl StreamBounds {
    /// Returns the position from which to read on, and whether entries before it may have been lost.
    fn next_position(self, position: Option<EntryId>) -> (EntryId, bool) {
        let end = self.last.unwrap_or_default();
        match position {
            // The first check: earlier events are left to recovery.
            None => (end, true),
            // Redis lost entries that were read, and may number new ones below them.
            Some(position) if end < position => (end, true),
            // Entries after the position were trimmed, or this is a new stream of the same name.
            Some(position)
                if position != EntryId::default() && self.first.is_some_and(|first| first > position) =>
            {
                (position, true)
            }
            Some(position) => (position, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(first: &str, last: &str) -> StreamBounds {
        StreamBounds { first: first.parse().ok(), last: last.parse().ok() }
    }

    fn id(id: &str) -> EntryId {
        id.parse().unwrap()
    }

    #[test]
    fn entry_ids_sort_numerically() {
        assert!(id("9-9") < id("10-0") && id("10-2") < id("10-10"));
        assert_eq!(id("1700000000000-7").to_string(), "1700000000000-7");
        assert!("x-1".parse::<EntryId>().is_err());
    }

    #[test]
    fn reading_starts_at_the_newest_entry() {
        assert_eq!(bounds("1-0", "9-0").next_position(None), (id("9-0"), true));
        assert_eq!(bounds("", "").next_position(None), (EntryId::default(), true));
    }

    #[test]
    fn reading_continues_at_its_position() {
        assert_eq!(bounds("1-0", "9-0").next_position(Some(id("5-0"))), (id("5-0"), false));
        assert_eq!(bounds("1-0", "9-0").next_position(Some(id("9-0"))), (id("9-0"), false));
        assert_eq!(bounds("", "").next_position(Some(EntryId::default())), (EntryId::default(), false));
        assert_eq!(bounds("1-0", "1-0").next_position(Some(EntryId::default())), (EntryId::default(), false));
    }

    #[test]
    fn a_stream_that_lost_entries_is_reported() {
        assert_eq!(bounds("", "").next_position(Some(id("5-0"))), (EntryId::default(), true), "empty");
        assert_eq!(bounds("1-0", "4-0").next_position(Some(id("5-0"))), (id("4-0"), true), "an older state");
        assert_eq!(
            bounds("7-0", "9-0").next_position(Some(id("5-0"))),
            (id("5-0"), true),
            "trimmed, or begun anew"
        );
    }
}
