//! Services on loopback addresses, and names that lead where a test says.

use std::{collections::BTreeSet, io};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};
use tonic::transport::server::{Server, TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;

const URL: &str = "http://service.example:1";

/// A service that says of itself that it is well, or not; ends when dropped.
struct Service {
    addr: SocketAddr,
    _stop: oneshot::Sender<()>,
}

async fn service(status: tonic_health::ServingStatus) -> Service {
    let (health, server) = tonic_health::server::health_reporter();
    health.set_service_status("", status).await;
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let addr = incoming.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    tokio::spawn(Server::builder().add_service(server).serve_with_incoming_shutdown(incoming, stopped));
    Service { addr, _stop: stop }
}

async fn well() -> Service {
    service(tonic_health::ServingStatus::Serving).await
}

/// Returns an address without a listener.
fn gone() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// An address that swallows what is sent there, as that of a node without power: its queue is full.
struct Swallowing {
    addr: SocketAddr,
    _queue: (TcpListener, Vec<TcpStream>),
}

async fn swallowing() -> Swallowing {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(addr)).await
    {
        queued.push(connected.unwrap());
    }
    Swallowing { addr, _queue: (listener, queued) }
}

/// The addresses of names, by URL.
#[derive(Clone, Default)]
struct Names(Arc<std::sync::Mutex<BTreeMap<String, Vec<SocketAddr>>>>);

impl Names {
    fn lead(&self, url: &str, addrs: &[SocketAddr]) {
        self.0.lock().unwrap().insert(url.parse::<Uri>().unwrap().to_string(), addrs.to_vec());
    }

    fn pool(&self, urls: &str) -> Arc<Pool> {
        let names = self.0.clone();
        let resolver = Resolver::new(move |url| {
            let found = names.lock().unwrap().get(&url.to_string()).cloned();
            Box::pin(async move { found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) })
        });
        Arc::new(Pool::new(urls, GrpcTls::default(), resolver).unwrap())
    }
}

/// A pool of these addresses, none of which was asked yet.
async fn pool(members: &[SocketAddr]) -> Arc<Pool> {
    let names = Names::default();
    names.lead(URL, members);
    let pool = names.pool(URL);
    pool.resolve().await;
    pool
}

fn found(members: &[SocketAddr]) -> BTreeMap<SocketAddr, Uri> {
    members.iter().map(|addr| (*addr, Uri::from_static(URL))).collect()
}

async fn ask_health(member: Arc<Member>) -> Result<(), Status> {
    HealthClient::new(member.channel()).check(HealthCheckRequest::default()).await.map(|_| ())
}

fn turns(pool: &Pool) -> BTreeSet<SocketAddr> {
    (0..20).map(|_| pool.member().addr().unwrap()).collect()
}

#[tokio::test]
async fn calls_go_in_turn_to_those_that_are_well() {
    let (first, second) = (well().await, well().await);
    let unwell = service(tonic_health::ServingStatus::NotServing).await;
    let pool = pool(&[first.addr, second.addr, unwell.addr, gone()]).await;
    assert!(pool.ask().await);
    assert_eq!(turns(&pool), BTreeSet::from([first.addr, second.addr]));

    pool.keep(found(&[gone()]));
    assert!(!pool.ask().await);
    assert_eq!(pool.member().addr().unwrap(), gone(), "where none is well, all are tried");
    pool.keep(BTreeMap::new());
    assert_eq!(pool.members.load().len(), 1, "a name that is not found forgets nobody");
}

#[tokio::test]
async fn what_reached_nobody_is_tried_elsewhere_whatever_it_is() {
    let there = well().await;
    let pool = pool(&[gone(), there.addr]).await;
    for _ in 0..100 {
        pool.call(|| false, ask_health).await.unwrap();
    }
    assert!(pool.ask().await);
    assert_eq!(turns(&pool), BTreeSet::from([there.addr]), "and who is not there is left out");
}

#[tokio::test]
async fn several_urls_are_one_service() {
    let (first, second) = (well().await, well().await);
    let urls = format!("http://{}, http://{}", first.addr, second.addr);
    let pool = Arc::new(Pool::new(&urls, GrpcTls::default(), Resolver::default()).unwrap());
    assert!(pool.clone().refresh().await);
    assert_eq!(turns(&pool), BTreeSet::from([first.addr, second.addr]));
}

