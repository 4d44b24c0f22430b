//! Calls to a service that runs in several replicas: one connection to each address its names have, taken in turn. An
//! address that fails its health check, or loses a call, is left out until it is well again; where none is well, all are
//! tried.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{client, process::Process, readiness::Need};

/// A service that does not answer its health check within this is not well.
const PATIENCE: Duration = Duration::from_secs(1);
/// More addresses than a service has replicas.
const MOST_MEMBERS: usize = 64;
/// Before the second try: long enough for a restarted peer's socket to be there more often than not.
const BACKOFF: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Pool {
    urls: Vec<Uri>,
    /// Used until the names were looked up for the first time.
    by_name: Arc<Member>,
    members: ArcSwap<Vec<Arc<Member>>>,
    turn: AtomicUsize,
    budget: Budget,
}

/// One connection.
#[derive(Debug)]
pub struct Member {
    /// Absent for wherever the name leads.
    at: Option<(SocketAddr, Uri)>,
    channel: Channel,
    well: AtomicBool,
    /// It was asked how it is, and said nothing at all; one that is about to stop still says that.
    silent: watch::Sender<bool>,
}

impl Member {
    fn new(at: Option<(SocketAddr, Uri)>, channel: Channel) -> Arc<Self> {
        Arc::new(Self { at, channel, well: AtomicBool::new(true), silent: watch::Sender::new(false) })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Ends when it is silent.
    pub async fn falls_silent(&self) {
        // It cannot fail: the sender lives in here.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.at.as_ref().map(|(addr, _)| *addr)
    }

    /// Asks it how it is; whether it is well.
    async fn ask(&self) -> bool {
        let mut health = HealthClient::new(self.channel.clone());
        let asked = client::within(PATIENCE, health.check(HealthCheckRequest::default())).await;
        let silent = asked.as_ref().is_err_and(|error| error.code() == Code::DeadlineExceeded);
        let well = asked.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving);
        self.silent.send_if_modified(|before| std::mem::replace(before, silent) != silent);
        self.well.store(well, Ordering::Relaxed);
        well
    }
}

impl Pool {
    /// Connections to the service at `urls`, a list with commas. They are made when first used, and asked every second
    /// how they are; `/readyz` tells by the service's `name`.
    pub fn start(name: &'static str, urls: &str, process: &Process) -> anyhow::Result<Arc<Self>> {
        let pool = Arc::new(Self::new(urls)?);
        let asked = pool.clone();
        process.readiness.watch(&process.tasks, name, Need::Useful, move || asked.clone().refresh());
        Ok(pool)
    }

    fn new(urls: &str) -> anyhow::Result<Self> {
        let parse = |url: &str| url.trim().parse::<Uri>().with_context(|| format!("not a URL: {url}"));
        let urls = urls.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
        let first = client::channel(&urls[0].to_string())?;
        Ok(Self {
            urls,
            by_name: Member::new(None, first),
            members: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            budget: Budget::default(),
        })
    }

    /// Makes a call, on the connection whose turn it is. One that never reached the service is tried a second time; one
    /// that may have, only where `again` says so: doing it twice must be the same as once.
    pub async fn call<R, F>(
        &self,
        again: impl FnOnce() -> bool,
        mut attempt: impl FnMut(Arc<Member>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        self.budget.earn();
        let member = self.member();
        let outcome = attempt(member.clone()).await;
        let Err(status) = outcome else { return outcome };
        if client::got_lost(&status) {
            member.well.store(false, Ordering::Relaxed);
        }
        if client::never_sent(&status) || (client::is_away(&status) && again() && self.budget.spend()) {
            tokio::time::sleep(BACKOFF).await;
            // Rare, and as large as the first: not a part of every call.
            return Box::pin(attempt(self.member())).await;
        }
        Err(status)
    }

    /// The connection whose turn it is.
    pub fn member(&self) -> Arc<Member> {
        self.in_turn().unwrap_or_else(|| self.by_name.clone())
    }

    /// The next that is well; where none is, the next.
    fn in_turn(&self) -> Option<Arc<Member>> {
        let members = self.members.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..members.len()).map(|offset| &members[turn.wrapping_add(offset) % members.len()]);
        let mut well = in_turn.clone().filter(|member| member.well.load(Ordering::Relaxed));
        well.next().or_else(|| in_turn.clone().next()).cloned()
    }

    /// Looks the names up, and asks every address how it is; whether any is well.
    async fn refresh(self: Arc<Self>) -> bool {
        let mut found = BTreeMap::new();
        for url in &self.urls {
            match look_up(url).await {
                Ok(addrs) => found.extend(addrs.into_iter().map(|addr| (addr, url.clone()))),
                Err(error) => {
                    tracing::debug!(%url, %error, "name not found");
                    // Those that are known may still be well.
                    let known = self.members.load_full();
                    let its = known.iter().filter_map(|member| member.at.clone());
                    found.extend(its.filter(|(_, of)| of == url));
                }
            }
        }
        self.keep(found);
        self.ask().await
    }

