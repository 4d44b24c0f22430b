//! Brings the events here: reads the fan-out streams, one reader a stream, each on a connection of its own.
//! Every gateway needs every event, so there is no consumer group; the reader itself remembers how far it is.
//!
//! Redis may lose what it has without a word. Once a second the reader looks at the epoch and at the ends of
//! its stream; where something may have been lost, the users of the stream ask the order service.

use std::{str::FromStr, sync::Arc, time::Duration};

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

/// How long a read waits for news; a look is due afterwards. Milliseconds.
const BLOCK_MS: u64 = 1_000;
/// An answer later than this after the time to wait does not come any more.
const LATE: Duration = Duration::from_secs(2);
/// Events a read brings at most: a small part of what fits into a socket's queue.
const AT_ONCE: u64 = 512;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(1);
/// Between tries while Redis is away.
const PAUSE: Duration = Duration::from_millis(200);

/// Starts to feed the hub.
pub fn follow(
    clients: &redis::Clients,
    commands: &Client,
    hub: &Arc<Hub>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let patient = Options { timeout: Some(LOOK), ..redis::fail_fast_options() };
    for (shard, stream) in (0..).zip(streams::fan_out_streams()) {
        let feed = Feed {
            reader: clients.blocking_client(&stream)?,
            commands: commands.with_options(&patient),
            hub: hub.clone(),
            shard,
            stream,
            position: None,
            epoch: None,
        };
        let stop = tasks.shutdown_token();
        tasks.spawn("feed", async move {
            tokio::select! {
                () = feed.run() => Ok(()),
                () = stop.cancelled() => Ok(()),
            }
        });
    }
    Ok(())
}

struct Feed {
    reader: Client,
    commands: WithOptions<Client>,
    hub: Arc<Hub>,
    shard: i64,
    stream: String,
    /// The last entry that was read; none before the first look.
    position: Option<Id>,
    /// As it was when last looked at.
    epoch: Option<String>,
}

impl Feed {
    async fn run(mut self) {
        let failures = LogThrottle::default();
        let mut look_at = Instant::now();
        loop {
            let step = async {
                if look_at <= Instant::now() {
                    self.look().await?;
                    look_at = Instant::now() + LOOK_EVERY;
                }
                self.read().await
            };
            if let Err(error) = step.await {
                if let Some(suppressed) = failures.admit() {
                    tracing::warn!(%error, stream = self.stream, suppressed, "events not read");
                }
                look_at = Instant::now();
                sleep(PAUSE).await;
            }
        }
    }

    /// Takes in what is new.
    async fn read(&mut self) -> Result<(), fred::error::Error> {
        let position = self.position.unwrap_or_default().to_string();
        let late = Duration::from_millis(BLOCK_MS) + LATE;
        let reader = self.reader.with_options(&Options { timeout: Some(late), ..redis::fail_fast_options() });
        let read = reader.xread::<Value, _, _>(Some(AT_ONCE), Some(BLOCK_MS), self.stream.as_str(), position);
        let news = match read.await {
            Ok(news) if news.is_null() => return Ok(()),
            Ok(news) => news,
            Err(error) => {
                if *error.kind() == ErrorKind::Timeout {
                    // The connection may be dead, or give the answer to the next question.
                    let _ = timeout(LATE, self.reader.force_reconnection()).await;
                }
                return Err(error);
            }
        };
        let mut streams: XReadResponse<String, String, Bytes, Bytes> = news.into_xread_response()?;
        for (id, fields) in streams.remove(&self.stream).unwrap_or_default() {
            self.position = id.parse().ok().or(self.position);
            if let Some(Ok(event)) =
                fields.get(streams::MESSAGE_FIELD.as_bytes()).cloned().map(OrderEvent::decode)
            {
                self.hub.deliver(&event);
            } else {
                tracing::warn!(stream = self.stream, id, "not an event");
            }
        }
        Ok(())
    }

