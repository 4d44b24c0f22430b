//! Gives each newly registered user a cart, from the stream of registrations that the auth service writes. The position
//! in the stream is kept beside the carts, in the same transaction. A registration that is lost costs nothing, as a
//! cart is made at its first use too. So an entry that cannot be taken in is skipped, and never stops those behind it.

use std::time::Duration;

use anyhow::Context as _;
use fred::{clients::Client, interfaces::StreamsInterface as _, types::streams::XReadValue};
use prost::Message as _;
use shoppee_kit::{
    log_throttle::LogThrottle,
    pg,
    process::Process,
    worker::{self, Round},
};
use shoppee_proto::{auth::v1::UserRegistered, streams};
use tokio::sync::watch;

use crate::{
    Orders,
    store::{cart, stream},
};

/// Entries that are read at a time.
const BATCH: u64 = 200;
/// The time until a registration that no other process has read is seen.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// Before the first entry.
const BEGINNING: &str = "0-0";

/// An entry of the stream; its fields may be anything.
type Entry = XReadValue<String, Vec<u8>, Vec<u8>>;

/// Starts the worker that reads the stream.
pub fn start(orders: &Orders, redis: &Client, process: &Process, ready: &watch::Receiver<bool>) {
    metrics::counter!("registrations_skipped_total").absolute(0);
    let (orders, redis) = (orders.clone(), redis.clone());
    let skipped = std::sync::Arc::new(LogThrottle::default());
    worker::spawn(process, "registrations", READ_INTERVAL, ready.clone(), move || {
        let (orders, redis, skipped) = (orders.clone(), redis.clone(), skipped.clone());
        async move { read(&orders, &redis, &skipped).await }
    });
}

/// Reads what is new.
async fn read(orders: &Orders, redis: &Client, skipped: &LogThrottle) -> anyhow::Result<Round> {
    let mut conn = orders.pool.acquire().await?;
    let position = stream::position(&mut conn, streams::USERS).await?;
    drop(conn);
    let position = position.unwrap_or_else(|| BEGINNING.to_owned());
    let entries: Vec<Entry> = redis
        .xrange_values(streams::USERS, format!("({position}"), "+", Some(BATCH))
        .await
        .with_context(|| format!("the stream {}", streams::USERS))?;
    if entries.is_empty() {
        return Ok(Round::Done);
    }
    match take_in(orders, &entries, skipped).await {
        Ok(()) => {}
        Err(error) if pg::is_unavailable(&error) => return Err(error.into()),
        // One of them is to blame, which the others need not wait for.
        Err(_) => {
            for entry in entries.chunks(1) {
                if let Err(error) = take_in(orders, entry, skipped).await {
                    if pg::is_unavailable(&error) {
                        return Err(error.into());
                    }
                    skip(skipped, &entry[0].0, &error.to_string());
                    let mut conn = orders.pool.acquire().await?;
                    stream::set_position(&mut conn, streams::USERS, &entry[0].0).await?;
                }
            }
        }
    }
    Ok(Round::more_if(u64::try_from(entries.len()).is_ok_and(|count| count == BATCH)))
}

/// Makes the carts and moves the position behind the last entry.
async fn take_in(orders: &Orders, entries: &[Entry], skipped: &LogThrottle) -> sqlx::Result<()> {
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    for (id, fields) in entries {
        let message = fields.get(streams::FIELD.as_bytes());
        match message.map(|bytes| UserRegistered::decode(bytes.as_slice())) {
            Some(Ok(registered)) => cart::create(&mut tx, registered.user_id, now).await?,
            Some(Err(error)) => skip(skipped, id, &error.to_string()),
            None => skip(skipped, id, "without the field of the message"),
        }
    }
    if let Some((last, _)) = entries.last() {
        stream::set_position(&mut tx, streams::USERS, last).await?;
    }
    tx.commit().await
}

fn skip(skipped: &LogThrottle, id: &str, reason: &str) {
    metrics::counter!("registrations_skipped_total").increment(1);
    if let Some(suppressed) = skipped.admit() {
        tracing::warn!(id, reason, suppressed, "registration skipped");
    }
}