    /// Asks every address how it is; whether any is well.
    async fn ask(&self) -> bool {
        let members = self.members.load_full();
        join_all(members.iter().map(|member| member.ask())).await.contains(&true)
    }

    /// Connections to addresses that are still there stay.
    fn keep(&self, found: BTreeMap<SocketAddr, Uri>) {
        let before = self.members.load();
        if found.is_empty() || before.iter().map(|member| member.addr()).eq(found.keys().copied().map(Some)) {
            return;
        }
        let members = found.into_iter().filter_map(|(addr, url)| {
            before
                .iter()
                .find(|member| member.addr() == Some(addr))
                .cloned()
                .or_else(|| connect(addr, url).ok())
        });
        self.members.store(Arc::new(members.collect()));
    }
}

async fn look_up(url: &Uri) -> std::io::Result<Vec<SocketAddr>> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((host, url.port_u16().unwrap_or(80))).await?;
    Ok(found.take(MOST_MEMBERS).collect())
}

fn connect(addr: SocketAddr, url: Uri) -> anyhow::Result<Arc<Member>> {
    let channel = client::endpoint(&format!("http://{addr}"))?.origin(url.clone()).connect_lazy();
    Ok(Member::new(Some((addr, url)), channel))
}

/// How many calls that may have reached the service are repeated: a fifth of all, so that retries cannot bury a service
/// that is short of breath.
#[derive(Debug)]
struct Budget(AtomicI64);

impl Budget {
    /// What a call earns, in thousandths of a retry.
    const EARNED: i64 = 200;
    const PRICE: i64 = 1000;
    /// Ten retries saved up, for a process that has just begun, or is idle.
    const MOST: i64 = 10 * Self::PRICE;

    fn earn(&self) {
        self.change(|saved| Some((saved + Self::EARNED).min(Self::MOST)));
    }

    fn spend(&self) -> bool {
        self.change(|saved| (saved >= Self::PRICE).then(|| saved - Self::PRICE))
    }

    fn change(&self, change: impl Fn(i64) -> Option<i64>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MOST))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tonic::transport::server::{Server, TcpIncoming};

    use super::*;

    /// A service that says of itself that it is well, or not.
    async fn service(status: tonic_health::ServingStatus) -> SocketAddr {
        let (health, server) = tonic_health::server::health_reporter();
        health.set_service_status("", status).await;
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = incoming.local_addr().unwrap();
        tokio::spawn(Server::builder().add_service(server).serve_with_incoming(incoming));
        addr
    }

    /// Nobody listens there.
    fn gone() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    fn pool(members: &[SocketAddr]) -> Pool {
        let pool = Pool::new("http://service.example:1").unwrap();
        pool.keep(found(members));
        pool
    }

    fn found(members: &[SocketAddr]) -> BTreeMap<SocketAddr, Uri> {
        members.iter().map(|addr| (*addr, Uri::from_static("http://service.example:1"))).collect()
    }

    async fn ask_health(member: Arc<Member>) -> Result<(), Status> {
        HealthClient::new(member.channel()).check(HealthCheckRequest::default()).await.map(|_| ())
    }

    #[tokio::test]
    async fn calls_go_in_turn_to_those_that_are_well() {
        let first = service(tonic_health::ServingStatus::Serving).await;
        let second = service(tonic_health::ServingStatus::Serving).await;
        let unwell = service(tonic_health::ServingStatus::NotServing).await;
        let pool = pool(&[first, second, unwell, gone()]);
        assert!(pool.ask().await);
        let turns = (0..20).map(|_| pool.member().addr().unwrap());
        assert_eq!(turns.collect::<BTreeSet<_>>(), BTreeSet::from([first, second]));

        pool.keep(found(&[gone()]));
        assert!(!pool.ask().await);
        assert_eq!(pool.member().addr().unwrap(), gone(), "where none is well, all are tried");
        pool.keep(BTreeMap::new());
        assert_eq!(pool.members.load().len(), 1, "a name that is not found forgets nobody");
    }

    #[tokio::test]
    async fn what_reached_nobody_is_tried_elsewhere_whatever_it_is() {
        let there = service(tonic_health::ServingStatus::Serving).await;
        let pool = pool(&[gone(), there]);
        for _ in 0..100 {
            pool.call(|| false, ask_health).await.unwrap();
        }
        assert_eq!(pool.member().addr().unwrap(), there, "and who is not there is left out");
    }

    #[tokio::test]
    async fn several_urls_are_one_service() {
        let first = service(tonic_health::ServingStatus::Serving).await;
        let second = service(tonic_health::ServingStatus::Serving).await;
        let pool = Arc::new(Pool::new(&format!("http://{first}, http://{second}")).unwrap());
        assert!(pool.clone().refresh().await);
        let turns = (0..4).map(|_| pool.member().addr().unwrap());
        assert_eq!(turns.collect::<BTreeSet<_>>(), BTreeSet::from([first, second]));
    }

    #[test]
    fn at_most_every_fifth_call_is_repeated() {
        let budget = Budget::default();
        while budget.spend() {}
        let repeated = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(repeated.count(), 200);
    }
}
