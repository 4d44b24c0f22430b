use std::{collections::HashMap, time::Duration};

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{OrderEvent, OrderStatus, WatchEventsRequest};
use sqlx::{PgPool, Postgres, Transaction};
use tonic::Code;

use crate::shop::{Consumer, TestShop, expect_error};

/// Bounds the streams of one caller, as in `event_log/watch.rs`.
const MAX_STREAMS_PER_CALLER: usize = 32;

/// The trace of the request that caused an event.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Writes the next event of a user, as a transition does.
async fn write_event(tx: &mut Transaction<'_, Postgres>, user_id: i64, status: &str) {
    sqlx::query(
        "with number as (
             insert into orders.event_cursor as cursor (user_id, seq) values ($1, 1)
             on conflict (user_id) do update set seq = cursor.seq + 1 returning seq
         )
         insert into orders.event (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
         select $1, number.seq, gen_random_uuid(), $2, 1, 'EUR', 1, 'system', now(), $3 from number",
    )
    .bind(user_id)
    .bind(status)
    .bind(TRACEPARENT)
    .execute(&mut **tx)
    .await
    .expect("answers");
}

async fn write_events(db: &PgPool, user_id: i64, count: usize) {
    let mut tx = db.begin().await.expect("begins");
    for _ in 0..count {
        write_event(&mut tx, user_id, "pending").await;
    }
    tx.commit().await.expect("commits");
}

fn keys(events: &[OrderEvent]) -> Vec<(i64, i64)> {
    events.iter().map(|event| (event.user_id, event.seq)).collect()
}

/// Asserts that the events have each number of their user from 1 on, in order.
fn assert_complete(events: &[OrderEvent]) {
    let mut last: HashMap<i64, i64> = HashMap::new();
    for event in events {
        let last = last.entry(event.user_id).or_default();
        assert_eq!(event.seq, *last + 1, "of user {}", event.user_id);
        *last = event.seq;
    }
}

#[tokio::test]
async fn a_stream_goes_from_stored_into_live_events_of_all_users() {
    let mut shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let consumer = shop.consumer().await;
    ann.buys(tea, 1).await;
    ben.buys(tea, 1).await;
    let mut live = {
        let mut watch = consumer.watches("").await;
        let stored = watch.events(2).await;
        assert_complete(&stored);
        watch
    };
    let mut newest = consumer.watches_from_now().await;
    let order = ann.buys(tea, 1).await;
    ann.pays(&order.id).await.unwrap();
    let own = ann.events().await;
    assert_eq!(live.events(2).await, own[1..], "the message has the event as ListEvents returns it");
    assert_eq!(newest.events(2).await, own[1..]);

    // A cursor stays valid after a restart, for an admin too, and while Redis is away.
    let cursor = live.cursor.clone();
    shop.stop_order().await;
    shop.start_order().await;
    shop.redis.kill();
    ben.buys(tea, 1).await;
    let events = admin.as_consumer().watches(&cursor).await.events(1).await;
    assert_eq!(keys(&events), [(ben.id, 2)]);
}

#[tokio::test]
async fn an_event_that_commits_late_follows_the_cursor_of_an_earlier_one() {
    let shop = TestShop::start().await;
    let (db, consumer) = (shop.db().await, shop.consumer().await);
    let mut watch = consumer.watches("").await;
    let mut late = db.begin().await.unwrap();
    write_event(&mut late, 1, "pending").await;
    write_events(&db, 2, 3).await;
    let events = watch.events(3).await;
    assert_eq!(keys(&events), [(2, 1), (2, 2), (2, 3)]);
    assert!(events.iter().all(|event| event.traceparent == TRACEPARENT), "the message has the trace");
    let cursor = watch.cursor.clone();
    late.commit().await.unwrap();
    let mut rolled_back = db.begin().await.unwrap();
    write_event(&mut rolled_back, 3, "pending").await;
    rolled_back.rollback().await.unwrap();
    write_events(&db, 3, 1).await;
    let keys_of = async |cursor: &str| {
        let mut keys = keys(&consumer.watches(cursor).await.events(2).await);
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys_of(&cursor).await, [(1, 1), (3, 1)]);
    let mut live = keys(&watch.events(2).await);
    live.sort_unstable();
    assert_eq!(live, [(1, 1), (3, 1)]);
}

