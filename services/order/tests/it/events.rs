use fred::{
    clients::Client,
    interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _},
    types::{Builder, CustomCommand, config::Config, streams::XReadValue},
};
use prost::Message as _;
use shoppee_kit::testing::eventually;
use shoppee_proto::{
    auth::v1::UserRegistered,
    order::v1::{Actor, GetEventPositionsRequest, ListEventsRequest, OrderEvent, OrderStatus},
    streams,
};
use sqlx::PgPool;

use crate::shop::{Person, TestShop, order_request};

async fn redis(shop: &TestShop) -> Client {
    let config = Config::from_url(&format!("redis://127.0.0.1:{}", shop.redis.port())).expect("a URL");
    let client = Builder::from_config(config).build().expect("a client");
    client.init().await.expect("connects");
    client
}

async fn read(redis: &Client, stream: &str) -> Vec<(String, OrderEvent)> {
    let entries: Vec<XReadValue<String, String, Vec<u8>>> =
        redis.xrange_values(stream, "-", "+", None).await.expect("reads");
    let decode = |bytes: &Vec<u8>| OrderEvent::decode(bytes.as_slice()).expect("an event");
    entries.into_iter().map(|(id, fields)| (id, decode(&fields[streams::MESSAGE_FIELD]))).collect()
}

/// Returns the numbers of a user's events in a stream, in its order.
async fn seqs(redis: &Client, stream: &str, person: &Person) -> Vec<i64> {
    let entries = read(redis, stream).await;
    entries.into_iter().filter(|(_, event)| event.user_id == person.id).map(|(_, event)| event.seq).collect()
}

