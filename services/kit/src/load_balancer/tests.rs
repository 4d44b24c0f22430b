//! Tests of the load balancer, with services on loopback addresses and a resolver under the test's control.

use std::{collections::BTreeSet, io};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};
use tonic::transport::server::{Server, TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;

const URL: &str = "http://service.example:1";

/// A server with a fixed health status, until it is dropped.
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

async fn healthy() -> Service {
    service(tonic_health::ServingStatus::Serving).await
}

/// Returns an address without a listener.
fn gone() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// An address that accepts no connection and sends no reset, like that of a node without power: its queue is full.
struct BlackHole {
    addr: SocketAddr,
    _queue: (TcpListener, Vec<TcpStream>),
}

async fn black_hole() -> BlackHole {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(addr)).await
    {
        queued.push(connected.unwrap());
    }
    BlackHole { addr, _queue: (listener, queued) }
}

/// The addresses of names, by URL.
#[derive(Clone, Default)]
struct Names(Arc<std::sync::Mutex<BTreeMap<String, Vec<SocketAddr>>>>);

impl Names {
    fn set(&self, url: &str, addrs: &[SocketAddr]) {
        self.0.lock().unwrap().insert(url.parse::<Uri>().unwrap().to_string(), addrs.to_vec());
    }

    fn balancer(&self, urls: &str) -> Arc<LoadBalancer> {
        let names = self.0.clone();
        let resolver = Resolver::new(move |url| {
            let addresses = names.lock().unwrap().get(&url.to_string()).cloned();
            Box::pin(async move { addresses.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) })
        });
        Arc::new(LoadBalancer::new(urls, GrpcTls::default(), resolver).unwrap())
    }
}

/// Returns a load balancer over `addrs`, before the first health check.
async fn balancer(addrs: &[SocketAddr]) -> Arc<LoadBalancer> {
    let names = Names::default();
    names.set(URL, addrs);
    let balancer = names.balancer(URL);
    balancer.resolve().await;
    balancer
}

fn addresses(addrs: &[SocketAddr]) -> BTreeMap<SocketAddr, Uri> {
    addrs.iter().map(|addr| (*addr, Uri::from_static(URL))).collect()
}

async fn check(endpoint: Arc<Endpoint>) -> Result<(), Status> {
    HealthClient::new(endpoint.channel()).check(HealthCheckRequest::default()).await.map(|_| ())
}

fn picked(balancer: &LoadBalancer) -> BTreeSet<SocketAddr> {
    (0..20).map(|_| balancer.pick().addr().unwrap()).collect()
}

#[tokio::test]
async fn calls_are_balanced_over_the_healthy_endpoints() {
    let (first, second) = (healthy().await, healthy().await);
    let unhealthy = service(tonic_health::ServingStatus::NotServing).await;
    let balancer = balancer(&[first.addr, second.addr, unhealthy.addr, gone()]).await;
    assert!(balancer.check_health().await);
    assert_eq!(picked(&balancer), BTreeSet::from([first.addr, second.addr]));

    balancer.update_endpoints(addresses(&[gone()]));
    assert!(!balancer.check_health().await);
    assert_eq!(balancer.pick().addr().unwrap(), gone(), "without a healthy endpoint, all are tried");
    balancer.update_endpoints(BTreeMap::new());
    assert_eq!(balancer.endpoints.load().len(), 1, "an empty resolution keeps the endpoints");
}

#[tokio::test]
async fn an_unprocessed_call_fails_over_although_it_is_not_retryable() {
    let there = healthy().await;
    let balancer = balancer(&[gone(), there.addr]).await;
    for _ in 0..100 {
        balancer.call(|| false, check).await.unwrap();
    }
    assert!(balancer.check_health().await);
    assert_eq!(picked(&balancer), BTreeSet::from([there.addr]), "the dead endpoint is left out");
}

#[tokio::test]
async fn the_addresses_of_several_urls_are_endpoints_of_one_service() {
    let (first, second) = (healthy().await, healthy().await);
    let urls = format!("http://{}, http://{}", first.addr, second.addr);
    let balancer = Arc::new(LoadBalancer::new(&urls, GrpcTls::default(), Resolver::default()).unwrap());
    assert!(balancer.clone().refresh().await);
    assert_eq!(picked(&balancer), BTreeSet::from([first.addr, second.addr]));
}

