//! Every event reaches every device once and in order, although Redis or connections are lost.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::json;
use shoppee_kit::testing::eventually;
use tokio::time::Instant;

use crate::realtime_fixture::RealtimeFixture;

const ANN: i64 = 7;
const BEN: i64 = 8;

#[tokio::test]
async fn every_device_gets_every_event_from_every_gateway() {
    let fixture = RealtimeFixture::start(3).await;
    let mut devices = Vec::new();
    for gateway in [0, 0, 1, 2] {
        devices.push(fixture.socket(gateway, ANN, "").await);
    }
    let mut ben = fixture.socket(0, BEN, "").await;
    fixture.commit_and_publish(ANN, 200).await;
    for device in &mut devices {
        assert_eq!(device.seqs(200).await, (1..=200).collect::<Vec<_>>());
    }
    ben.is_silent().await;
    fixture.commit_and_publish(BEN, 1).await;
    let event = ben.json().await;
    let content = event["content"].as_object().unwrap();
    assert_eq!(content.len(), 6, "{event}");
    assert_eq!(content["status"], "pending");
    assert_eq!(content["previous_status"], json!(null));
    assert_eq!(
        (&content["total"], &content["currency"], &content["version"]),
        (&json!(1999), &json!("EUR"), &json!(1))
    );
    assert_eq!((&event["type"], &event["user_id"], &event["seq"]), (&json!("order"), &json!(BEN), &json!(1)));
    assert!((event["time"].as_i64().unwrap() - fixture.clock.unix()).abs() < 5);
}

#[tokio::test]
async fn a_reconnecting_client_gets_missed_then_live_events() {
    let fixture = RealtimeFixture::start(1).await;
    fixture.commit_and_publish(ANN, 30).await;
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=10").await;
    assert_eq!(socket.ready().await, (30, true));
    assert_eq!(socket.seqs(20).await, (11..=30).collect::<Vec<_>>());
    assert_eq!(fixture.order.calls.load(Ordering::SeqCst), 0, "no query of the order service");
    fixture.commit_and_publish(ANN, 5).await;
    assert_eq!(socket.seqs(5).await, (31..=35).collect::<Vec<_>>());

    let (mut up_to_date, _) = fixture.connect(0, &fixture.token(ANN), "?after=35").await;
    assert_eq!(up_to_date.ready().await, (35, true));
    let (mut from_now, _) = fixture.connect(0, &fixture.token(ANN), "").await;
    assert_eq!(from_now.ready().await, (35, true));
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(up_to_date.seqs(1).await, [36]);
    assert_eq!(from_now.seqs(1).await, [36]);
}

#[tokio::test]
async fn events_lost_by_redis_come_from_the_order_service() {
    let fixture = RealtimeFixture::start(1).await;
    fixture.commit_and_publish(ANN, 600).await;
    fixture.flush_redis().await;
    fixture.set_epoch().await;

    for (query, seq, recovered, replayed) in [
        ("", 600, true, 0),
        ("?after=600", 600, true, 0),
        ("?after=100", 600, true, 500),
        ("?after=99", 600, false, 0),
        ("?after=0", 600, false, 0),
        ("?after=601", 600, false, 0),
        ("?after=9223372036854775807", 600, false, 0),
    ] {
        let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), query).await;
        assert_eq!(socket.ready().await, (seq, recovered), "{query}");
        let first = seq - i64::try_from(replayed).unwrap() + 1;
        assert_eq!(socket.seqs(replayed).await, (first..=seq).collect::<Vec<_>>(), "{query}");
        socket.is_silent().await;
    }

    // With a truncated history.
    fixture.order.oldest_seq.store(550, Ordering::SeqCst);
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=500").await;
    assert_eq!(socket.ready().await, (600, false));
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(socket.seqs(1).await, [601], "continues from the seq of ready");
}

#[tokio::test]
async fn a_redis_history_with_a_gap_is_ignored() {
    let fixture = RealtimeFixture::start(1).await;
    let events = fixture.order.commit(ANN, 10);
    for event in events.iter().filter(|event| event.seq != 5) {
        fixture.publish_history(event).await;
    }
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=2").await;
    assert_eq!(socket.ready().await, (10, true));
    assert_eq!(socket.seqs(8).await, (3..=10).collect::<Vec<_>>());
    // A history that ends before the client's position is ignored too.
    let ben = fixture.order.commit(BEN, 10);
    for event in &ben[..4] {
        fixture.publish_history(event).await;
    }
    let (mut socket, _) = fixture.connect(0, &fixture.token(BEN), "?after=8").await;
    assert_eq!(socket.ready().await, (10, true));
    assert_eq!(socket.seqs(2).await, [9, 10]);
}