async fn count(db: &PgPool, table: &str) -> i64 {
    let count = format!("select count(*) from orders.{table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(db).await.expect("answers")
}

async fn set_max_memory(redis: &Client, bytes: &str) {
    let config = CustomCommand::new_static("CONFIG", None::<u16>, false);
    let () = redis.custom(config, vec!["SET", "maxmemory", bytes]).await.expect("answers");
}

/// Counts the commands that Redis rejected because it was full.
async fn out_of_memory_errors(redis: &Client) -> u64 {
    let info = CustomCommand::new_static("INFO", None::<u16>, false);
    let info: String = redis.custom(info, vec!["errorstats"]).await.expect("answers");
    let count = info.split("errorstat_OOM:count=").nth(1).and_then(|rest| rest.split_whitespace().next());
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// Redrives a user's dead letters with the SQL of docs/operating.md.
async fn redrive(db: &PgPool, person: &Person) {
    sqlx::query(
        "with redriven as (delete from orders.outbox_dead_letter where user_id = $1 returning user_id, seq)
         insert into orders.outbox (user_id, seq) select user_id, seq from redriven",
    )
    .bind(person.id)
    .execute(db)
    .await
    .expect("answers");
}

#[tokio::test]
async fn a_faulty_history_delays_no_other_user_and_ends_in_dead_letters() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    let history = streams::history_stream(ann.id);
    let () = redis.set(&history, "not a stream", None, None, false).await.unwrap();
    for _ in 0..3 {
        ann.buys(tea, 1).await;
    }
    ben.buys(tea, 1).await;
    eventually("ben's event is published", || async {
        seqs(&redis, &streams::history_stream(ben.id), &ben).await == [1]
    })
    .await;
    let fan_out = streams::fan_out_stream(ann.id);
    eventually("ann's sockets get hers", || async { seqs(&redis, &fan_out, &ann).await.len() == 3 }).await;

    // The first dead letter deletes the history, so that later events may be accepted.
    let settled = || async { count(&db, "outbox").await == 0 };
    eventually("ann's outbox is empty", settled).await;
    let dead: Vec<(i64, String)> =
        sqlx::query_as("select seq, reason from orders.outbox_dead_letter where attempts = 4 order by seq")
            .fetch_all(&db)
            .await
            .unwrap();
    let first_kept = i64::try_from(dead.len()).unwrap() + 1;
    assert!(dead.iter().map(|(seq, _)| *seq).eq(1..first_kept) && first_kept > 1, "{dead:?}");
    assert!(dead[0].1.contains("wrong_type: WRONGTYPE"), "{dead:?}");
    assert_eq!(seqs(&redis, &fan_out, &ann).await, [1, 2, 3], "no attempt left a copy");

    ann.buys(tea, 1).await;
    eventually("the history goes on", || async {
        seqs(&redis, &history, &ann).await == (first_kept..=4).collect::<Vec<_>>()
    })
    .await;
    redrive(&db, &ann).await;
    eventually("all are published again", settled).await;
    assert_eq!(count(&db, "outbox_dead_letter").await, 0);
    let copies = 1..first_kept;
    assert_eq!(seqs(&redis, &fan_out, &ann).await, (1..=4).chain(copies).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_locked_user_delays_no_other_user_of_its_batch_and_loses_no_event() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let order = ann.buys(tea, 1).await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    eventually("the first event is published", || async { count(&db, "outbox").await == 0 }).await;
    // Two events of each user, of a process that was killed before it published them.
    let write = async |users: &str, first: i64| {
        let written = format!(
            "with written as (
                 select user_id, seq from {users} cross join generate_series({first}, {first} + 1) as seq
             ), event as (
                 insert into orders.event
                     (user_id, seq, order_id, status, total, currency, version, actor, at, traceparent)
                 select user_id, seq, '{order}', 'paid', 450, 'EUR', 2, 'system', now(), '' from written
             )
             insert into orders.outbox (lane, user_id, seq, created_at)
             select mod(user_id, 8), user_id, seq, now() from written",
            order = order.id
        );
        sqlx::query(sqlx::AssertSqlSafe(written)).execute(&db).await.unwrap();
    };
    // Another relay publishes ann's events for as long as this transaction is open.
    let mut publishing = db.begin().await.unwrap();
    let mut first = 2;
    loop {
        write(&format!("(values ({}::bigint)) as ann (user_id)", ann.id), first).await;
        let locked = sqlx::query("select from orders.outbox where user_id = $1 and seq >= $2 for update")
            .bind(ann.id)
            .bind(first);
        if locked.fetch_all(&mut *publishing).await.unwrap().len() == 2 {
            break;
        }
        // The relay under test was faster.
        first += 2;
    }
    write("generate_series(900001::bigint, 900040) as user_id", 1).await;
    eventually("the events of all others are published", || async { count(&db, "outbox").await == 2 }).await;
    let before = usize::try_from(first - 1).unwrap();
    assert_eq!(
        seqs(&redis, &streams::history_stream(ann.id), &ann).await.len(),
        before,
        "no event overtakes another"
    );
    publishing.rollback().await.unwrap();
    eventually("ann's events are published", || async { count(&db, "outbox").await == 0 }).await;
    for user_id in 900_001..=900_040 {
        let history = read(&redis, &streams::history_stream(user_id)).await;
        assert!(history.iter().map(|(_, event)| event.seq).eq([1, 2]), "{history:?}");
    }
    let all: Vec<i64> = (1..=first + 1).collect();
    assert_eq!(seqs(&redis, &streams::history_stream(ann.id), &ann).await, all);
    assert_eq!(seqs(&redis, &streams::fan_out_stream(ann.id), &ann).await, all);
}

#[tokio::test]
async fn an_event_with_names_of_a_newer_version_is_published_unchanged() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let order = ann.buys(tea, 1).await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    // A replica of a newer version commits an event, and is killed before it publishes it.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "alter table orders.event drop constraint event_actor_check;
         update orders.event_cursor set seq = 2 where user_id = {id};
         insert into orders.event (user_id, seq, order_id, status, previous_status, total, currency, version, actor,
                                   at, traceparent)
         values ({id}, 2, '{order}', 'on_hold', 'picked', 450, 'EUR', 2, 'robot', now(), '');
         insert into orders.outbox (lane, user_id, seq, created_at) values (mod({id}, 8), {id}, 2, now())",
        id = ann.id,
        order = order.id
    )))
    .execute(&db)
    .await
    .unwrap();
    ben.buys(tea, 1).await;
    eventually("ben's event is published", || async {
        seqs(&redis, &streams::history_stream(ben.id), &ben).await == [1]
    })
    .await;
    eventually("ann's is too", || async {
        seqs(&redis, &streams::history_stream(ann.id), &ann).await == [1, 2]
            && seqs(&redis, &streams::fan_out_stream(ann.id), &ann).await == [1, 2]
    })
    .await;
    let (_, event) = read(&redis, &streams::history_stream(ann.id)).await.pop().unwrap();
    let unknown = i32::from(OrderStatus::Unspecified);
    assert_eq!((event.status, event.previous_status), (unknown, Some(unknown)));
    assert_eq!((event.status_word.as_str(), event.previous_status_word.as_str()), ("on_hold", "picked"));
    assert_eq!(ann.events().await.pop(), Some(event), "ListEvents returns the same");
    let step = ann.history(&order.id).await.unwrap().pop().unwrap();
    assert_eq!((step.status, step.actor), (unknown, i32::from(Actor::Unspecified)));
    assert_eq!((step.status_word.as_str(), step.actor_word.as_str()), ("on_hold", "robot"));
}