#[tokio::test]
async fn an_address_that_returns_is_not_called_until_it_is_well() {
    let (there, other) = (well().await, well().await);
    let swallowing = swallowing().await;
    let pool = pool(&[there.addr, swallowing.addr, other.addr]).await;
    assert!(pool.ask().await);
    // Two name servers, one of which has not heard of a change.
    for _ in 0..3 {
        pool.keep(found(&[there.addr]));
        pool.keep(found(&[there.addr, swallowing.addr, other.addr]));
        assert_eq!(turns(&pool), BTreeSet::from([there.addr]), "it left, and may be dead by now");
    }
    assert!(pool.ask().await);
    assert_eq!(turns(&pool), BTreeSet::from([there.addr, other.addr]), "it said that it is well");
}

#[tokio::test]
async fn an_address_that_is_new_is_not_called_before_those_that_are_well() {
    let (there, new) = (well().await, well().await);
    let pool = pool(&[there.addr]).await;
    assert!(pool.ask().await);
    pool.keep(found(&[there.addr, new.addr]));
    assert_eq!(turns(&pool), BTreeSet::from([there.addr]));
    assert!(pool.ask().await);
    assert_eq!(turns(&pool), BTreeSet::from([there.addr, new.addr]));
}

#[tokio::test]
async fn a_connection_of_an_address_that_returns_within_a_minute_is_the_one_it_had() {
    let (there, other) = (well().await, well().await);
    let pool = pool(&[there.addr, other.addr]).await;
    let of = |addr| pool.members.load().iter().find(|member| member.addr() == Some(addr)).unwrap().clone();
    let before = of(other.addr);
    pool.keep(found(&[there.addr]));
    pool.keep(found(&[there.addr, other.addr]));
    assert!(Arc::ptr_eq(&before, &of(other.addr)));
    pool.keep(found(&[there.addr]));
    let long_ago = Instant::now().checked_sub(DEPARTED_TTL).unwrap();
    pool.departed.lock().unwrap().get_mut(&other.addr).unwrap().at = long_ago;
    pool.keep(found(&[there.addr, other.addr]));
    assert!(!Arc::ptr_eq(&before, &of(other.addr)));
}

#[tokio::test]
async fn a_service_whose_addresses_all_changed_is_reached_by_the_next_call() {
    let (first, second) = (well().await, well().await);
    let names = Names::default();
    names.lead(URL, &[first.addr, second.addr]);
    let pool = names.pool(URL);
    assert!(pool.clone().refresh().await);
    for _ in 0..2 {
        pool.call(|| false, ask_health).await.unwrap();
    }
    drop((first, second));
    tokio::time::sleep(BACKOFF).await;
    let new = well().await;
    names.lead(URL, &[new.addr]);
    pool.call(|| false, ask_health).await.unwrap();
    assert_eq!(turns(&pool), BTreeSet::from([new.addr]));
}

#[tokio::test]
async fn a_service_whose_addresses_all_fell_silent_is_reached_by_the_next_call() {
    let (first, second) = (swallowing().await, swallowing().await);
    let names = Names::default();
    names.lead(URL, &[first.addr, second.addr]);
    let pool = names.pool(URL);
    pool.resolve().await;
    for member in pool.members.load().iter() {
        member.becomes(Health::Well);
    }
    let new = well().await;
    names.lead(URL, &[first.addr, new.addr]);
    pool.call(|| false, ask_health).await.unwrap();
    assert_eq!(pool.member().addr(), Some(new.addr));
}

#[tokio::test]
async fn a_second_url_answers_while_all_addresses_of_the_first_have_gone() {
    const STABLE: &str = "http://stable.example:1";
    let (pod, stable) = (well().await, well().await);
    let names = Names::default();
    names.lead(URL, &[pod.addr]);
    names.lead(STABLE, &[stable.addr]);
    let pool = names.pool(&format!("{URL},{STABLE}"));
    assert!(pool.clone().refresh().await);
    drop(pod);
    for _ in 0..20 {
        pool.call(|| false, ask_health).await.unwrap();
    }
    // The name server still gives the address of the pod.
    assert!(pool.clone().refresh().await);
    assert_eq!(turns(&pool), BTreeSet::from([stable.addr]));
}
