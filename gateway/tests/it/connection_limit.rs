//! The limit of a user's connections over all gateways.

use std::{collections::HashMap, time::Duration};

use fred::interfaces::HashesInterface as _;
use futures_util::future::join_all;
use shoppee_kit::testing::eventually;
use tokio::time::{Instant, sleep};

use crate::realtime_fixture::{GatewayProcess, RealtimeFixture, Socket};

const ANN: i64 = 1;
const LIMIT: usize = 10;
/// Bounds the close of a connection that another gateway evicts.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the time in which the connections of a killed gateway stop counting.
const LEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds the time in which all leases are renewed once.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(12);

impl RealtimeFixture {
    /// Opens `count` sockets of Ann, at all gateways in turn.
    async fn sockets(&self, count: usize) -> Vec<Socket> {
        let mut sockets = Vec::new();
        for number in 0..count {
            sockets.push(self.socket(number % self.gateways.len(), ANN, "").await);
        }
        sockets
    }

    /// Returns the number of Ann's leases in Redis that have not expired.
    async fn count_leases(&self) -> usize {
        let redis = self.redis.client().await;
        let leases: HashMap<String, String> =
            redis.hgetall(format!("connections:{ANN}")).await.expect("a hash");
        let now = self.clock.now().unix_timestamp_nanos() / 1_000;
        let has_expired = |lease: &String| {
            let end = lease.split_once(' ').expect("start and end").1;
            end.parse::<i128>().expect("a number") <= now
        };
        leases.values().filter(|lease| !has_expired(lease)).count()
    }

    /// Checks that Ann's sockets are open: each receives the next event.
    async fn expect_open(&self, sockets: &mut [Socket]) {
        self.commit_and_publish(ANN, 1).await;
        for socket in sockets {
            socket.seqs(1).await;
        }
    }
}

#[tokio::test]
async fn the_eleventh_socket_of_a_user_over_three_gateways_closes_the_oldest() {
    let fixture = RealtimeFixture::start(3).await;
    let mut sockets = fixture.sockets(LIMIT).await;
    fixture.expect_open(&mut sockets).await;
    let mut ben = fixture.socket(0, 2, "").await;

    // The oldest is at the first gateway.
    for gateway in [1, 2] {
        let mut newest = fixture.socket(gateway, ANN, "").await;
        let began = Instant::now();
        assert_eq!(sockets.remove(0).close_code().await, 4504);
        assert!(began.elapsed() < EVICTION_TIMEOUT, "{:?}", began.elapsed());
        fixture.expect_open(&mut sockets).await;
        newest.seqs(1).await;
        sockets.push(newest);
    }
    assert_eq!(fixture.count_leases().await, LIMIT);
    ben.is_silent().await;
}

#[tokio::test]
async fn a_closed_socket_frees_its_slot_at_the_other_gateways() {
    let fixture = RealtimeFixture::start(2).await;
    let mut sockets = fixture.sockets(LIMIT).await;
    for _ in 0..LIMIT {
        let Socket(gone) = sockets.pop().expect("a socket");
        drop(gone);
        eventually("the lease ends", async || fixture.count_leases().await == sockets.len()).await;
        let newest = fixture.socket(0, ANN, "").await;
        sockets.insert(1, newest);
    }
    fixture.expect_open(&mut sockets).await;
}

#[tokio::test]
async fn sockets_that_open_at_once_at_two_gateways_leave_ten() {
    let fixture = RealtimeFixture::start(2).await;
    // With a history in Redis, no socket waits for the order service.
    fixture.commit_and_publish(ANN, 1).await;
    let tokens: Vec<String> = (0..3 * LIMIT).map(|_| fixture.token(ANN)).collect();
    let opened = tokens.iter().enumerate().map(async |(number, token)| {
        let (socket, _) = fixture.connect(number % 2, token, "").await;
        socket
    });
    let sockets = join_all(opened).await;
    let mut ends = tokio::task::JoinSet::new();
    for mut socket in sockets {
        ends.spawn(async move { socket.close_code().await });
    }
    for _ in 0..2 * LIMIT {
        assert!(fixture.count_leases().await <= LIMIT);
        assert_eq!(ends.join_next().await.expect("a socket").expect("an end"), 4504);
    }
    assert_eq!(fixture.count_leases().await, LIMIT);
    assert!(ends.try_join_next().is_none(), "the others stay open");
}

#[tokio::test]
async fn the_connections_of_a_killed_gateway_stop_counting() {
    let fixture = RealtimeFixture::start(1).await;
    let mut other = GatewayProcess::start(&fixture).await;
    let token = fixture.token(ANN);
    let mut oldest = fixture.socket(0, ANN, "").await;
    let mut lost = Vec::new();
    for _ in 1..LIMIT {
        lost.push(other.socket(&token).await);
    }
    other.kill();
    let killed = Instant::now();
    assert_eq!(fixture.count_leases().await, LIMIT);
    while fixture.count_leases().await > 1 {
        assert!(killed.elapsed() < LEASE_TIMEOUT, "their leases are still there");
        sleep(Duration::from_millis(100)).await;
    }
    let mut sockets = fixture.sockets(LIMIT - 1).await;
    fixture.expect_open(&mut sockets).await;
    oldest.seqs(1).await;
}

#[tokio::test]
async fn without_redis_each_gateway_counts_its_own_and_all_are_counted_after_its_return() {
    let mut fixture = RealtimeFixture::start(2).await;
    let mut sockets = fixture.sockets(LIMIT).await;
    fixture.redis.kill();
    for number in 0..LIMIT {
        sockets.push(fixture.socket(number % 2, ANN, "").await);
    }
    fixture.order.commit(ANN, 1);
    for socket in &mut sockets {
        socket.seqs(1).await;
    }
    let mut newest = fixture.socket(0, ANN, "").await;
    assert_eq!(sockets.remove(0).close_code().await, 4504, "the oldest of its gateway");

    fixture.restart_redis().await;
    let began = Instant::now();
    for mut socket in sockets.drain(..LIMIT) {
        assert_eq!(socket.close_code().await, 4504);
    }
    assert!(began.elapsed() < RENEWAL_TIMEOUT, "{:?}", began.elapsed());
    fixture.expect_open(&mut sockets).await;
    newest.seqs(1).await;
}

#[tokio::test]
async fn a_redis_that_lost_its_data_counts_all_connections_after_a_renewal() {
    let fixture = RealtimeFixture::start(2).await;
    let mut sockets = fixture.sockets(LIMIT).await;
    fixture.flush_redis().await;
    let flushed = Instant::now();
    while fixture.count_leases().await < LIMIT {
        assert!(flushed.elapsed() < RENEWAL_TIMEOUT, "the leases are not back");
        sleep(Duration::from_millis(100)).await;
    }
    let mut newest = fixture.socket(1, ANN, "").await;
    assert_eq!(sockets.remove(0).close_code().await, 4504);
    fixture.expect_open(&mut sockets).await;
    newest.seqs(1).await;
}
