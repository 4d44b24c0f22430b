//! Every event reaches every device, in order, once, whatever is lost on the way (P5; G5, G6, G7, C10, C11).

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::realtime_stage::Stage;

const ANN: i64 = 7;
const BEN: i64 = 8;

#[tokio::test]
async fn every_device_gets_every_event_through_whichever_gateway() {
    let stage = Stage::set(3).await;
    let mut devices = Vec::new();
    for gateway in [0, 0, 1, 2] {
        devices.push(stage.socket(gateway, ANN, "").await);
    }
    let mut ben = stage.socket(0, BEN, "").await;
    stage.steps(ANN, 200).await;
    for device in &mut devices {
        assert_eq!(device.seqs(200).await, (1..=200).collect::<Vec<_>>());
    }
    ben.is_silent().await;
    stage.steps(BEN, 1).await;
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
    assert!((event["time"].as_i64().unwrap() - stage.clock.unix()).abs() < 5);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_then_what_comes() {
    let stage = Stage::set(1).await;
    stage.steps(ANN, 30).await;
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=10").await;
    assert_eq!(socket.ready().await, (30, true));
    assert_eq!(socket.seqs(20).await, (11..=30).collect::<Vec<_>>());
    stage.steps(ANN, 5).await;
    assert_eq!(socket.seqs(5).await, (31..=35).collect::<Vec<_>>());
    assert_eq!(stage.order.asked.load(Ordering::SeqCst), 0, "Redis was enough");

    let (mut up_to_date, _) = stage.connected(0, &stage.token(ANN), "?after=35").await;
    assert_eq!(up_to_date.ready().await, (35, true));
    let (mut from_now, _) = stage.connected(0, &stage.token(ANN), "").await;
    assert_eq!(from_now.ready().await, (35, true));
    stage.steps(ANN, 1).await;
    assert_eq!(up_to_date.seqs(1).await, [36]);
    assert_eq!(from_now.seqs(1).await, [36]);
}

#[tokio::test]
async fn the_order_service_tells_what_redis_has_lost() {
    let stage = Stage::set(1).await;
    stage.steps(ANN, 600).await;
    stage.flush_redis().await;
    stage.set_epoch().await;

    for (query, seq, recovered, replayed) in [
        ("", 600, true, 0),
        ("?after=600", 600, true, 0),
        ("?after=100", 600, true, 500),
        ("?after=99", 600, false, 0),
        ("?after=0", 600, false, 0),
        ("?after=601", 600, false, 0),
        ("?after=9223372036854775807", 600, false, 0),
    ] {
        let (mut socket, _) = stage.connected(0, &stage.token(ANN), query).await;
        assert_eq!(socket.ready().await, (seq, recovered), "{query}");
        let first = seq - i64::try_from(replayed).unwrap() + 1;
        assert_eq!(socket.seqs(replayed).await, (first..=seq).collect::<Vec<_>>(), "{query}");
        socket.is_silent().await;
    }

    // With its history cut off.
    stage.order.kept_from.store(550, Ordering::SeqCst);
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=500").await;
    assert_eq!(socket.ready().await, (600, false));
    stage.steps(ANN, 1).await;
    assert_eq!(socket.seqs(1).await, [601], "goes on from the seq it was told");
}

#[tokio::test]
async fn a_history_in_redis_with_a_hole_is_not_believed() {
    let stage = Stage::set(1).await;
    let events = stage.order.commit(ANN, 10);
    for event in events.iter().filter(|event| event.seq != 5) {
        stage.publish_history(event).await;
    }
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=2").await;
    assert_eq!(socket.ready().await, (10, true));
    assert_eq!(socket.seqs(8).await, (3..=10).collect::<Vec<_>>());
    // One that ends too early is not either, for who has seen more.
    let ben = stage.order.commit(BEN, 10);
    for event in &ben[..4] {
        stage.publish_history(event).await;
    }
    let (mut socket, _) = stage.connected(0, &stage.token(BEN), "?after=8").await;
    assert_eq!(socket.ready().await, (10, true));
    assert_eq!(socket.seqs(2).await, [9, 10]);
}

#[tokio::test]
async fn a_history_that_is_no_stream_is_replaced_by_the_order_service() {
    let stage = Stage::set(1).await;
    let mut live = stage.socket(0, ANN, "").await;
    stage.break_history(ANN).await;
    let events = stage.order.commit(ANN, 4);
    for event in &events {
        // Of the third neither stream has anything: it became a dead letter.
        if event.seq != 3 {
            stage.publish_fan_out(event).await;
        }
    }
    assert_eq!(live.seqs(4).await, [1, 2, 3, 4]);
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=1").await;
    assert_eq!(socket.ready().await, (4, true));
    assert_eq!(socket.seqs(3).await, [2, 3, 4]);
    let (mut up_to_date, _) = stage.connected(0, &stage.token(ANN), "?after=4").await;
    assert_eq!(up_to_date.ready().await, (4, true));
}

#[tokio::test]
async fn an_entry_that_is_no_event_stops_none_behind_it() {
    let stage = Stage::set(1).await;
    let mut socket = stage.socket(0, ANN, "").await;
    stage.publish_garbage(ANN).await;
    stage.steps(ANN, 2).await;
    assert_eq!(socket.seqs(2).await, [1, 2]);
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_between_the_replay_and_what_comes() {
    let stage = Stage::set(1).await;
    let before = stage.order.commit(ANN, 20);
    stage.order.slow.store(400, Ordering::SeqCst);
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=3").await;
    // While the order service is being asked, some of the same arrives, and more.
    for event in &before[15..] {
        stage.publish_fan_out(event).await;
    }
    stage.steps(ANN, 20).await;
    assert!(socket.ready().await.1);
    assert_eq!(socket.seqs(37).await, (4..=40).collect::<Vec<_>>());
    socket.is_silent().await;
}

#[tokio::test]
async fn a_missing_number_is_found_before_anything_newer_is_sent() {
    let stage = Stage::set(1).await;
    let mut devices =
        [stage.socket(0, ANN, "").await, stage.socket(0, ANN, "").await, stage.socket(0, ANN, "").await];
    let events = stage.order.commit(ANN, 40);
    for event in &events {
        // Out of order, doubled, and some not at all.
        match event.seq {
            5..=9 | 20 => {}
            30 => {
                stage.publish_fan_out(&events[30]).await;
                stage.publish_fan_out(event).await;
                stage.publish_fan_out(event).await;
            }
            _ => stage.publish_fan_out(event).await,
        }
    }
    for device in &mut devices {
        assert_eq!(device.seqs(40).await, (1..=40).collect::<Vec<_>>());
        device.is_silent().await;
    }
}

#[tokio::test]
async fn what_cannot_be_found_ends_the_socket_instead_of_a_gap() {
    let stage = Stage::set(1).await;
    let mut socket = stage.socket(0, ANN, "").await;
    let events = stage.order.commit(ANN, 3);
    stage.order.away.store(true, Ordering::SeqCst);
    stage.publish_fan_out(&events[0]).await;
    stage.publish_fan_out(&events[2]).await;
    assert_eq!(socket.seqs(1).await, [1]);
    let began = Instant::now();
    assert_eq!(socket.next().await, Err(4010), "nothing is sent while one is missing");
    assert!(began.elapsed() > Duration::from_secs(5), "it looked for a while");

    // Nor does one begin that cannot know where.
    stage.flush_redis().await;
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=1").await;
    assert_eq!(socket.closed().await, 4010);
    stage.order.away.store(false, Ordering::SeqCst);
    let (mut socket, _) = stage.connected(0, &stage.token(ANN), "?after=1").await;
    assert_eq!(socket.ready().await, (3, true));
    assert_eq!(socket.seqs(2).await, [2, 3]);
}

/// What is committed while Redis loses everything, published or not, arrives all the same.
async fn survives(mut stage: Stage, lose: impl AsyncFn(&mut Stage)) {
    let mut devices = [stage.socket(0, ANN, "").await, stage.socket(1, ANN, "").await];
    stage.steps(ANN, 10).await;
    for device in &mut devices {
        assert_eq!(device.seqs(10).await, (1..=10).collect::<Vec<_>>());
    }
    for round in 1..=3 {
        let first = 10 + (round - 1) * 15 + 1;
        // The relay has published these, and nobody read them: the worst that can be.
        stage.order.commit(ANN, 5);
        lose(&mut stage).await;
        stage.steps(ANN, 10).await;
        for device in &mut devices {
            assert_eq!(device.seqs(15).await, (first..first + 15).collect::<Vec<_>>(), "round {round}");
        }
    }
    // A tail that was lost, with nothing after it to show that.
    stage.order.commit(ANN, 2);
    lose(&mut stage).await;
    for device in &mut devices {
        assert_eq!(device.seqs(2).await, [56, 57]);
        device.is_silent().await;
    }
}

#[tokio::test]
async fn a_flushed_redis_loses_nothing() {
    let stage = Stage::set(2).await;
    survives(stage, async |stage: &mut Stage| {
        stage.flush_redis().await;
        stage.set_epoch().await;
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_dies_and_comes_back_empty_loses_nothing() {
    let stage = Stage::set(2).await;
    survives(stage, async |stage: &mut Stage| stage.restart_redis().await).await;
}

/// Entries of the old Redis had higher ids than those of the new one get.
#[tokio::test]
async fn a_redis_whose_clock_runs_behind_is_read_all_the_same() {
    let stage = Stage::set(1).await;
    let mut socket = stage.socket(0, ANN, "").await;
    let events = stage.order.commit(ANN, 4);
    stage.publish_at(&events[0], "99999999999999-0").await;
    assert_eq!(socket.seqs(1).await, [1]);
    stage.flush_redis().await;
    stage.publish(&events[1]).await;
    assert_eq!(socket.seqs(1).await, [2]);
    stage.publish(&events[2]).await;
    stage.publish(&events[3]).await;
    assert_eq!(socket.seqs(2).await, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_closed_and_nobody_else_is_slowed() {
    const EVENTS: usize = 6_000;
    let stage = Stage::set(1).await;
    let mut slow = Vec::new();
    for _ in 0..9 {
        slow.push(stage.socket(0, 100, "").await);
    }
    let mut reader = stage.socket(0, 100, "").await;
    let reading = tokio::spawn(async move {
        let (mut at, mut longest) = (Instant::now(), Duration::ZERO);
        for seq in 1..=EVENTS {
            assert_eq!(reader.seqs(1).await, [i64::try_from(seq).unwrap()]);
            longest = longest.max(at.elapsed());
            at = Instant::now();
        }
        longest
    });
    stage.rush(&[100], EVENTS).await;
    let longest = reading.await.unwrap();
    assert!(longest < Duration::from_secs(2), "waited {longest:?} for an event");
    // Longer than a client may take nothing at all.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for mut socket in slow {
        assert_eq!(socket.closed().await, 4008);
    }
}

/// Clients come back at once, after Redis lost everything.
#[tokio::test]
async fn a_crowd_that_comes_back_is_served() {
    const CROWD: i64 = 500;
    let stage = Stage::set(1).await;
    for user_id in 1..=CROWD {
        stage.order.commit(user_id, 3);
    }
    let began = Instant::now();
    let sockets = futures_util::future::join_all((1..=CROWD).map(async |user_id| {
        let (mut socket, _) = stage.connected(0, &stage.token(user_id), "?after=1").await;
        assert_eq!(socket.ready().await, (3, true));
        assert_eq!(socket.seqs(2).await, [2, 3]);
        socket
    }))
    .await;
    assert!(began.elapsed() < Duration::from_secs(10));
    // All of them have something to ask, at once.
    for user_id in 1..=CROWD {
        stage.order.commit(user_id, 1);
    }
    stage.flush_redis().await;
    for mut socket in sockets {
        assert_eq!(socket.seqs(1).await, [4]);
    }
}

/// A tail that got lost without a trace is found by asking, now and then.
#[tokio::test]
async fn a_tail_lost_without_a_trace_is_found_within_a_minute_or_so() {
    let stage = Stage::set(1).await;
    let mut socket = stage.socket(0, ANN, "").await;
    stage.order.commit(ANN, 1);
    let began = Instant::now();
    let asked = || async { stage.order.asked.load(Ordering::SeqCst) > 1 };
    tokio::time::timeout(Duration::from_secs(80), async {
        while !asked().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .expect("asked");
    assert_eq!(socket.seqs(1).await, [1]);
    assert!(began.elapsed() < Duration::from_secs(75));
}
