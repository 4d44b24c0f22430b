//! Tests of idempotency keys: a write under a key has one effect, however often it is sent.

use futures_util::future::join_all;
use shoppee_proto::product::v1::{
    AdjustStockRequest, BatchUpdateProductsRequest, CreateCategoryRequest, CreateProductRequest, OnError,
    Product, ProductChange, RowStatus, UpdateCategoryRequest, UpdateProductRequest,
};
use sqlx::AssertSqlSafe;
use tonic::{Response, Status};

use crate::test_shop::{TestShop, reason};

fn is_replay<T>(answer: &Response<T>) -> bool {
    answer.metadata().get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// Sends a request twice and asserts that the second response is a replay of the first.
macro_rules! send_twice {
    ($shop:expr, $method:ident($request:expr)) => {{
        let send = async || $shop.products.clone().$method($shop.admin($request)).await.expect("answered");
        let (first, second) = (send().await, send().await);
        assert!(!is_replay(&first) && is_replay(&second), stringify!($method));
        assert_eq!(first.get_ref(), second.get_ref(), stringify!($method));
        first.into_inner()
    }};
}

fn mask(path: &str) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: vec![path.to_owned()] }
}

impl TestShop {
    async fn add_stock(&self, id: i64, delta: i64, key: &str) -> Result<Response<Product>, Status> {
        let (reason, idempotency_key) = ("delivery".to_owned(), Some(key.to_owned()));
        let request = AdjustStockRequest { id, delta, reason, idempotency_key };
        self.products.clone().adjust_stock(self.admin(request)).await
    }

