//! The consumer of the auth service's registration stream: creates a cart for each new user. The position in the stream
//! is stored in the same transaction as the carts. A lost registration has no effect, as a cart is also created at its
//! first use. So an entry that cannot be applied is skipped, and does not block later entries.

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
    OrderContext,
    store::{cart, stream},
};

/// Bounds the entries of a read.
const BATCH_SIZE: u64 = 200;
/// The interval of reads.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The position before the first entry.
const STREAM_START: &str = "0-0";

/// An entry of the stream. Its fields are untrusted bytes.
type Entry = XReadValue<String, Vec<u8>, Vec<u8>>;

/// Starts the worker that reads the stream.
pub fn start(context: &OrderContext, redis: &Client, process: &Process, ready: &watch::Receiver<bool>) {
    metrics::counter!("registrations_skipped_total").absolute(0);
    let (context, redis) = (context.clone(), redis.clone());
    let throttle = std::sync::Arc::new(LogThrottle::default());
    worker::spawn(process, "registrations", POLL_INTERVAL, ready.clone(), move || {
        let (context, redis, throttle) = (context.clone(), redis.clone(), throttle.clone());
        async move { poll(&context, &redis, &throttle).await }
    });
}

/// Reads and applies new entries.
async fn poll(context: &OrderContext, redis: &Client, throttle: &LogThrottle) -> anyhow::Result<Round> {
    let mut conn = context.pool.acquire().await?;
    let position = stream::position(&mut conn, streams::USERS_STREAM).await?;
    drop(conn);
    let position = position.unwrap_or_else(|| STREAM_START.to_owned());
    let entries: Vec<Entry> = redis
        .xrange_values(streams::USERS_STREAM, format!("({position}"), "+", Some(BATCH_SIZE))
        .await
        .with_context(|| format!("the stream {}", streams::USERS_STREAM))?;
    if entries.is_empty() {
        return Ok(Round::Done);
    }
    match apply(context, &entries, throttle).await {
        Ok(()) => {}
        Err(error) if pg::is_unavailable(&error) => return Err(error.into()),
        // One entry is faulty: the entries are applied one by one, and that entry is skipped.
        Err(_) => {
            for entry in entries.chunks(1) {
                if let Err(error) = apply(context, entry, throttle).await {
                    if pg::is_unavailable(&error) {
                        return Err(error.into());
                    }
                    skip(throttle, &entry[0].0, &error.to_string());
                    let mut conn = context.pool.acquire().await?;
                    stream::set_position(&mut conn, streams::USERS_STREAM, &entry[0].0).await?;
                }
            }
        }
    }
    Ok(Round::more_if(u64::try_from(entries.len()).is_ok_and(|count| count == BATCH_SIZE)))
}

/// Creates the carts and moves the position after the last entry.
async fn apply(context: &OrderContext, entries: &[Entry], throttle: &LogThrottle) -> sqlx::Result<()> {
    let now = context.clock.now();
    let mut tx = context.pool.begin().await?;
    for (id, fields) in entries {
        let message = fields.get(streams::MESSAGE_FIELD.as_bytes());
        match message.map(|bytes| UserRegistered::decode(bytes.as_slice())) {
            Some(Ok(registered)) => cart::create(&mut tx, registered.user_id, now).await?,
            Some(Err(error)) => skip(throttle, id, &error.to_string()),
            None => skip(throttle, id, "an entry without a message"),
        }
    }
    if let Some((last, _)) = entries.last() {
        stream::set_position(&mut tx, streams::USERS_STREAM, last).await?;
    }
    tx.commit().await
}

fn skip(throttle: &LogThrottle, id: &str, reason: &str) {
    metrics::counter!("registrations_skipped_total").increment(1);
    if let Some(suppressed) = throttle.admit() {
        tracing::warn!(id, reason, suppressed, "registration skipped");
    }
}