#[tokio::test]
async fn an_outbox_row_without_an_event_becomes_a_dead_letter_and_delays_no_later_event() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    sqlx::query("insert into orders.outbox (user_id, seq) values ($1, 0)")
        .bind(ann.id)
        .execute(&db)
        .await
        .unwrap();
    ann.buys(tea, 1).await;
    eventually("the event behind it is published", || async {
        seqs(&redis, &streams::history_stream(ann.id), &ann).await == [1]
    })
    .await;
    eventually("the row is a dead letter", || async { count(&db, "outbox_dead_letter").await == 1 }).await;
    assert_eq!(count(&db, "outbox").await, 0);
}

#[tokio::test]
async fn events_stay_pending_while_redis_is_full_and_are_published_once() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    set_max_memory(&redis, "1").await;
    for _ in 0..3 {
        ann.buys(tea, 1).await;
    }
    // Six commands per attempt: more attempts than a faulty history gets.
    eventually("publication was attempted often", || async { out_of_memory_errors(&redis).await >= 40 })
        .await;
    let (waiting, attempts): (i64, i64) = sqlx::query_as(
        "select count(*), coalesce(sum(attempts), 0) from orders.outbox where retry_at is null",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!((waiting, attempts), (3, 0));
    set_max_memory(&redis, "0").await;
    eventually("all are published", || async { count(&db, "outbox").await == 0 }).await;
    assert_eq!(seqs(&redis, &streams::history_stream(ann.id), &ann).await, [1, 2, 3]);
    assert_eq!(seqs(&redis, &streams::fan_out_stream(ann.id), &ann).await, [1, 2, 3]);
    assert_eq!(count(&db, "outbox_dead_letter").await, 0);
}

#[tokio::test]
async fn the_relays_of_two_replicas_publish_the_events_of_a_user_in_order() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 1000).await;
    let (_process, other) = shop.start_reachable_replica().await;
    let buyers = [ann.clone(), ann.at(&other), ben.clone(), ben.at(&other)].map(|person| {
        tokio::spawn(async move {
            for _ in 0..20 {
                person.buys(tea, 1).await;
            }
        })
    });
    for buyer in buyers {
        buyer.await.unwrap();
    }
    let redis = redis(&shop).await;
    for person in [&ann, &ben] {
        let history = streams::history_stream(person.id);
        eventually("all are published", || async { seqs(&redis, &history, person).await.len() == 40 }).await;
        assert_eq!(seqs(&redis, &history, person).await, (1..=40).collect::<Vec<_>>());
        let fanned_out = seqs(&redis, &streams::fan_out_stream(person.id), person).await;
        assert_eq!(fanned_out, (1..=40).collect::<Vec<_>>(), "in order, once");
    }
}

