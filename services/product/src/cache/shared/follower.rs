//! Reports to Redis what changes, over one connection after the other.

use std::sync::{Arc, Mutex};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, HashesInterface as _},
    types::scripts::Script,
};
use shoppee_kit::pg::PgPool;
use shoppee_kit::{log_throttle::LogThrottle, redis::Connector};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cache, LOG, Link, REPORT_TIMEOUT, Reported, Scripts, Shared};
use crate::{
    changes::{Changes, News},
    store::change::{self, Range},
};

/// The delay before Redis is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// Numbers of the log that are reported to a Redis that does not know of them: some seconds of work. Of more a new epoch
/// begins.
const MAX_REPLAY: i64 = 100_000;

/// Numbers of a page of such a replay. Redis knows how far it has come after each of them, so that a connection that
/// breaks loses no more than one.
const REPLAY_PAGE: usize = 1_000;

/// The sources of the reports, and their targets.
#[derive(Debug)]
pub struct Follower {
    pub connector: Connector,
    pub shared: Shared,
    pub cache: Cache,
    pub pool: PgPool,
    pub changes: Changes,
}

/// The reason why a link was left.
enum Left {
    /// The process stops.
    Stopping,
    /// The epoch is over, or not enough was reported to it: the next one is found over the same connection.
    Behind,
}

impl Follower {
    /// Runs until the process stops.
    pub async fn run(&self, stopping: &CancellationToken) {
        let failures = LogThrottle::default();
        while !stopping.is_cancelled() {
            let ended = self.serve(stopping, &failures).await;
            self.shared.0.link.store(None);
            if let Err(error) = ended
                && let Some(suppressed) = failures.admit()
            {
                tracing::warn!(
                    error = format!("{error:#}"),
                    suppressed,
                    "no shared cache: Redis is left out"
                );
            }
            stopping.run_until_cancelled(tokio::time::sleep(RECONNECT_INTERVAL)).await;
        }
    }

    /// Connects, and reports until the connection breaks or the process stops.
    async fn serve(&self, stopping: &CancellationToken, failures: &LogThrottle) -> anyhow::Result<()> {
        let (client, _ended) = self.connector.connect().await?;
        let scripts = Arc::new(Scripts {
            newer: Script::from_lua(include_str!("../newer.lua")),
            note: Script::from_lua(include_str!("../note.lua")),
            begin: Script::from_lua(include_str!("../begin.lua")),
        });
        let served = async {
            for script in [&scripts.newer, &scripts.note, &scripts.begin] {
                script.load(&client).await?;
            }
            while let Left::Behind = self.follow(&client, &scripts, stopping, failures).await? {}
            anyhow::Ok(())
        };
        let served = served.await;
        let _ = client.quit().await;
        served
    }

    /// Brings an epoch up to date, and then reports what each look at the log finds.
    async fn follow(
        &self,
        client: &Client,
        scripts: &Arc<Scripts>,
        stopping: &CancellationToken,
        failures: &LogThrottle,
    ) -> anyhow::Result<Left> {
        // Before anything is read: what is found meanwhile waits here.
        let mut news = self.changes.watch();
        let reported = Reported { at: Instant::now(), generation: self.cache.generation() };
        let Some((epoch, mut position)) = self.epoch(client, scripts, &mut news, stopping).await? else {
            return Ok(Left::Stopping);
        };
        let (client, scripts) = (client.clone(), scripts.clone());
        let link = Arc::new(Link { client, scripts, epoch, reported: Mutex::default() });
        if !self.catch_up(&link, &mut position).await? {
            return Ok(Left::Behind);
        }
        link.believe(reported);
        self.shared.0.link.store(Some(link.clone()));
        if failures.reset() {
            tracing::info!("the shared cache is used again");
        }
        loop {
            let found = match stopping.run_until_cancelled(news.recv()).await {
                Some(Ok(found)) if !found.everything => found,
                Some(Ok(_) | Err(RecvError::Lagged(_))) => return Ok(Left::Behind),
                Some(Err(RecvError::Closed)) | None => return Ok(Left::Stopping),
            };
            link.report(&found.changes).await?;
            if !link.note(position, found.settled).await? {
                return Ok(Left::Behind);
            }
            position = position.max(found.settled);
            link.believe(Reported { at: found.looked_at, ..reported });
        }
    }

    /// Finds the epoch that Redis has, and up to where the changes were reported to it; begins a new one where too many
    /// are missing. `None` where the process stops.
    async fn epoch(
        &self,
        client: &Client,
        scripts: &Scripts,
        news: &mut Receiver<Arc<News>>,
        stopping: &CancellationToken,
    ) -> anyhow::Result<Option<(String, i64)>> {
        loop {
            let held: Vec<Option<String>> = client.hmget(LOG, vec!["epoch", "position"]).await?;
            let held = match &held[..] {
                [Some(epoch), Some(position)] => Some((epoch.clone(), position.parse::<i64>()?)),
                _ => None,
            };
            let newest = change::newest(&mut *self.pool.acquire().await?).await?;
            let is_near = |position: i64| (0..=MAX_REPLAY).contains(&(newest - position));
            if let Some((epoch, position)) = &held
                && is_near(*position)
            {
                return Ok(Some((epoch.clone(), *position)));
            }
            if let Some(settled) = self.changes.settled().filter(|settled| is_near(*settled)) {
                let ended = held.map(|(epoch, _)| epoch).unwrap_or_default();
                let next = format!("{:010x}", Uuid::new_v4().as_u128() & 0xff_ffff_ffff);
                let arguments = vec![ended.clone(), next.clone(), settled.to_string()];
                let begin = scripts.begin.evalsha::<i64, _, _, _>(client, LOG, arguments);
                if tokio::time::timeout(REPORT_TIMEOUT, begin).await?? == 1 {
                    tracing::info!(ended, begun = next, position = settled, "the shared cache begins anew");
                }
                continue;
            }
            // Numbers that were just given are settled by the next looks.
            match stopping.run_until_cancelled(news.recv()).await {
                Some(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Some(Err(RecvError::Closed)) | None => return Ok(None),
            }
        }
    }

    /// Reports everything behind `position`, and saves it page by page. `false` where the epoch ended meanwhile.
    async fn catch_up(&self, link: &Link, position: &mut i64) -> anyhow::Result<bool> {
        let mut after = *position;
        loop {
            // Known before the page is read, which therefore has all up to this number.
            let settled = self.changes.settled().unwrap_or(*position);
            let rest = [Range { after, upto: i64::MAX }];
            let mut conn = self.pool.acquire().await?;
            let page = change::page(&mut conn, &rest, i64::try_from(REPLAY_PAGE).unwrap_or(i64::MAX)).await?;
            drop(conn);
            link.report(&page.changes).await?;
            let last = page.numbers.last().copied().filter(|_| page.numbers.len() >= REPLAY_PAGE);
            let upto = settled.min(last.unwrap_or(settled)).max(*position);
            if !link.note(*position, upto).await? {
                return Ok(false);
            }
            *position = upto;
            match last {
                Some(last) => after = last,
                None => return Ok(true),
            }
        }
    }
}