    async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect("executed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_write_under_one_key_has_one_effect() {
    let shop = TestShop::start().await;
    let new = || CreateProductRequest {
        sku: "lamp".to_owned(),
        name: "Lamp".to_owned(),
        price: 100,
        stock: 5,
        idempotency_key: Some("a".to_owned()),
        ..CreateProductRequest::default()
    };
    let lamp = send_twice!(shop, create_product(new()));
    let change = || UpdateProductRequest {
        id: lamp.id,
        stock: Some(7),
        update_mask: Some(mask("stock")),
        expected_version: Some(1),
        idempotency_key: Some("a".to_owned()),
        ..UpdateProductRequest::default()
    };
    send_twice!(shop, update_product(change()));
    let adjust = || AdjustStockRequest {
        id: lamp.id,
        delta: 3,
        reason: "delivery".to_owned(),
        idempotency_key: Some("a".to_owned()),
    };
    assert_eq!(send_twice!(shop, adjust_stock(adjust())).stock, 10);
    assert_eq!(shop.stock_of(lamp.id).await, 10);
    let category = || CreateCategoryRequest {
        slug: "lamps".to_owned(),
        name: "Lamps".to_owned(),
        parent_id: None,
        idempotency_key: Some("a".to_owned()),
    };
    let lamps = send_twice!(shop, create_category(category()));
    let rename = || UpdateCategoryRequest {
        id: lamps.id,
        name: Some("Lights".to_owned()),
        update_mask: Some(mask("name")),
        idempotency_key: Some("a".to_owned()),
        ..UpdateCategoryRequest::default()
    };
    send_twice!(shop, update_category(rename()));
    let batch = |on_error: OnError, word: &str| BatchUpdateProductsRequest {
        on_error: on_error.into(),
        items: vec![
            ProductChange { id: Some(lamp.id), stock_delta: Some(1), ..ProductChange::default() },
            ProductChange { id: Some(999), stock_delta: Some(1), ..ProductChange::default() },
        ],
        idempotency_key: Some(word.to_owned()),
    };
    assert_eq!(send_twice!(shop, batch_update_products(batch(OnError::Continue, "a"))).updated, 1);
    assert_eq!(send_twice!(shop, batch_update_products(batch(OnError::Abort, "b"))).updated, 0);
    assert_eq!(shop.stock_of(lamp.id).await, 11);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_key_is_refused_for_another_request_for_a_day() {
    let shop = TestShop::start().await;
    let (id, other) = (shop.product("a", 5).await.id, shop.product("b", 5).await.id);
    // A refused request does not use up the key.
    assert_eq!(reason(shop.add_stock(id, -6, "k").await), "OUT_OF_STOCK");
    shop.add_stock(id, 2, "k").await.expect("added");
    assert_eq!(reason(shop.add_stock(id, 3, "k").await), "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(reason(shop.add_stock(other, 2, "k").await), "IDEMPOTENCY_KEY_REUSED");
    for invalid in ["", "a b", "é"] {
        assert_eq!(reason(shop.add_stock(id, 2, invalid).await), "INVALID_REQUEST", "{invalid}");
    }
    shop.execute("update product.idempotency set created_at = created_at - interval '25 hours'").await;
    shop.add_stock(id, 3, "k").await.expect("another day");
    assert_eq!(shop.stock_of(id).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_under_one_key_have_one_effect() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 0).await.id;
    let answers = join_all((0..20).map(|_| shop.add_stock(id, 1, "k"))).await;
    let (mut first, mut replays) = (0, 0);
    for answer in answers {
        match answer {
            Ok(answer) if is_replay(&answer) => replays += 1,
            Ok(_) => first += 1,
            Err(status) => assert_eq!(reason(Err::<(), _>(status)), "REQUEST_IN_PROGRESS"),
        }
    }
    assert_eq!(first, 1);
    assert!(replays > 0);
    assert_eq!(shop.stock_of(id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_incomplete_batch_applies_each_row_once() {
    const ROWS: i64 = 1200;
    let shop = TestShop::start().await;
    shop.execute(&format!(
        "insert into product.product (id, sku, name, price, created_at, updated_at)
         select n, 'p-' || n, 'P', 100, now(), now() from generate_series(1, {ROWS}) n;
         insert into product.stock (product_id, available) select n, 0 from generate_series(1, {ROWS}) n;"
    ))
    .await;
    let send = async || {
        let items = (1..=ROWS).map(|id| ProductChange {
            id: Some(id),
            stock_delta: Some(1),
            ..ProductChange::default()
        });
        let request = BatchUpdateProductsRequest {
            on_error: OnError::Continue.into(),
            items: items.collect(),
            idempotency_key: Some("k".to_owned()),
        };
        shop.products.clone().batch_update_products(shop.admin(request)).await
    };
    let total = "select sum(available)::bigint from product.stock";
    // The last chunk waits for a locked row until its timeout.
    let mut blocker = shop.pool.begin().await.expect("begun");
    sqlx::query("select from product.stock where product_id = $1 for update")
        .bind(ROWS)
        .execute(&mut *blocker)
        .await
        .expect("locked");
    let half = send().await.expect("answered").into_inner();
    let unavailable = half.results.iter().filter(|row| row.status() == RowStatus::Failed).count();
    assert!((1..1200).contains(&unavailable), "{unavailable}");
    assert_eq!(shop.count(total).await, half.updated);
    blocker.rollback().await.expect("rolled back");

    // As after a crash: the lease exists without an answer, and expires.
    let claimed = |until: &str| {
        format!(
            "update product.idempotency set claim = gen_random_uuid(), claimed_until = now() + interval '{until}'"
        )
    };
    shop.execute(&claimed("10 seconds")).await;
    assert_eq!(reason(send().await), "REQUEST_IN_PROGRESS");
    shop.execute(&claimed("-1 second")).await;
    let whole = send().await.expect("answered");
    assert!(!is_replay(&whole));
    assert_eq!((whole.get_ref().updated, shop.count(total).await), (ROWS, ROWS), "each once");
    let again = send().await.expect("answered");
    assert!(is_replay(&again));
    assert_eq!(again.get_ref(), whole.get_ref());
    assert_eq!(shop.count(total).await, ROWS);
    assert_eq!(shop.count("select count(*) from product.batch_progress").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_saved_answers_of_a_user_are_bounded() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 0).await.id;
    shop.add_stock(id, 1, "k").await.expect("added");
    shop.execute(
        "insert into product.idempotency (user_id, scope, key, fingerprint)
         select user_id, scope, 'old-' || n, fingerprint
         from product.idempotency, generate_series(1, 700) n",
    )
    .await;
    shop.add_stock(id, 1, "new").await.expect("added");
    assert_eq!(shop.count("select count(*) from product.idempotency").await, 500);
    assert!(is_replay(&shop.add_stock(id, 1, "new").await.expect("answered")), "the newest is kept");
}
