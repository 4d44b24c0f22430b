//! The connections to one service: one to each address its name has, in turn. An address that fails its
//! health check is left out until it is well again; where none is well, all are tried.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use shoppee_kit::client;
use tokio::sync::watch;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// A service that does not answer its health check within this is not well.
const PATIENCE: Duration = Duration::from_secs(1);
/// More addresses than a service has replicas.
const MOST_MEMBERS: usize = 64;

#[derive(Debug)]
pub struct Pool {
    url: Uri,
    /// Used until the name was looked up for the first time.
    by_name: Arc<Member>,
    members: ArcSwap<Vec<Arc<Member>>>,
    turn: AtomicUsize,
}

/// One connection.
#[derive(Debug)]
pub struct Member {
    /// Absent for wherever the name leads.
    addr: Option<SocketAddr>,
    channel: Channel,
    well: AtomicBool,
    /// It was asked how it is, and said nothing at all; one that is about to stop still says that.
    silent: watch::Sender<bool>,
}

impl Member {
    fn new(addr: Option<SocketAddr>, channel: Channel) -> Arc<Self> {
        Arc::new(Self { addr, channel, well: AtomicBool::new(true), silent: watch::Sender::new(false) })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Ends when it is silent.
    pub async fn falls_silent(&self) {
        // It cannot fail: the sender lives in here.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
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
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            url: url.parse().with_context(|| format!("not a URL: {url}"))?,
            by_name: Member::new(None, client::channel(url)?),
            members: ArcSwap::default(),
            turn: AtomicUsize::new(0),
        })
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

    /// Looks the name up, and asks every address how it is; whether any is well.
    pub async fn refresh(self: Arc<Self>) -> bool {
        match self.look_up().await {
            Ok(found) => self.keep(&found),
            // Those that are known may still be well.
            Err(error) => tracing::debug!(url = %self.url, %error, "name not found"),
        }
        self.ask().await
    }

    /// Asks every address how it is; whether any is well.
    async fn ask(&self) -> bool {
        let members = self.members.load_full();
        join_all(members.iter().map(|member| member.ask())).await.contains(&true)
    }

    async fn look_up(&self) -> std::io::Result<BTreeSet<SocketAddr>> {
        let host = self.url.host().unwrap_or_default().trim_matches(['[', ']']);
        let found = tokio::net::lookup_host((host, self.url.port_u16().unwrap_or(80))).await?;
        Ok(found.take(MOST_MEMBERS).collect())
    }

    /// Connections to addresses that are still there stay.
    fn keep(&self, found: &BTreeSet<SocketAddr>) {
        let before = self.members.load();
        if found.is_empty() || before.iter().map(|member| member.addr).eq(found.iter().copied().map(Some)) {
            return;
        }
        let members = found.iter().filter_map(|addr| {
            before
                .iter()
                .find(|member| member.addr == Some(*addr))
                .cloned()
                .or_else(|| self.connect(*addr).ok())
        });
        self.members.store(Arc::new(members.collect()));
    }

    fn connect(&self, addr: SocketAddr) -> anyhow::Result<Arc<Member>> {
        let endpoint = client::endpoint(&format!("http://{addr}"))?.origin(self.url.clone());
        Ok(Member::new(Some(addr), endpoint.connect_lazy()))
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn calls_go_in_turn_to_those_that_are_well() {
        let first = service(tonic_health::ServingStatus::Serving).await;
        let second = service(tonic_health::ServingStatus::Serving).await;
        let unwell = service(tonic_health::ServingStatus::NotServing).await;
        let gone = SocketAddr::from(([127, 0, 0, 1], 1));
        let pool = Pool::new("http://service.example:1").unwrap();
        pool.keep(&BTreeSet::from([first, second, unwell, gone]));
        assert!(pool.ask().await);
        for _ in 0..20 {
            assert!(pool.member().ask().await, "a call went to one that is not well");
        }
        let turns = (0..4).map(|_| pool.member().addr.unwrap());
        assert_eq!(turns.collect::<BTreeSet<_>>(), BTreeSet::from([first, second]));

        pool.keep(&BTreeSet::from([gone]));
        assert!(!pool.ask().await);
        assert_eq!(pool.member().addr, Some(gone), "where none is well, all are tried");
        pool.keep(&BTreeSet::new());
        assert_eq!(pool.members.load().len(), 1, "a name that is not found forgets nobody");
    }
}
