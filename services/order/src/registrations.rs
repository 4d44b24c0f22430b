//! Gives each user who registers a cart, from the stream the auth service tells of registrations on. How far it was
//! read is kept beside the carts, in the same transaction; a registration that Redis loses costs nothing, as a cart is
//! made at its first use too.

use std::time::Duration;

use fred::{clients::Client, interfaces::StreamsInterface as _, types::streams::XReadValue};
use prost::Message as _;
use shoppee_kit::tasks::Tasks;
use shoppee_proto::{auth::v1::UserRegistered, streams};
use tokio::sync::watch;

use crate::{
    Orders,
    error::Error,
    store::{cart, stream},
};

const BATCH: u64 = 200;
const LOOK: Duration = Duration::from_millis(500);
/// Before the first entry.
const BEGINNING: &str = "0-0";

pub fn start(orders: &Orders, redis: &Client, tasks: &Tasks, ready: watch::Receiver<bool>) {
    let (orders, redis, stop) = (orders.clone(), redis.clone(), tasks.stopping());
    tasks.spawn("registrations", async move {
        while !stop.is_cancelled() {
            let read = if *ready.borrow() { read(&orders, &redis).await } else { Ok(0) };
            match read {
                Ok(count) if count == BATCH => continue,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "registrations not read"),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    });
}

/// Reads what is new; how many.
async fn read(orders: &Orders, redis: &Client) -> Result<u64, Error> {
    let mut conn = orders.pool.acquire().await?;
    let position = stream::position(&mut conn, streams::USERS).await?;
    drop(conn);
    let position = position.unwrap_or_else(|| BEGINNING.to_owned());
    let entries: Vec<XReadValue<String, String, Vec<u8>>> = redis
        .xrange_values(streams::USERS, format!("({position}"), "+", Some(BATCH))
        .await
        .map_err(|_| Error::Unavailable)?;
    let Some((last, _)) = entries.last() else {
        return Ok(0);
    };

    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    for (id, fields) in &entries {
        let message = fields.get(streams::FIELD).map(|bytes| UserRegistered::decode(bytes.as_slice()));
        if let Some(Ok(registered)) = message {
            cart::create(&mut tx, registered.user_id, now).await?;
        } else {
            tracing::warn!(id, "an entry of another shape on the stream of users");
        }
    }
    stream::set_position(&mut tx, streams::USERS, last).await?;
    tx.commit().await?;
    Ok(u64::try_from(entries.len()).unwrap_or(BATCH))
}
