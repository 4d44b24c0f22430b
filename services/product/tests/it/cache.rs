//! What is kept in memory and in Redis is true: a change shows in every process within a second, whatever becomes of
//! Redis, and nobody is shown an older state after a newer one.

use std::time::{Duration, Instant};

use fred::{
    clients::Client,
    interfaces::{ClientLike as _, HashesInterface as _},
    types::CustomCommand,
};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use shoppee_kit::{
    client,
    testing::{Stalls, eventually},
};
use shoppee_proto::product::v1::{
    CreateCategoryRequest, CreateProductRequest, GetProductRequest, Product, SearchProductsRequest,
    UpdateCategoryRequest, UpdateProductRequest,
};
use tonic::Code;

use crate::{
    lookup::{look, remembers},
    shop::{Products, Shop, order},
};

/// In which a change must show.
const SOON: Duration = Duration::from_secs(1);
const UPDATES: i64 = 40;
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until it is as wanted; the time until then, and every version that was seen on the way.
async fn shows(products: &Products, id: i64, as_wanted: impl Fn(&Product) -> bool) -> (Duration, Vec<i64>) {
    let (began, mut versions) = (Instant::now(), Vec::new());
    loop {
        let product = look(products, id).await.expect("is shown");
        versions.push(product.version);
        if as_wanted(&product) {
            return (began.elapsed(), versions);
        }
        assert!(began.elapsed() < 5 * SOON, "never: {product:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Shop {
    async fn reprices(&self, products: &Products, id: i64, price: i64) {
        let mask = prost_types::FieldMask { paths: vec!["price".to_owned()] };
        let request = UpdateProductRequest {
            id,
            price: Some(price),
            update_mask: Some(mask),
            ..UpdateProductRequest::default()
        };
        products.clone().update_product(self.admin(request)).await.expect("updated");
    }
}

/// Changes a price again and again, here and there; each change is seen at once where it was made, and soon
/// elsewhere.
async fn stays_true(shop: &Shop, there: &Products, id: i64, prices: std::ops::Range<i64>) {
    let (mut newest, stalls) = (0, Stalls::watch());
    for price in prices {
        let (writer, reader) = if price % 2 == 0 { (&shop.products, there) } else { (there, &shop.products) };
        shop.reprices(writer, id, price).await;
        assert_eq!(look(writer, id).await.expect("is shown").price, price, "where it was written");
        let (after, versions) = shows(reader, id, |product| product.price == price).await;
        assert!(after < SOON + stalls.allowance(), "{price} showed after {after:?}");
        assert!(versions.is_sorted() && versions[0] >= newest, "an older one after a newer: {versions:?}");
        newest = versions[versions.len() - 1];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_everywhere_within_a_second() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let there = replica.products.clone();
    let id = shop.product("a", 10).await.id;
    stays_true(&shop, &there, id, 0..UPDATES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_redis_dies_and_comes_back_empty() {
    let mut shop = Shop::open().await;
    let replica = shop.replica().await;
    let id = shop.product("a", 10).await.id;
    stays_true(&shop, &replica.products, id, 0..10).await;
    let port = shop.redis.port();
    shop.redis.kill();
    stays_true(&shop, &replica.products, id, 10..30).await;
    shop.redis = shoppee_kit::testing::RedisServer::start_on(port).await;
    stays_true(&shop, &replica.products, id, 30..60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_redis_is_wiped() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let id = shop.product("a", 10).await.id;
    let redis = shop.redis.client().await;
    for round in 0..6 {
        stays_true(&shop, &replica.products, id, 10 * round..10 * round + 5).await;
        let () = redis.flushall(false).await.unwrap();
        stays_true(&shop, &replica.products, id, 10 * round + 5..10 * round + 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_redis_is_frozen() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let id = shop.product("a", 10).await.id;
    stays_true(&shop, &replica.products, id, 0..10).await;
    let pid = Pid::from_raw(i32::try_from(shop.redis.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    stays_true(&shop, &replica.products, id, 10..30).await;
    kill_process(pid, Signal::CONT).unwrap();
    stays_true(&shop, &replica.products, id, 30..50).await;
}

/// Returns the epoch that has begun in Redis.
async fn epoch(redis: &Client) -> Option<String> {
    redis.hget("product:log", "epoch").await.expect("an answer")
}

/// Returns the position up to which Redis knows of changes.
async fn position(redis: &Client) -> Option<i64> {
    redis.hget("product:log", "position").await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_remembers_an_older_state_is_put_right() {
    let shop = Shop::open().await;
    let id = shop.product("a", 10).await.id;
    let redis = shop.redis.client().await;
    eventually("an epoch has begun", || async { epoch(&redis).await.is_some() }).await;
    let key = format!("product:{}:{id}", epoch(&redis).await.expect("begun"));
    // Read from PostgreSQL by a process that has not seen it, and so kept in Redis.
    let reader = shop.replica().await;
    let kept = || async { redis.hget::<Option<String>, _, _>(&key, "answer").await.unwrap() };
    eventually("it is kept in Redis", || async {
        look(&reader.products, id).await.unwrap();
        kept().await.is_some_and(|kept| !kept.is_empty())
    })
    .await;
    let (old, known) = (kept().await, position(&redis).await);
    let revision: i64 = redis.hget(&key, "revision").await.unwrap();

    shop.reprices(&shop.products, id, 77).await;
    eventually("Redis hears of it", || async { kept().await != old }).await;
    eventually("and how far it knows", || async { position(&redis).await > known }).await;
    // As after a restart from yesterday's snapshot.
    let () =
        redis.hset(&key, vec![("revision", revision.to_string()), ("answer", old.unwrap())]).await.unwrap();
    let () = redis.hset("product:log", ("position", known.unwrap())).await.unwrap();
    let restarted = shop.replica().await;
    assert_eq!(look(&restarted.products, id).await.unwrap().price, 77);
    eventually("Redis is right again", || async {
        redis.hget::<i64, _, _>(&key, "revision").await.unwrap() > revision
    })
    .await;
}

/// How many scripts Redis has run.
async fn scripts_run(redis: &Client) -> i64 {
    let stats = CustomCommand::new_static("INFO", None, false);
    let stats: String = redis.custom(stats, vec!["commandstats"]).await.expect("an answer");
    let scripts = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    scripts.and_then(|line| line.split(',').next()).expect("some").parse().expect("a number")
}

/// While it lasts, the numbers after its first are not settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_is_no_work_for_redis() {
    let shop = Shop::open().await;
    let mut ids = Vec::new();
    for at in 0..100 {
        ids.push(shop.product(&format!("p{at}"), 10).await.id);
    }
    let mut long = shop.pool.begin().await.unwrap();
    let change = "insert into product.change (product_id, at) values ($1, now())";
    sqlx::query(change).bind(ids[0]).execute(&mut *long).await.unwrap();
    join_all(ids.iter().map(|id| shop.reprices(&shop.products, *id, 7))).await;
    tokio::time::sleep(SOON).await;
    let redis = shop.redis.client().await;
    let before = scripts_run(&redis).await;
    tokio::time::sleep(2 * SOON).await;
    // Each look, of which there are ten, notes how far it went, and no more.
    let run = scripts_run(&redis).await - before;
    assert!((1..200).contains(&run), "{run}");
    // And no reading either: each look asks for what is missing, and not for all that came after it again.
    let read = || {
        shop.count(
            "select sum(idx_tup_read)::bigint from pg_stat_user_indexes
         where indexrelname in ('change_pkey', 'stock_ledger_pkey')",
        )
    };
    let before = read().await;
    tokio::time::sleep(2 * SOON).await;
    let entries = read().await - before;
    // Each look at all would read 100. PostgreSQL counts late: the reading of one such look before may be among these.
    assert!(entries < 500, "{entries} entries were read by ten looks");
    // Unless Redis has forgotten that it was told.
    let () = redis.flushall(false).await.unwrap();
    let before = scripts_run(&redis).await;
    tokio::time::sleep(SOON).await;
    let run = scripts_run(&redis).await - before;
    assert!((100..300).contains(&run), "{run}");
    long.rollback().await.unwrap();
}

/// Products that a load brings, and the movements of each.
const LOADED: i64 = 20_000;
const MOVEMENTS: i64 = 6;

/// Loads products as the comment in 0001_catalogue.sql says, in one transaction that also changes a product.
async fn load(shop: &Shop, repriced: i64) {
    let load = format!(
        "begin;
         insert into product.product (id, sku, name, price, in_stock, created_at, updated_at)
         select n, 'load-' || n, 'Loaded', 100, true, now(), now() from generate_series(1000, {last}) n;
         insert into product.stock (product_id, available)
         select n, {MOVEMENTS} from generate_series(1000, {last}) n;
         insert into product.stock_ledger (product_id, kind, quantity, at)
         select n, 'supply', 1, now() from generate_series(1000, {last}) n, generate_series(1, {MOVEMENTS});
         update product.product set price = 4242, version = version + 1 where id = {repriced};
         insert into product.change (product_id, at) values ({repriced}, now());
         commit;",
        last = 999 + LOADED,
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(load)).execute(&shop.pool).await.expect("loaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_load_of_many_products_memory_and_redis_are_believed_within_seconds_and_nothing_old_is_shown()
{
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let redis = shop.redis.client().await;
    let (id, other) = (shop.product("a", 10).await.id, shop.product("b", 10).await.id);
    remembers(&shop.products, &shop.memory, id).await;
    remembers(&replica.products, &replica.memory, other).await;
    eventually("an epoch has begun", || async { epoch(&redis).await.is_some() }).await;
    let (old_epoch, before) = (epoch(&redis).await, scripts_run(&redis).await);
    load(&shop, id).await;
    let (loaded, stalls) = (Instant::now(), Stalls::watch());
    for products in [&shop.products, &replica.products] {
        // The statement of the load may be seen a moment before its transaction is.
        let (after, _) = shows(products, id, |product| product.price == 4242).await;
        assert!(after < SOON + stalls.allowance(), "showed after {after:?}");
    }
    for (products, memory) in [(&shop.products, &shop.memory), (&replica.products, &replica.memory)] {
        remembers(products, memory, 1000).await;
        remembers(products, memory, id).await;
    }
    assert!(loaded.elapsed() < 10 * SOON, "memory was believed after {:?}", loaded.elapsed());
    eventually("another epoch has begun", || async { epoch(&redis).await != old_epoch }).await;
    let began = epoch(&redis).await.expect("begun");
    let key = |id: i64| format!("product:{began}:{id}");
    // A process that knows nothing reads from PostgreSQL, and keeps it in Redis for the others.
    let cold = shop.replica().await;
    eventually("it is kept in Redis", || async {
        for id in [id, 2000, 2001] {
            look(&cold.products, id).await.expect("is shown");
        }
        redis.hget::<Option<String>, _, _>(key(2001), "answer").await.unwrap().is_some()
    })
    .await;
    let run = scripts_run(&redis).await - before;
    assert!(run < LOADED / 20, "a load of {LOADED} is one new epoch, and not {run} reports");
    // And from now on all goes on as before.
    stays_true(&shop, &replica.products, id, 0..4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_at_rest_takes_no_transaction_ids() {
    let shop = Shop::open().await;
    remembers(&shop.products, &shop.memory, shop.product("a", 10).await.id).await;
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let balanced = "select count(*) from product.stock_checkpoint
                    where ledger_id = (select max(id) from product.stock_ledger)";
    eventually("the ledger is in the balances", || async { shop.count(balanced).await == 1 }).await;
    // The ids are those of the whole server, whose autovacuum takes some at times.
    eventually("in three seconds fewer than five transaction ids are taken", || async {
        let before = shop.count(next).await;
        tokio::time::sleep(3 * SOON).await;
        shop.count(next).await - before < 5
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_shows_where_it_was_looked_for_before() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let there = replica.products.clone();
    let next = shop.product("a", 1).await.id + 1;
    for products in [&shop.products, &there] {
        assert_eq!(look(products, next).await.unwrap_err().code(), Code::NotFound);
    }
    // Without stock: there is no movement to be noticed by.
    assert_eq!(shop.product("b", 0).await.id, next);
    assert!(look(&shop.products, next).await.is_ok());
    let began = Instant::now();
    while look(&there, next).await.is_err() {
        assert!(began.elapsed() < SOON, "not there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_of_stock_and_names_of_categories_show_too() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let there = replica.products.clone();
    let category = CreateCategoryRequest {
        slug: "l".to_owned(),
        name: "Lamps".to_owned(),
        ..CreateCategoryRequest::default()
    };
    let category =
        shop.products.clone().create_category(shop.admin(category)).await.expect("created").into_inner();
    let request = CreateProductRequest {
        sku: "a".to_owned(),
        name: "A".to_owned(),
        price: 1,
        stock: 10,
        category_id: Some(category.id),
        ..CreateProductRequest::default()
    };
    let id = shop.create(request).await.id;
    for products in [&shop.products, &there] {
        assert_eq!(look(products, id).await.unwrap().stock, 10);
    }
    shop.hold(order(), [(id, 4)]).await.unwrap();
    for products in [&shop.products, &there] {
        let (after, _) = shows(products, id, |product| product.stock == 6).await;
        assert!(after < SOON, "stock showed after {after:?}");
    }
    let renamed = UpdateCategoryRequest {
        id: category.id,
        name: Some("Lights".to_owned()),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".to_owned()] }),
        ..UpdateCategoryRequest::default()
    };
    shop.products.clone().update_category(shop.admin(renamed)).await.expect("renamed");
    for products in [&shop.products, &there] {
        let named =
            |product: &Product| product.category.as_ref().is_some_and(|category| category.name == "Lights");
        let (after, _) = shows(products, id, named).await;
        assert!(after < SOON, "name showed after {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_ask_for_one_product_ask_the_database_once() {
    let shop = Shop::open().await;
    shop.product("a", 1).await;
    let replica = shop.replica().await;
    // Its index is built by reading products too, and its memory is believed some moments after the start.
    let search = SearchProductsRequest { q: "a".to_owned(), ..SearchProductsRequest::default() };
    eventually("the index is built", || async {
        replica
            .products
            .clone()
            .search_products(search.clone())
            .await
            .is_ok_and(|found| found.get_ref().total == 1)
    })
    .await;
    remembers(&replica.products, &replica.memory, shop.product("b", 1).await.id).await;
    let id = shop.product("c", 1).await.id;
    let (cold, stalls) = (replica.products.clone(), Stalls::watch());
    let () = shop.redis.client().await.flushall(false).await.unwrap();
    let mut holding = shop.pool.begin().await.unwrap();
    // Of all that goes on, only what reads a product waits for this.
    sqlx::query("lock table product.category in access exclusive mode").execute(&mut *holding).await.unwrap();
    // None of the thousand is in a hurry, however busy the machine is.
    let all = join_all((0..1000).map(|_| {
        let (mut cold, request) = (cold.clone(), client::request(GetProductRequest { id }, None, PATIENCE));
        async move { cold.get_product(request).await }
    }));
    let waiting = async {
        let count = async || -> i64 {
            sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database()
                 and wait_event_type = 'Lock' and query like '%product.product%'",
            )
            // Not in the transaction, which sees the activity of its first look for ever.
            .fetch_one(&shop.pool)
            .await
            .unwrap()
        };
        while count().await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Others would come at the same time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let waiting = count().await;
        holding.commit().await.unwrap();
        waiting
    };
    let (answers, waiting) = tokio::join!(all, waiting);
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(refused.is_empty(), "{} of them: {:?}", refused.len(), refused.first());
    // Where the process stalls, its memory is not believed for a moment.
    let most = if stalls.allowance().is_zero() { 1 } else { 3 };
    assert!((1..=most).contains(&waiting), "{waiting} of a thousand asked");
}
