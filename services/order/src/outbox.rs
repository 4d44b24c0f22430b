//! The outbox and its relay: events leave PostgreSQL for Redis in order, at least once.
//!
//! A user's events are in one lane, and a lane is published by one relay at a time, under the lock of its row; the lock
//! goes with its holder, so a relay may be killed anywhere. Whoever commits an event wakes its own relay; what another
//! replica has left is found by looking a few times a second. An entry of the user's history has the event's number as
//! its id, so publishing twice changes nothing there; in the fan-out streams gateways drop the copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::{Client, Pipeline},
    interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _},
    types::{SetOptions, Value},
};
use prost::Message as _;
use shoppee_kit::{tasks::Tasks, telemetry};
use shoppee_proto::{order::v1::OrderEvent, streams};
use sqlx::PgConnection;
use tokio::sync::{Notify, watch};
use tracing::Span;
use uuid::Uuid;

use crate::{
    Orders,
    error::Error,
    store::event::{Columns, EventRow},
    view,
};

/// A lane a bit of [`Relay::dirty`]; as many rows are in orders.outbox_lane.
const LANES: i64 = 8;
/// Published in one go: one transaction, one pipeline.
const BATCH: i64 = 500;
/// How long an event may lie that no replica has been woken for.
const LOOK: Duration = Duration::from_millis(200);
/// After Redis did not take an event.
const BACK_OFF: Duration = Duration::from_millis(250);
/// How often the epoch is renewed and the outbox measured.
const CHECK: Duration = Duration::from_secs(1);

/// The lane of a user's events.
pub fn lane(user_id: i64) -> i16 {
    // Below 8.
    i16::try_from(user_id.rem_euclid(LANES)).unwrap_or_default()
}

/// Wakes this replica's relay; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    dirty: Arc<AtomicU8>,
    wake: Arc<Notify>,
}

impl Relay {
    /// An event of this user was committed.
    pub fn wake(&self, user_id: i64) {
        self.mark(lane(user_id));
        self.wake.notify_one();
    }

    fn mark(&self, lane: i16) {
        self.dirty.fetch_or(1 << lane, Ordering::AcqRel);
    }

    fn take_dirty(&self) -> Vec<i16> {
        let dirty = self.dirty.swap(0, Ordering::AcqRel);
        (0..8).filter(|lane| dirty & (1 << lane) != 0).collect()
    }
}

/// Starts the relay, and the task that keeps the epoch and measures the outbox.
pub fn start(orders: &Orders, redis: &Client, tasks: &Tasks, ready: watch::Receiver<bool>) {
    tasks.spawn("relay", relay(orders.clone(), redis.clone(), tasks.clone(), ready.clone()));
    tasks.spawn("outbox", watch_over(orders.clone(), redis.clone(), tasks.clone(), ready));
}

async fn relay(
    orders: Orders,
    redis: Client,
    tasks: Tasks,
    mut ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = tasks.stopping();
    while !stop.is_cancelled() {
        tokio::select! {
            () = orders.relay.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            // What is still here is published by another replica, or at the next start.
            () = stop.cancelled() => break,
        }
        if !*ready.borrow_and_update() {
            continue;
        }
        if let Err(error) = publish_all(&orders, &redis).await {
            tracing::debug!(%error, "not published");
            tokio::time::sleep(BACK_OFF).await;
        }
    }
    // A last look, so that a rolling restart leaves nothing to wait for.
    let _ = publish_all(&orders, &redis).await;
    Ok(())
}

