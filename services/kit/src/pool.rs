//! Calls to a service that runs in several replicas: one connection to each address its names have, taken in turn. An
//! address that fails its health check, or loses a call, is left out until it is well again. Where none is well, the
//! names are looked up again at once, and all are tried.

mod budget;
mod member;
mod resolver;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use tokio::{sync::Mutex, time::Instant};
use tonic::Status;

pub use self::member::Member;
use self::{budget::Budget, member::Health, resolver::Resolver};
use crate::{client, process::Process, readiness::Need, tls::GrpcTls};

/// Bounds the tries of a call that reached no service: two addresses that have gone, the look-up, and a new one.
const MAX_TRIES: usize = 4;
/// The pause before another try of the same addresses. It is long enough for a restarted peer's socket to be there more
/// often than not. Also the least time between two look-ups.
const BACKOFF: Duration = Duration::from_millis(50);
/// The time for which an address that has left is remembered: longer than name servers disagree.
const DEPARTED_TTL: Duration = Duration::from_mins(1);

const _: () = assert!(
    2 * client::CONNECT_TIMEOUT.as_millis() + resolver::LOOK_UP_TIMEOUT.as_millis() <= 1000,
    "a service whose two addresses fell silent at once is reached within a second"
);

#[derive(Debug)]
pub struct Pool {
    urls: Vec<Uri>,
    tls: GrpcTls,
    resolver: Resolver,
    /// Used until the names were looked up for the first time.
    by_name: Arc<Member>,
    members: ArcSwap<Vec<Arc<Member>>>,
    departed: std::sync::Mutex<BTreeMap<SocketAddr, Departed>>,
    /// The time of the last look-up of the names.
    resolved: Mutex<Option<Instant>>,
    turn: AtomicUsize,
    budget: Budget,
}

/// An address that the names no longer have.
#[derive(Debug)]
struct Departed {
    member: Arc<Member>,
    at: Instant,
}

impl Pool {
    /// Connections to the service at `urls`, a list with commas. They are made when first used, and asked every second
    /// how they are; `/readyz` tells by the service's `name`.
    pub fn start(name: &'static str, urls: &str, process: &Process) -> anyhow::Result<Arc<Self>> {
        let pool = Arc::new(Self::new(urls, process.tls.clone(), Resolver::default())?);
        let asked = pool.clone();
        process.readiness.watch(&process.tasks, name, Need::Useful, move || asked.clone().refresh());
        Ok(pool)
    }

    fn new(urls: &str, tls: GrpcTls, resolver: Resolver) -> anyhow::Result<Self> {
        let parse = |url: &str| url.trim().parse::<Uri>().with_context(|| format!("not a URL: {url}"));
        let urls = urls.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
        let by_name = Arc::new(Member::connect(None, &urls[0], &tls)?);
        Ok(Self {
            urls,
            tls,
            resolver,
            by_name,
            members: ArcSwap::default(),
            departed: std::sync::Mutex::default(),
            resolved: Mutex::default(),
            turn: AtomicUsize::new(0),
            budget: Budget::default(),
        })
    }

    /// Makes a call, on the connection whose turn it is. A call that never reached the service is tried elsewhere. A
    /// call that may have is made a second time only where `again` says so: doing it twice must be the same as once.
    pub async fn call<R, F>(
        &self,
        again: impl FnOnce() -> bool,
        mut attempt: impl FnMut(Arc<Member>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        self.budget.earn();
        let mut again = Some(again);
        let mut tried = 1;
        loop {
            let member = self.member();
            let status = match attempt(member.clone()).await {
                Err(status) => status,
                answer => return answer,
            };
            if client::got_lost(&status) {
                member.becomes(Health::Unwell);
            }
            if client::never_sent(&status) && tried < MAX_TRIES {
                self.look_elsewhere().await;
            } else if client::is_away(&status)
                && again.take().is_some_and(|again| again())
                && self.budget.spend()
            {
                tokio::time::sleep(BACKOFF).await;
            } else {
                return Err(status);
            }
            tried += 1;
        }
    }

    /// The connection whose turn it is.
    pub fn member(&self) -> Arc<Member> {
        self.in_turn().unwrap_or_else(|| self.by_name.clone())
    }

    /// Returns the next that is well; where none is, the next of which nothing is known, then the next.
    fn in_turn(&self) -> Option<Arc<Member>> {
        let members = self.members.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..members.len()).map(|offset| &members[turn.wrapping_add(offset) % members.len()]);
        Health::BEST_FIRST
            .into_iter()
            .find_map(|health| in_turn.clone().find(|member| member.is(health)))
            .cloned()
    }