#[tokio::test]
async fn every_transition_reaches_the_streams_in_order() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    for _ in 0..5 {
        for person in [&ann, &ben] {
            let id = person.buys(tea, 1).await.id;
            person.pays(&id).await.unwrap();
        }
    }
    let redis = redis(&shop).await;
    for person in [&ann, &ben] {
        let history = streams::history_stream(person.id);
        eventually("all are published", || async { read(&redis, &history).await.len() == 10 }).await;
        let published = read(&redis, &history).await;
        let numbers: Vec<_> = published.iter().map(|(id, event)| (id.clone(), event.seq)).collect();
        assert_eq!(numbers, (1..=10).map(|seq| (format!("{seq}-0"), seq)).collect::<Vec<_>>());
        let events: Vec<_> = published.into_iter().map(|(_, event)| event).collect();
        assert_eq!(events, person.events().await, "the published events equal the stored ones");
        let fanned_out = read(&redis, &streams::fan_out_stream(person.id)).await;
        let seqs: Vec<_> = fanned_out
            .iter()
            .filter(|(_, event)| event.user_id == person.id)
            .map(|(_, event)| event.seq)
            .collect();
        assert_eq!(seqs, (1..=10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn no_event_is_lost_while_redis_is_down_and_the_service_restarts() {
    let mut shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    shop.redis.kill();
    for _ in 0..20 {
        let started = std::time::Instant::now();
        ann.buys(tea, 1).await;
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "orders go on without Redis");
        let newest = ann.events().await.pop().unwrap();
        ann.cancels(&newest.order_id).await.unwrap();
    }
    shop.stop_order().await;
    let port = shop.redis.port();
    shop.redis = shoppee_kit::testing::RedisServer::start_on(port).await;
    shop.start_order().await;

    let (redis, history) = (redis(&shop).await, streams::history_stream(ann.id));
    eventually("all 40 are there", || async { read(&redis, &history).await.len() == 40 }).await;
    let db = shop.db().await;
    eventually("the outbox is empty", || async {
        let pending: i64 =
            sqlx::query_scalar("select count(*) from orders.outbox").fetch_one(&db).await.unwrap();
        pending == 0
    })
    .await;
}

#[tokio::test]
async fn event_numbers_of_concurrent_orders_have_no_gap() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 30).await;
    // More orders than units: rejected orders must not use numbers.
    let tries: Vec<_> = (0..60)
        .map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(order_request(&[(tea, 1)])).await.is_ok() })
        })
        .collect();
    for attempt in tries {
        attempt.await.unwrap();
    }
    // A starved machine rejects some requests temporarily.
    eventually("all 30 are ordered", || async {
        let _ = ann.orders(order_request(&[(tea, 1)])).await;
        ann.events().await.len() == 30
    })
    .await;
    let seqs: Vec<_> = ann.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=30).collect::<Vec<_>>());

    let page = |after_seq, limit| ann.request(ListEventsRequest { after_seq, limit });
    let answer = ann.service().list_events(page(Some(25), Some(3))).await.unwrap().into_inner();
    assert_eq!(answer.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [26, 27, 28]);
    assert_eq!(answer.last_seq, 30);
    let answer = ann.service().list_events(page(None, None)).await.unwrap().into_inner();
    assert_eq!((answer.events.len(), answer.last_seq), (0, 30));

    let positions = |user_ids| ann.request(GetEventPositionsRequest { user_ids });
    let request = positions(vec![ann.id + 1_000, ann.id, ann.id]);
    let answer = ann.service().get_event_positions(request).await.unwrap().into_inner();
    assert_eq!(answer.last_seqs, [0, 30, 30]);
    let too_many = ann.service().get_event_positions(positions(vec![1; 1_001])).await.unwrap_err();
    assert_eq!(too_many.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_new_user_gets_a_cart() {
    let mut shop = TestShop::start().await;
    let ann = shop.customer("ann").await;
    let db = shop.db().await;
    let has_cart = async |id: i64| {
        let cart: Option<i64> = sqlx::query_scalar("select user_id from orders.cart where user_id = $1")
            .bind(id)
            .fetch_optional(&db)
            .await
            .unwrap();
        cart.is_some()
    };
    eventually("ann has a cart", || has_cart(ann.id)).await;
    shop.stop_order().await;
    let ben = shop.customer("ben").await;
    shop.start_order().await;
    eventually("ben, who registered meanwhile, has one too", || has_cart(ben.id)).await;
}

#[tokio::test]
async fn a_registration_that_cannot_be_applied_blocks_no_later_one() {
    let shop = TestShop::start().await;
    let (redis, db) = (redis(&shop).await, shop.db().await);
    let field_that_is_no_text = (b"\xff".as_slice(), b"\xff".as_slice());
    let () = redis.xadd(streams::USERS_STREAM, false, None, "*", field_that_is_no_text).await.unwrap();
    let () = redis
        .xadd(streams::USERS_STREAM, false, None, "*", (streams::MESSAGE_FIELD, "no message"))
        .await
        .unwrap();
    // A user whose cart PostgreSQL rejects.
    sqlx::query("alter table orders.cart add constraint no_cart check (user_id <> 77)")
        .execute(&db)
        .await
        .unwrap();
    let message = UserRegistered { user_id: 77, ..UserRegistered::default() }.encode_to_vec();
    let () = redis
        .xadd(streams::USERS_STREAM, false, None, "*", (streams::MESSAGE_FIELD, message.as_slice()))
        .await
        .unwrap();
    let ben = shop.customer("ben").await;
    eventually("ben, who registered after them, has a cart", || async {
        let carts: i64 = sqlx::query_scalar("select count(*) from orders.cart where user_id = $1")
            .bind(ben.id)
            .fetch_one(&db)
            .await
            .unwrap();
        carts == 1
    })
    .await;
}