#[tokio::test]
async fn a_history_of_the_wrong_type_falls_back_to_the_order_service() {
    let fixture = RealtimeFixture::start(1).await;
    let mut live = fixture.socket(0, ANN, "").await;
    fixture.break_history(ANN).await;
    let events = fixture.order.commit(ANN, 4);
    for event in &events {
        // Neither stream has the third event: it became a dead letter.
        if event.seq != 3 {
            fixture.publish_fan_out(event).await;
        }
    }
    assert_eq!(live.seqs(4).await, [1, 2, 3, 4]);
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=1").await;
    assert_eq!(socket.ready().await, (4, true));
    assert_eq!(socket.seqs(3).await, [2, 3, 4]);
    let (mut up_to_date, _) = fixture.connect(0, &fixture.token(ANN), "?after=4").await;
    assert_eq!(up_to_date.ready().await, (4, true));
}

#[tokio::test]
async fn an_undecodable_entry_does_not_block_later_events() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    fixture.publish_garbage(ANN).await;
    fixture.commit_and_publish(ANN, 2).await;
    assert_eq!(socket.seqs(2).await, [1, 2]);
}

#[tokio::test]
async fn replay_and_live_events_have_no_gap_and_no_duplicate() {
    let fixture = RealtimeFixture::start(1).await;
    let before = fixture.order.commit(ANN, 20);
    fixture.order.latency_ms.store(400, Ordering::SeqCst);
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=3").await;
    // During the query of the order service, some of the same events and newer ones arrive.
    for event in &before[15..] {
        fixture.publish_fan_out(event).await;
    }
    fixture.commit_and_publish(ANN, 20).await;
    assert!(socket.ready().await.1);
    assert_eq!(socket.seqs(37).await, (4..=40).collect::<Vec<_>>());
    socket.is_silent().await;
}

#[tokio::test]
async fn a_gap_is_recovered_before_newer_events_are_sent() {
    let fixture = RealtimeFixture::start(1).await;
    let mut devices = [
        fixture.socket(0, ANN, "").await,
        fixture.socket(0, ANN, "").await,
        fixture.socket(0, ANN, "").await,
    ];
    let events = fixture.order.commit(ANN, 40);
    for event in &events {
        // Out of order, duplicated, and some missing.
        match event.seq {
            5..=9 | 20 => {}
            30 => {
                fixture.publish_fan_out(&events[30]).await;
                fixture.publish_fan_out(event).await;
                fixture.publish_fan_out(event).await;
            }
            _ => fixture.publish_fan_out(event).await,
        }
    }
    for device in &mut devices {
        assert_eq!(device.seqs(40).await, (1..=40).collect::<Vec<_>>());
        device.is_silent().await;
    }
}

#[tokio::test]
async fn an_unrecoverable_gap_closes_the_socket() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    let events = fixture.order.commit(ANN, 3);
    fixture.order.is_unavailable.store(true, Ordering::SeqCst);
    fixture.publish_fan_out(&events[0]).await;
    fixture.publish_fan_out(&events[2]).await;
    assert_eq!(socket.seqs(1).await, [1]);
    let began = Instant::now();
    assert_eq!(socket.next().await, Err(4010), "no event is sent after a gap");
    assert!(began.elapsed() > Duration::from_secs(5), "recovery was retried");

    // A socket without a known position does not start.
    fixture.flush_redis().await;
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=1").await;
    assert_eq!(socket.close_code().await, 4010);
    fixture.order.is_unavailable.store(false, Ordering::SeqCst);
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=1").await;
    assert_eq!(socket.ready().await, (3, true));
    assert_eq!(socket.seqs(2).await, [2, 3]);
}

/// Checks that events which are committed while Redis loses its data arrive, published or not.
async fn expect_no_loss(mut fixture: RealtimeFixture, lose: impl AsyncFn(&mut RealtimeFixture)) {
    let mut devices = [fixture.socket(0, ANN, "").await, fixture.socket(1, ANN, "").await];
    fixture.commit_and_publish(ANN, 10).await;
    for device in &mut devices {
        assert_eq!(device.seqs(10).await, (1..=10).collect::<Vec<_>>());
    }
    for round in 1..=3 {
        let first = 10 + (round - 1) * 15 + 1;
        // The relay has published these, but no gateway has read them: the worst case.
        fixture.order.commit(ANN, 5);
        lose(&mut fixture).await;
        fixture.commit_and_publish(ANN, 10).await;
        for device in &mut devices {
            assert_eq!(device.seqs(15).await, (first..first + 15).collect::<Vec<_>>(), "round {round}");
        }
    }
    // The last events are lost, with no later event that reveals the gap.
    fixture.order.commit(ANN, 2);
    lose(&mut fixture).await;
    for device in &mut devices {
        assert_eq!(device.seqs(2).await, [56, 57]);
        device.is_silent().await;
    }
}

#[tokio::test]
async fn no_event_is_lost_when_redis_is_flushed() {
    let fixture = RealtimeFixture::start(2).await;
    expect_no_loss(fixture, async |fixture: &mut RealtimeFixture| {
        fixture.flush_redis().await;
        fixture.set_epoch().await;
    })
    .await;
}

#[tokio::test]
async fn no_event_is_lost_when_redis_restarts_empty() {
    let fixture = RealtimeFixture::start(2).await;
    expect_no_loss(fixture, async |fixture: &mut RealtimeFixture| fixture.restart_redis().await).await;
}

