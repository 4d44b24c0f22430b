//! The transactional outbox of registrations: rows are inserted in the transaction that creates the account, and any
//! replica publishes them to the stream `users`.
//!
//! A row is deleted after Redis has accepted it. A killed relay may publish a row twice, and consumers are idempotent.
//! While Redis is unavailable the rows stay.

use std::{sync::Arc, time::Duration};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, StreamsInterface as _},
};
use futures_util::future::join_all;
use prost::Message as _;
use shoppee_kit::{
    pg::PgPool,
    process::Process,
    redis::fail_fast_options,
    telemetry,
    worker::{self, Round},
};
use shoppee_proto::{auth::v1::UserRegistered, streams};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tracing::Instrument as _;

/// Bounds the rows of a batch, which stay locked during the publication.
const BATCH_SIZE: i64 = 100;
/// The interval of polls for rows that another replica has left, or that failed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Inserts a registration, which is published after the commit.
pub async fn insert(conn: &mut PgConnection, user_id: i64, at: OffsetDateTime) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into auth.outbox (user_id, traceparent, created_at) values ($1, $2, $3)",
        user_id,
        telemetry::traceparent(),
        at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("database: {0}")]
    Store(#[from] sqlx::Error),
    #[error("redis: {0}")]
    Redis(#[from] fred::error::Error),
}

/// Starts the relay: a worker that polls each second, and a task that `wakeup` wakes after a commit.
pub fn spawn_relay(pool: PgPool, redis: Client, wakeup: Arc<Notify>, process: &Process) {
    let (stop, ready) = (process.tasks.shutdown_token(), crate::database_ready(process));
    let clones = (pool.clone(), redis.clone(), ready.clone());
    process.tasks.spawn("outbox-woken", async move {
        let (pool, redis, ready) = clones;
        while stop.run_until_cancelled(wakeup.notified()).await.is_some() {
            // The worker retries and reports a failure.
            if *ready.borrow()
                && let Err(error) = publish_batch(&pool, &redis).await
            {
                tracing::debug!(%error, "registration not published, retried by the worker");
            }
        }
        Ok(())
    });
    let clock = process.clock.clone();
    worker::spawn(process, "outbox", POLL_INTERVAL, ready, move || {
        let (pool, redis, clock) = (pool.clone(), redis.clone(), clock.clone());
        async move {
            let published = publish_batch(&pool, &redis).await;
            record_metrics(&pool, clock.now()).await?;
            published.map(|published| Round::more_if(published == BATCH_SIZE))
        }
    });
}

struct OutboxRow {
    id: i64,
    user_id: i64,
    traceparent: String,
    created_at: OffsetDateTime,
}

/// Publishes the oldest rows that no other relay has locked, and returns their number. Returns an error if one of them
/// was not published.
async fn publish_batch(pool: &PgPool, redis: &Client) -> Result<i64, RelayError> {
    let mut tx = pool.begin().await?;
    let rows = sqlx::query_as!(
        OutboxRow,
        "select id, user_id, traceparent, created_at from auth.outbox
         order by id limit $1 for update skip locked",
        BATCH_SIZE,
    )
    .fetch_all(&mut *tx)
    .await?;
    // The rows are published concurrently, so that the locks are held no longer than for one row.
    let published = join_all(rows.iter().map(|row| publish(redis, row))).await;
    let mut failed = None;
    let done = rows.iter().zip(published).filter_map(|(row, published)| match published {
        Ok(()) => Some(row.id),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let done: Vec<i64> = done.collect();
    sqlx::query!("delete from auth.outbox where id = any($1)", &done).execute(&mut *tx).await?;
    tx.commit().await?;
    failed.map_or(Ok(i64::try_from(done.len()).unwrap_or(BATCH_SIZE)), |error| Err(error.into()))
}

async fn publish(redis: &Client, row: &OutboxRow) -> Result<(), fred::error::Error> {
    let span = tracing::info_span!("auth.outbox.publish", otel.kind = "producer", user.id = row.user_id);
    telemetry::continue_traceparent(&span, &row.traceparent);
    let event = UserRegistered {
        user_id: row.user_id,
        at: Some(row.created_at.into()),
        traceparent: row.traceparent.clone(),
    };
    let event = event.encode_to_vec();
    let redis = redis.with_options(&fail_fast_options());
    let max_len = ("MAXLEN", "~", streams::USERS_MAXLEN.to_string(), None::<i64>);
    let publishing = async {
        redis
            .xadd::<(), _, _, _, _>(
                streams::USERS_STREAM,
                false,
                max_len,
                "*",
                vec![(streams::MESSAGE_FIELD, fred::types::Value::Bytes(event.into()))],
            )
            .await
    };
    publishing.instrument(span).await
}

/// The registrations that are not published.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub pending: i64,
    /// The age of the oldest one; zero without any.
    pub lag_seconds: f64,
}

/// Reads the backlog at the time `now`.
pub async fn read_backlog(pool: &PgPool, now: OffsetDateTime) -> Result<Backlog, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let pending = sqlx::query!(r#"select count(*) as "rows!", min(created_at) as oldest from auth.outbox"#)
        .fetch_one(&mut *connection)
        .await?;
    let lag = pending.oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64().max(0.0));
    Ok(Backlog { pending: pending.rows, lag_seconds: lag })
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
async fn record_metrics(pool: &PgPool, now: OffsetDateTime) -> Result<(), sqlx::Error> {
    let backlog = read_backlog(pool, now).await?;
    metrics::gauge!("outbox_pending").set(backlog.pending as f64);
    metrics::gauge!("outbox_lag_seconds").set(backlog.lag_seconds);
    Ok(())
}