/// Reads all events by streams that are dropped after a few messages and resumed on the next replica.
async fn read_by_short_streams(consumers: &[Consumer], count: usize) -> Vec<(String, OrderEvent)> {
    let (mut read, mut cursor) = (Vec::new(), String::new());
    for (round, consumer) in consumers.iter().cycle().enumerate() {
        let mut watch = consumer.watches(&cursor).await;
        for _ in 0..=(round * 7) % 40 {
            if read.len() == count {
                return read;
            }
            let event = watch.event().await;
            read.push((watch.cursor.clone(), event));
        }
        cursor.clone_from(&watch.cursor);
    }
    read
}

#[tokio::test]
async fn streams_that_are_killed_and_resumed_miss_and_repeat_nothing_under_concurrent_writers() {
    const USERS: u64 = 8;
    const TRANSACTIONS: u64 = 60;
    let shop = TestShop::start().await;
    let db = shop.db().await;
    let (_process, other) = shop.start_reachable_replica().await;
    let consumer = shop.consumer().await;
    let writers = (0..USERS * 2).map(|writer| {
        let db = db.clone();
        tokio::spawn(async move {
            for round in 0..TRANSACTIONS {
                let mut tx = db.begin().await.unwrap();
                let user_id = i64::try_from(writer % USERS).unwrap();
                write_event(&mut tx, user_id, "pending").await;
                // Transactions of different length commit in another order than they began, and some roll back.
                tokio::time::sleep(Duration::from_millis((round * 13 + writer * 7) % 20)).await;
                if round % 5 == 4 { tx.rollback().await.unwrap() } else { tx.commit().await.unwrap() }
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let count = usize::try_from(USERS * 2 * TRANSACTIONS * 4 / 5).unwrap();
    let replicas = [consumer.clone(), consumer.at(&other)];
    let read = read_by_short_streams(&replicas, count).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let events: Vec<OrderEvent> = read.iter().map(|(_, event)| event.clone()).collect();
    assert_complete(&events);
    // Each cursor leads to exactly the rest.
    for index in (0..count - 1).step_by(37) {
        let rest = consumer.watches(&read[index].0).await.events(count - index - 1).await;
        assert_eq!(keys(&rest), keys(&events[index + 1..]), "after event {index}");
    }
}

#[tokio::test]
async fn a_consumer_that_does_not_read_delays_neither_others_nor_orders_and_loses_nothing() {
    const EVENTS: usize = 6_000;
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let (db, consumer) = (shop.db().await, shop.consumer().await);
    let mut slow = consumer.watches("").await;
    slow.message().await;
    let mut fast = consumer.watches("").await;
    for _ in 0..EVENTS / 500 {
        write_events(&db, 1_000, 500).await;
    }
    assert_complete(&fast.events(EVENTS).await);
    ann.buys(tea, 1).await;
    assert_eq!(keys(&fast.events(1).await), [(ann.id, 1)]);
    assert_complete(&slow.events(EVENTS + 1).await);
}

#[tokio::test]
async fn a_filter_selects_statuses_and_the_cursor_moves_past_other_events() {
    let shop = TestShop::start().await;
    let (db, consumer) = (shop.db().await, shop.consumer().await);
    let mut paid = consumer.watches_status(OrderStatus::Paid).await;
    paid.message().await;
    for status in ["pending", "paid", "shipped", "paid", "pending"] {
        let mut tx = db.begin().await.unwrap();
        write_event(&mut tx, 1, status).await;
        tx.commit().await.unwrap();
    }
    assert_eq!(keys(&paid.events(2).await), [(1, 2), (1, 4)]);
    let cursor = paid.cursor.clone();
    let idle = paid.message().await;
    assert_eq!(idle.event, None);
    assert_ne!(idle.cursor, cursor, "past the last event");
    let mut stored = consumer.watches_status(OrderStatus::Paid).await;
    assert_eq!(keys(&stored.events(2).await), [(1, 2), (1, 4)], "from the database");
}

#[tokio::test]
async fn a_bad_cursor_is_refused_with_its_reason() {
    let shop = TestShop::start().await;
    let (db, consumer) = (shop.db().await, shop.consumer().await);
    write_events(&db, 1, 5).await;
    let mut watch = consumer.watches("").await;
    let first = watch.message().await.cursor;
    watch.events(5).await;
    let last = watch.cursor.clone();
    let refusal =
        async |request: WatchEventsRequest| expect_error(consumer.watches_with(request).await.map(drop));
    let of = |cursor: &str| WatchEventsRequest { cursor: cursor.to_owned(), ..WatchEventsRequest::default() };
    for malformed in ["x", "bm8", &last[1..], &"A".repeat(5_000)] {
        assert_eq!(refusal(of(malformed)).await, "invalid_request", "{malformed}");
    }
    assert_eq!(refusal(WatchEventsRequest { from_now: true, ..of(&last) }).await, "invalid_request");
    assert_eq!(refusal(WatchEventsRequest { statuses: vec![99], ..of("") }).await, "invalid_request");

    sqlx::query("delete from orders.event_log where position <= 2").execute(&db).await.unwrap();
    assert_eq!(refusal(of(&first)).await, "cursor_out_of_range", "deleted");
    assert_eq!(keys(&consumer.watches("").await.events(3).await), [(1, 3), (1, 4), (1, 5)], "the oldest");
    sqlx::query("delete from orders.event_log").execute(&db).await.unwrap();
    assert_eq!(refusal(of(&first)).await, "cursor_out_of_range");
    write_events(&db, 1, 1).await;
    assert_eq!(keys(&consumer.watches(&last).await.events(1).await), [(1, 6)], "nothing is missing");
    sqlx::query("update orders.event_log_head set position = 2").execute(&db).await.unwrap();
    assert_eq!(refusal(of(&last)).await, "cursor_out_of_range", "of a log that lost events");
}

#[tokio::test]
async fn an_open_stream_ends_if_its_log_loses_events() {
    let shop = TestShop::start().await;
    let (db, consumer) = (shop.db().await, shop.consumer().await);
    write_events(&db, 1, 5).await;
    let mut watch = consumer.watches("").await;
    watch.events(5).await;
    // A failover has lost the newest commits.
    for statement in
        ["delete from orders.event_log where position > 2", "update orders.event_log_head set position = 2"]
    {
        sqlx::query(statement).execute(&db).await.unwrap();
    }
    let end = loop {
        if let Err(end) = watch.try_message().await {
            break end;
        }
    };
    assert_eq!(expect_error::<()>(Err(end)), "cursor_out_of_range");
}

#[tokio::test]
async fn a_stream_of_a_rare_status_ends_with_its_session() {
    let shop = TestShop::start().await;
    let (db, admin) = (shop.db().await, shop.admin().await);
    // More than the process reads before the session ends.
    sqlx::query(
        "insert into orders.event (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
         select n % 100, n / 100 + 1, gen_random_uuid(), 'pending', 1, 'EUR', 1, 'system', now(), ''
         from generate_series(0, 199999) as n",
    )
    .execute(&db)
    .await
    .unwrap();
    eventually("the log has all events", || async {
        let pending =
            sqlx::query_scalar::<_, i64>("select count(*) from orders.event_queue").fetch_one(&db).await;
        pending.unwrap() == 0
    })
    .await;
    let mut watch = admin.as_consumer().watches_status(OrderStatus::Completed).await;
    watch.message().await;
    shop.signs_out(&admin).await;
    let end = loop {
        if let Err(end) = watch.try_message().await {
            break end;
        }
    };
    assert_eq!(expect_error::<()>(Err(end)), "session_revoked");
}

#[tokio::test]
async fn only_services_and_admins_follow_all_events_and_only_with_a_valid_token() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let refused = ann.as_consumer().watches_with(WatchEventsRequest::default()).await;
    assert_eq!(expect_error(refused.map(drop)), "forbidden");
    let refused = shop.service("orders:read").await.watches_with(WatchEventsRequest::default()).await;
    assert_eq!(expect_error(refused.map(drop)), "forbidden");
    let anonymous = ann.service().watch_events(WatchEventsRequest::default()).await;
    assert_eq!(expect_error(anonymous.map(drop)), "unauthenticated");

    let mut watch = admin.as_consumer().watches_from_now().await;
    shop.signs_out(&admin).await;
    let end = watch.end().await;
    assert_eq!(end.code(), Code::Unauthenticated);
    assert_eq!(expect_error::<()>(Err(end)), "session_revoked");
}

#[tokio::test]
async fn the_streams_of_a_caller_are_bounded_and_end_with_the_process() {
    let mut shop = TestShop::start().await;
    let (admin, consumer) = (shop.admin().await, shop.consumer().await);
    let mut open = Vec::new();
    for _ in 0..MAX_STREAMS_PER_CALLER {
        open.push(consumer.watches_from_now().await);
    }
    let refused = consumer.watches_with(WatchEventsRequest::default()).await;
    assert_eq!(expect_error(refused.map(drop)), "unavailable");
    admin.as_consumer().watches_from_now().await;
    drop(open.pop());
    eventually("a stream is free again", || async {
        consumer.watches_with(WatchEventsRequest::default()).await.is_ok()
    })
    .await;
    shop.stop_order().await;
    assert_eq!(open[0].end().await.code(), Code::Unavailable);
}