    fn has(&self, health: Health) -> bool {
        self.members.load().iter().any(|member| member.is(health))
    }

    /// Returns when there is an address worth a try: at once where one is well, else after the names were looked up.
    async fn look_elsewhere(&self) {
        if self.has(Health::Well) {
            return;
        }
        self.resolve().await;
        if !self.has(Health::Well) && !self.has(Health::Unknown) {
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// Looks the names up, and asks every address how it is; whether any is well.
    async fn refresh(self: Arc<Self>) -> bool {
        self.resolve().await;
        self.ask().await
    }

    /// Looks the names up, once for all that want it at the same time.
    async fn resolve(&self) {
        let mut resolved = self.resolved.lock().await;
        if resolved.is_some_and(|at| at.elapsed() < BACKOFF) {
            return;
        }
        let found = join_all(self.urls.iter().map(|url| self.addresses(url))).await;
        self.keep(found.into_iter().flatten().collect());
        *resolved = Some(Instant::now());
    }

    /// The addresses of one URL; those that are known where its name is not found, as they may still be well.
    async fn addresses(&self, url: &Uri) -> Vec<(SocketAddr, Uri)> {
        match self.resolver.look_up(url).await {
            Ok(found) if !found.is_empty() => found.into_iter().map(|addr| (addr, url.clone())).collect(),
            outcome => {
                tracing::debug!(%url, ?outcome, "name not found");
                let known = self.members.load();
                known.iter().filter_map(|member| member.at.clone()).filter(|(_, of)| of == url).collect()
            }
        }
    }

    /// Asks every address how it is; whether any is well.
    async fn ask(&self) -> bool {
        let members = self.members.load_full();
        join_all(members.iter().map(|member| member.ask())).await.contains(&true)
    }

    /// Keeps connections to addresses that are still there. An address that was there within the last minute comes back
    /// with its connection, and is not well until it has said so. Name servers that disagree name the dead again and
    /// again.
    fn keep(&self, found: BTreeMap<SocketAddr, Uri>) {
        let before = self.members.load();
        if found.is_empty() || before.iter().map(|member| member.addr()).eq(found.keys().copied().map(Some)) {
            return;
        }
        let now = Instant::now();
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|_, departed| now.duration_since(departed.at) < DEPARTED_TTL);
        let gone = before.iter().filter_map(|member| Some((member.addr()?, member.clone())));
        let gone = gone.filter(|(addr, _)| !found.contains_key(addr));
        departed.extend(gone.map(|(addr, member)| (addr, Departed { member, at: now })));
        let members = found.into_iter().filter_map(|(addr, url)| {
            if let Some(there) = before.iter().find(|member| member.addr() == Some(addr)) {
                return Some(there.clone());
            }
            if let Some(returning) = departed.remove(&addr) {
                returning.member.becomes(Health::Unwell);
                return Some(returning.member);
            }
            let connected = Member::connect(Some(addr), &url, &self.tls);
            connected.inspect_err(|error| tracing::error!(%addr, %error, "no connection")).ok().map(Arc::new)
        });
        self.members.store(Arc::new(members.collect()));
    }
}

#[cfg(test)]
mod tests;