async fn publish_all(orders: &Orders, redis: &Client) -> Result<(), Error> {
    // Nothing is read that cannot be told.
    if !redis.is_connected() {
        return Err(Error::Unavailable);
    }
    let mut conn = orders.pool.acquire().await?;
    let mut lanes = waiting_lanes(&mut conn).await?;
    drop(conn);
    lanes.extend(orders.relay.take_dirty());
    lanes.sort_unstable();
    lanes.dedup();
    for lane in lanes {
        while publish(orders, redis, lane).await? == Published::Full {}
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Published {
    /// There may be more.
    Full,
    All,
}

async fn publish(orders: &Orders, redis: &Client, lane: i16) -> Result<Published, Error> {
    let mut tx = orders.pool.begin().await?;
    if !lock_lane(&mut tx, lane).await? {
        // Another relay is at it, and it looks again before it rests.
        return Ok(Published::All);
    }
    let waiting = next(&mut tx, lane, BATCH).await?;
    if waiting.is_empty() {
        return Ok(Published::All);
    }
    let count = i64::try_from(waiting.len()).unwrap_or(BATCH);
    let (ids, mut events): (Vec<i64>, Vec<OrderEvent>) =
        waiting.iter().map(|(id, event)| (*id, view::event(event))).unzip();
    let spans: Vec<Span> = events.iter_mut().map(trace).collect();
    send(redis, &events).await?;
    drop(spans);
    remove(&mut tx, lane, &ids).await?;
    tx.commit().await?;
    Ok(if count == BATCH { Published::Full } else { Published::All })
}

/// The publishing as a step of the event's own trace, which goes on from there in the gateways.
fn trace(event: &mut OrderEvent) -> Span {
    let span = tracing::info_span!(
        "event.publish",
        otel.kind = "producer",
        user.id = event.user_id,
        event.seq = event.seq,
        order.id = %event.order_id,
    );
    telemetry::go_through(&span, &mut event.traceparent);
    span
}

/// Puts events into Redis, each into its user's history before the stream all gateways read.
async fn send(redis: &Client, events: &[OrderEvent]) -> Result<(), Error> {
    let pipeline = redis.pipeline();
    for event in events {
        queue(&pipeline, event).await.map_err(|_| Error::Unavailable)?;
    }
    for outcome in pipeline.try_all::<Value>().await {
        match outcome {
            Ok(_) => {}
            // XADD's refusal of an id that is not above the last one: the event is there already.
            Err(error) if error.details().contains("equal or smaller") => {}
            Err(error) => {
                tracing::debug!(%error, "Redis does not take events");
                return Err(Error::Unavailable);
            }
        }
    }
    Ok(())
}

async fn queue(pipeline: &Pipeline<Client>, event: &OrderEvent) -> Result<(), fred::error::Error> {
    let history = streams::history(event.user_id);
    let message = event.encode_to_vec();
    let fields = || (streams::FIELD, message.as_slice());
    let kept = ("MAXLEN", "~", i64::try_from(streams::HISTORY_KEPT).unwrap_or(i64::MAX));
    let () = pipeline.xadd(&history, false, kept, format!("{}-0", event.seq), fields()).await?;
    let () = pipeline.expire(&history, streams::HISTORY_TTL, None).await?;
    let kept = ("MAXLEN", "~", i64::try_from(streams::FAN_OUT_KEPT).unwrap_or(i64::MAX));
    pipeline.xadd(streams::fan_out(event.user_id), false, kept, "*", fields()).await
}

/// Keeps the word in Redis whose loss tells gateways that Redis lost its data, and measures the outbox.
async fn watch_over(
    orders: Orders,
    redis: Client,
    tasks: Tasks,
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stop = tasks.stopping();
    while !stop.is_cancelled() {
        let redis = redis.with_options(&shoppee_kit::redis::on_request_path());
        let word = Uuid::new_v4().to_string();
        let kept: Result<Value, _> = redis.set(streams::EPOCH, word, None, Some(SetOptions::NX), false).await;
        if let Err(error) = kept {
            tracing::debug!(%error, "epoch not kept");
        }
        if *ready.borrow() {
            match measure(&orders).await {
                Ok((pending, lag)) => {
                    metrics::gauge!("outbox_pending").set(pending);
                    metrics::gauge!("outbox_lag_seconds").set(lag);
                }
                Err(error) => tracing::debug!(%error, "outbox not measured"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
async fn measure(orders: &Orders) -> Result<(f64, f64), Error> {
    let mut conn = orders.pool.acquire().await?;
    let row = sqlx::query!(r#"select count(*) as "pending!", min(created_at) as oldest from orders.outbox"#)
        .fetch_one(&mut *conn)
        .await?;
    let lag = row.oldest.map_or(0.0, |oldest| (orders.clock.now() - oldest).as_seconds_f64().max(0.0));
    Ok((row.pending as f64, lag))
}

/// Lanes with events in them.
async fn waiting_lanes(conn: &mut PgConnection) -> sqlx::Result<Vec<i16>> {
    sqlx::query_scalar!(
        "select lane from orders.outbox_lane as l where exists (select from orders.outbox as o where o.lane = l.lane)"
    )
    .fetch_all(conn)
    .await
}

/// Makes this the only relay of a lane until the transaction ends; `false` where another is.
async fn lock_lane(conn: &mut PgConnection, lane: i16) -> sqlx::Result<bool> {
    let locked = sqlx::query_scalar!(
        "select lane from orders.outbox_lane where lane = $1 for update skip locked",
        lane
    )
    .fetch_optional(conn)
    .await?;
    Ok(locked.is_some())
}

/// The next events of a lane, in order.
async fn next(conn: &mut PgConnection, lane: i16, limit: i64) -> Result<Vec<(i64, EventRow)>, Error> {
    let rows = sqlx::query!(
        "select o.id, e.user_id, e.seq, e.order_id, e.status, e.previous_status, e.total, e.currency, e.version,
                e.actor, e.reason, e.at, e.traceparent
         from orders.outbox as o
         join orders.event as e on e.user_id = o.user_id and e.seq = o.seq
         where o.lane = $1 order by o.id limit $2",
        lane,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let event = Columns {
                user_id: row.user_id,
                seq: row.seq,
                order_id: row.order_id,
                status: row.status,
                previous_status: row.previous_status,
                total: row.total,
                currency: row.currency,
                version: row.version,
                actor: row.actor,
                reason: row.reason,
                at: row.at,
                traceparent: row.traceparent,
            };
            Ok((row.id, event.try_into()?))
        })
        .collect()
}

async fn remove(conn: &mut PgConnection, lane: i16, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query!("delete from orders.outbox where lane = $1 and id = any($2)", lane, ids)
        .execute(conn)
        .await?;
    Ok(())
}