#[tokio::test]
async fn an_address_that_returns_is_not_called_until_it_is_healthy() {
    let (there, other) = (healthy().await, healthy().await);
    let black_hole = black_hole().await;
    let balancer = balancer(&[there.addr, black_hole.addr, other.addr]).await;
    assert!(balancer.check_health().await);
    // Two name servers, one of which has not seen a change.
    for _ in 0..3 {
        balancer.update_endpoints(addresses(&[there.addr]));
        balancer.update_endpoints(addresses(&[there.addr, black_hole.addr, other.addr]));
        assert_eq!(
            picked(&balancer),
            BTreeSet::from([there.addr]),
            "the returned address may be dead by now"
        );
    }
    assert!(balancer.check_health().await);
    assert_eq!(picked(&balancer), BTreeSet::from([there.addr, other.addr]), "its health check succeeded");
}

#[tokio::test]
async fn a_new_address_is_not_called_while_others_are_healthy() {
    let (there, new) = (healthy().await, healthy().await);
    let balancer = balancer(&[there.addr]).await;
    assert!(balancer.check_health().await);
    balancer.update_endpoints(addresses(&[there.addr, new.addr]));
    assert_eq!(picked(&balancer), BTreeSet::from([there.addr]));
    assert!(balancer.check_health().await);
    assert_eq!(picked(&balancer), BTreeSet::from([there.addr, new.addr]));
}

#[tokio::test]
async fn an_address_that_returns_within_a_minute_keeps_its_connection() {
    let (there, other) = (healthy().await, healthy().await);
    let balancer = balancer(&[there.addr, other.addr]).await;
    let of = |addr| {
        balancer.endpoints.load().iter().find(|endpoint| endpoint.addr() == Some(addr)).unwrap().clone()
    };
    let before = of(other.addr);
    balancer.update_endpoints(addresses(&[there.addr]));
    balancer.update_endpoints(addresses(&[there.addr, other.addr]));
    assert!(Arc::ptr_eq(&before, &of(other.addr)));
    balancer.update_endpoints(addresses(&[there.addr]));
    let long_ago = Instant::now().checked_sub(DEPARTED_TTL).unwrap();
    balancer.departed.lock().unwrap().get_mut(&other.addr).unwrap().at = long_ago;
    balancer.update_endpoints(addresses(&[there.addr, other.addr]));
    assert!(!Arc::ptr_eq(&before, &of(other.addr)));
}

#[tokio::test]
async fn a_service_whose_addresses_all_changed_is_reached_by_the_next_call() {
    let (first, second) = (healthy().await, healthy().await);
    let names = Names::default();
    names.set(URL, &[first.addr, second.addr]);
    let balancer = names.balancer(URL);
    assert!(balancer.clone().refresh().await);
    for _ in 0..2 {
        balancer.call(|| false, check).await.unwrap();
    }
    drop((first, second));
    tokio::time::sleep(RETRY_DELAY).await;
    let new = healthy().await;
    names.set(URL, &[new.addr]);
    balancer.call(|| false, check).await.unwrap();
    assert_eq!(picked(&balancer), BTreeSet::from([new.addr]));
}

#[tokio::test]
async fn a_service_whose_addresses_are_all_unresponsive_is_reached_by_the_next_call() {
    let (first, second) = (black_hole().await, black_hole().await);
    let names = Names::default();
    names.set(URL, &[first.addr, second.addr]);
    let balancer = names.balancer(URL);
    balancer.resolve().await;
    for endpoint in balancer.endpoints.load().iter() {
        endpoint.set_health(Health::Healthy);
    }
    let new = healthy().await;
    names.set(URL, &[first.addr, new.addr]);
    balancer.call(|| false, check).await.unwrap();
    assert_eq!(balancer.pick().addr(), Some(new.addr));
}

#[tokio::test]
async fn a_second_url_answers_while_all_addresses_of_the_first_have_gone() {
    const STABLE: &str = "http://stable.example:1";
    let (pod, stable) = (healthy().await, healthy().await);
    let names = Names::default();
    names.set(URL, &[pod.addr]);
    names.set(STABLE, &[stable.addr]);
    let balancer = names.balancer(&format!("{URL},{STABLE}"));
    assert!(balancer.clone().refresh().await);
    drop(pod);
    for _ in 0..20 {
        balancer.call(|| false, check).await.unwrap();
    }
    // The name server still gives the address of the pod.
    assert!(balancer.clone().refresh().await);
    assert_eq!(picked(&balancer), BTreeSet::from([stable.addr]));
}