/// The entries of the old Redis have higher ids than those of the new one.
#[tokio::test]
async fn a_redis_with_a_lagging_clock_is_read() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    let events = fixture.order.commit(ANN, 4);
    fixture.publish_at(&events[0], "99999999999999-0").await;
    assert_eq!(socket.seqs(1).await, [1]);
    fixture.flush_redis().await;
    fixture.publish(&events[1]).await;
    assert_eq!(socket.seqs(1).await, [2]);
    fixture.publish(&events[2]).await;
    fixture.publish(&events[3]).await;
    assert_eq!(socket.seqs(2).await, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_without_slowing_others() {
    const EVENTS: usize = 6_000;
    let fixture = RealtimeFixture::start(1).await;
    let mut slow = Vec::new();
    for _ in 0..9 {
        slow.push(fixture.socket(0, 100, "").await);
    }
    let mut reader = fixture.socket(0, 100, "").await;
    let reading = tokio::spawn(async move {
        let (mut at, mut longest) = (Instant::now(), Duration::ZERO);
        for seq in 1..=EVENTS {
            assert_eq!(reader.seqs(1).await, [i64::try_from(seq).unwrap()]);
            longest = longest.max(at.elapsed());
            at = Instant::now();
        }
        longest
    });
    fixture.publish_at_rate(&[100], EVENTS).await;
    let longest = reading.await.unwrap();
    assert!(longest < Duration::from_secs(2), "waited {longest:?} for an event");
    // Longer than the write timeout.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for mut socket in slow {
        assert_eq!(socket.close_code().await, 4008);
    }
}

/// Clients reconnect at once after Redis lost its data.
#[tokio::test]
async fn simultaneous_reconnects_are_served() {
    const CROWD: i64 = 500;
    let fixture = RealtimeFixture::start(1).await;
    for user_id in 1..=CROWD {
        fixture.order.commit(user_id, 3);
    }
    let began = Instant::now();
    let sockets = futures_util::future::join_all((1..=CROWD).map(async |user_id| {
        let (mut socket, _) = fixture.connect(0, &fixture.token(user_id), "?after=1").await;
        assert_eq!(socket.ready().await, (3, true));
        assert_eq!(socket.seqs(2).await, [2, 3]);
        socket
    }))
    .await;
    assert!(began.elapsed() < Duration::from_secs(10));
    // All of them recover at once.
    for user_id in 1..=CROWD {
        fixture.order.commit(user_id, 1);
    }
    fixture.flush_redis().await;
    for mut socket in sockets {
        assert_eq!(socket.seqs(1).await, [4]);
    }
}

#[tokio::test]
async fn the_order_service_is_asked_once_for_a_user_without_events() {
    let fixture = RealtimeFixture::start(1).await;
    let calls = || fixture.order.calls.swap(0, Ordering::SeqCst);
    for query in ["", "", "?after=0"] {
        fixture.socket(0, ANN, query).await;
    }
    assert_eq!(calls(), 1);

    // The first event is committed, and still on its way when the next socket opens.
    let mut socket = fixture.socket(0, ANN, "?after=0").await;
    let first = fixture.order.commit(ANN, 1).remove(0);
    let mut late = fixture.socket(0, ANN, "?after=0").await;
    assert_eq!(calls(), 0);
    fixture.publish_fan_out(&first).await;
    assert_eq!(socket.seqs(1).await, [1]);
    assert_eq!(late.seqs(1).await, [1]);

    // Redis has no trace of the event.
    let (mut resumed, _) = fixture.connect(0, &fixture.token(ANN), "?after=0").await;
    assert_eq!(resumed.ready().await, (1, true));
    assert_eq!(resumed.seqs(1).await, [1]);
    assert_eq!(calls(), 1);
}

#[tokio::test]
async fn a_user_without_events_is_asked_for_again_after_redis_lost_its_data() {
    let fixture = RealtimeFixture::start(1).await;
    let _open = fixture.socket(0, BEN, "").await;
    fixture.socket(0, ANN, "").await;
    fixture.order.commit(ANN, 2);
    fixture.flush_redis().await;
    fixture.set_epoch().await;
    eventually("the stream's check notices the loss", async || {
        let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "?after=0").await;
        socket.ready().await == (2, true)
    })
    .await;
}

#[tokio::test]
async fn a_lost_last_event_is_recovered_within_about_ten_seconds() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    let began = Instant::now();
    fixture.order.commit(ANN, 1);
    assert_eq!(socket.seqs(1).await, [1]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test]
async fn frames_go_on_while_redis_is_away() {
    let mut fixture = RealtimeFixture::start(1).await;
    let (mut ann, mut ben) = (fixture.socket(0, ANN, "").await, fixture.socket(0, BEN, "").await);
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(ann.seqs(1).await, [1]);
    fixture.redis.kill();
    for seq in 2..5 {
        let began = Instant::now();
        fixture.order.commit(ANN, 1);
        assert_eq!(ann.seqs(1).await, [seq]);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    fixture.order.commit(BEN, 1);
    assert_eq!(ben.seqs(1).await, [1]);
    fixture.restart_redis().await;
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(ann.seqs(1).await, [5], "no frame is repeated");
}