    /// Sees whether Redis still has what it had.
    async fn look(&mut self) -> Result<(), fred::error::Error> {
        let epoch: Option<String> = self.commands.get(streams::EPOCH_KEY).await?;
        let (first, last): (Entries, Entries) = (
            self.commands.xrange_values(self.stream.as_str(), "-", "+", Some(1)).await?,
            self.commands.xrevrange_values(self.stream.as_str(), "+", "-", Some(1)).await?,
        );
        let ends = Ends { first: id_of(&first), last: id_of(&last) };
        let (position, may_have_lost) = ends.go_on(self.position);
        let epoch_changed = self.epoch != epoch;
        self.position = Some(position);
        self.epoch = epoch;
        if may_have_lost || epoch_changed {
            tracing::info!(
                stream = self.stream,
                may_have_lost,
                epoch_changed,
                "asking the order service for what was missed"
            );
            let shard = self.shard;
            // After the position is set: what is published from here on is read, all before is in the
            // database.
            self.hub.resync(|user_id| user_id.rem_euclid(streams::SHARDS) == shard);
        }
        Ok(())
    }
}

/// Entries of a stream with their ids. The fields may be anything: an entry of another shape must not stop those behind
/// it.
type Entries = Vec<XReadValue<String, Bytes, Bytes>>;

fn id_of(entries: &Entries) -> Option<Id> {
    entries.first()?.0.parse().ok()
}

/// The id of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    ms: u64,
    seq: u64,
}

impl FromStr for Id {
    type Err = std::num::ParseIntError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
        Ok(Self { ms: ms.parse()?, seq: seq.parse()? })
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The oldest and the newest entry of a stream; none in one that is empty.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Option<Id>,
    last: Option<Id>,
}

impl Ends {
    /// From where to go on reading, and whether entries may have been lost before that.
    fn go_on(self, position: Option<Id>) -> (Id, bool) {
        let end = self.last.unwrap_or_default();
        match position {
            // The beginning: what came before now was not for us.
            None => (end, true),
            // Redis forgot what we have read, and may number new entries below it.
            Some(position) if end < position => (end, true),
            // What follows our position was cut off, or this is another stream of the same name.
            Some(position)
                if position != Id::default() && self.first.is_some_and(|first| first > position) =>
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

    fn ends(first: &str, last: &str) -> Ends {
        Ends { first: first.parse().ok(), last: last.parse().ok() }
    }

    fn id(id: &str) -> Id {
        id.parse().unwrap()
    }

    #[test]
    fn ids_are_ordered_as_redis_orders_them() {
        assert!(id("9-9") < id("10-0") && id("10-2") < id("10-10"));
        assert_eq!(id("1700000000000-7").to_string(), "1700000000000-7");
        assert!("x-1".parse::<Id>().is_err());
    }

    #[test]
    fn reading_begins_at_the_end() {
        assert_eq!(ends("1-0", "9-0").go_on(None), (id("9-0"), true));
        assert_eq!(ends("", "").go_on(None), (Id::default(), true));
    }

    #[test]
    fn reading_goes_on_where_it_was() {
        assert_eq!(ends("1-0", "9-0").go_on(Some(id("5-0"))), (id("5-0"), false));
        assert_eq!(ends("1-0", "9-0").go_on(Some(id("9-0"))), (id("9-0"), false));
        assert_eq!(ends("", "").go_on(Some(Id::default())), (Id::default(), false));
        assert_eq!(ends("1-0", "1-0").go_on(Some(Id::default())), (Id::default(), false));
    }

    #[test]
    fn a_redis_that_lost_its_data_is_noticed() {
        assert_eq!(ends("", "").go_on(Some(id("5-0"))), (Id::default(), true), "empty");
        assert_eq!(ends("1-0", "4-0").go_on(Some(id("5-0"))), (id("4-0"), true), "an older state");
        assert_eq!(ends("7-0", "9-0").go_on(Some(id("5-0"))), (id("5-0"), true), "trimmed, or begun anew");
    }
}
