//! Tests of batch updates.

use std::time::{Duration, Instant};

use shoppee_kit::testing::eventually;
use shoppee_proto::auth::v1::LogoutAllRequest;
use shoppee_proto::product::v1::{
    BatchUpdateProductsRequest, BatchUpdateProductsResponse, CreateProductRequest, OnError, ProductChange,
    ProductStatus, RowStatus,
};
use sqlx::AssertSqlSafe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::test_shop::{TestShop, fields, order, reason};

impl TestShop {
    async fn batch(
        &self,
        on_error: OnError,
        items: Vec<ProductChange>,
    ) -> Result<BatchUpdateProductsResponse, Status> {
        let request = BatchUpdateProductsRequest { on_error: on_error.into(), items, ..Default::default() };
        let answer = self.products.clone().batch_update_products(self.admin(request)).await;
        answer.map(tonic::Response::into_inner)
    }
}

fn row(id: i64) -> ProductChange {
    ProductChange { id: Some(id), ..ProductChange::default() }
}

fn by_sku(sku: &str) -> ProductChange {
    ProductChange { sku: Some(sku.to_owned()), ..ProductChange::default() }
}

/// Returns the status and the error code of each row.
fn outcomes(answer: &BatchUpdateProductsResponse) -> Vec<(RowStatus, &str)> {
    let indices: Vec<i64> = answer.results.iter().map(|result| result.index).collect();
    assert_eq!(indices, (0..).take(indices.len()).collect::<Vec<i64>>());
    let rows = answer.results.iter();
    rows.map(|row| (row.status(), row.error.as_ref().map_or("", |error| error.code.as_str()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_has_its_own_outcome() {
    let shop = TestShop::start().await;
    let mut ids = Vec::new();
    for at in 0..6 {
        ids.push(shop.product(&format!("p{at}"), 5).await.id);
    }
    let category = shop.category("toys", None).await.id;
    let items = vec![
        ProductChange { price: Some(1), category_id: Some(category), ..row(ids[0]) },
        ProductChange { stock_delta: Some(-6), ..row(ids[1]) },
        ProductChange { stock_delta: Some(-5), name: Some("Sold".to_owned()), ..by_sku("p2") },
        ProductChange { price: Some(1000), stock: Some(5), version: Some(1), ..row(ids[3]) },
        ProductChange { price: Some(2), version: Some(7), ..row(ids[4]) },
        ProductChange { price: Some(2), ..row(999) },
        ProductChange { price: Some(-1), ..row(ids[5]) },
        // An earlier row names the same product; its outcome does not matter.
        ProductChange { price: Some(3), ..by_sku("p5") },
        ProductChange { price: Some(3), ..row(ids[0]) },
        ProductChange { price: Some(3), ..ProductChange::default() },
        ProductChange { sku: Some("p4".to_owned()), ..row(ids[4]) },
        ProductChange { category_id: Some(99), ..by_sku("unknown") },
        ProductChange { stock: Some(1), stock_delta: Some(1), ..row(ids[4]) },
    ];
    let answer = shop.batch(OnError::Continue, items).await.unwrap();
    let failed = |code| (RowStatus::Failed, code);
    assert_eq!(
        outcomes(&answer),
        [
            (RowStatus::Updated, ""),
            failed("out_of_stock"),
            (RowStatus::Updated, ""),
            (RowStatus::Unchanged, ""),
            failed("version_mismatch"),
            failed("not_found"),
            failed("validation_failed"),
            failed("validation_failed"),
            failed("validation_failed"),
            failed("validation_failed"),
            failed("validation_failed"),
            failed("not_found"),
            failed("validation_failed"),
        ]
    );
    assert_eq!((answer.updated, answer.failed), (2, 10));
    let error = |index: usize| answer.results[index].error.clone().unwrap();
    assert_eq!((error(1).available, error(4).current_version), (Some(5), Some(1)));
    assert_eq!((error(6).field.as_deref(), error(5).field), (Some("price"), None));
    assert_eq!((answer.results[0].version, answer.results[3].version), (Some(2), Some(1)));
    assert_eq!((answer.results[2].id, answer.results[5].id), (Some(ids[2]), None));
    let changed = shop.get(ids[0]).await;
    assert_eq!((changed.price, changed.category.map(|category| category.id)), (1, Some(category)));
    let sold = shop.get(ids[2]).await;
    assert_eq!((sold.stock, sold.name.as_str(), sold.price), (0, "Sold", 1000));
    assert_eq!(shop.get(ids[4]).await.version, 1);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_batch_applies_nothing() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("a", 5).await, shop.product("b", 5).await);
    for invalid in [
        ProductChange { stock_delta: Some(-6), ..row(b.id) },
        ProductChange { version: Some(9), ..row(b.id) },
        ProductChange { price: Some(-1), ..row(b.id) },
        ProductChange { category_id: Some(99), ..row(b.id) },
        row(999),
        row(a.id),
    ] {
        let valid = ProductChange { price: Some(1), stock_delta: Some(1), ..row(a.id) };
        let answer = shop.batch(OnError::Abort, vec![valid, invalid]).await.unwrap();
        assert_eq!((answer.updated, answer.failed), (0, 1));
        assert_eq!(answer.results[0].status(), RowStatus::Skipped);
        assert_eq!(answer.results[0].id, Some(a.id));
        assert_eq!(answer.results[1].status(), RowStatus::Failed);
        assert_eq!((shop.get(a.id).await, shop.get(b.id).await), (a.clone(), b.clone()));
    }
    let archived = Some(ProductStatus::Archived.into());
    let rows = vec![
        ProductChange { price: Some(1), stock_delta: Some(1), ..row(a.id) },
        ProductChange { status: archived, ..row(b.id) },
    ];
    let answer = shop.batch(OnError::Abort, rows).await.unwrap();
    assert_eq!((answer.updated, answer.failed), (2, 0));
    assert_eq!(shop.get(a.id).await.stock, 6);
    assert_eq!(shop.get(b.id).await.status(), ProductStatus::Archived);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_out_of_bounds_is_refused() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 5).await.id;
    assert_eq!(fields(shop.batch(OnError::Continue, vec![row(id); 10_001]).await), ["items"]);
    assert_eq!(reason(shop.batch(OnError::Continue, vec![row(id); 10_001]).await), "VALIDATION_FAILED");
    assert_eq!(reason(shop.batch(OnError::Unspecified, vec![row(id)]).await), "INVALID_REQUEST");
    assert_eq!(shop.batch(OnError::Abort, Vec::new()).await.unwrap().results, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_ten_thousand_rows_runs_beside_holds() {
    let shop = TestShop::start().await;
    // Loaded by SQL, as migrations/0001_catalogue.sql describes.
    for load in [
        "insert into product.product (sku, name, price, in_stock, created_at, updated_at)
         select 'bulk-' || n, 'Bulky gadget ' || n, 100, true, now(), now() from generate_series(1, 10000) n",
        "insert into product.stock (product_id, available) select id, 50 from product.product",
        "insert into product.stock_ledger (product_id, kind, quantity, at)
         select id, 'supply', 50, now() from product.product",
    ] {
        sqlx::query(load).execute(&shop.pool).await.expect("loaded");
    }
    let first = shop.count("select min(id) from product.product").await;
    let rows = (0..10_000).rev().map(|at| ProductChange {
        price: Some(200),
        stock_delta: (at % 2 == 0).then_some(7),
        ..row(first + at)
    });
    let rows: Vec<ProductChange> = rows.collect();
    let holds = async {
        for at in 0..40 {
            shop.hold(order(), [(first + at, 1), (first + 9000 + at, 2)]).await.expect("held");
        }
    };
    let ((), answer) = tokio::join!(holds, shop.batch(OnError::Continue, rows.clone()));
    let answer = answer.unwrap();
    assert_eq!((answer.updated, answer.failed), (10_000, 0));
    let answer = shop.batch(OnError::Abort, rows).await.unwrap();
    assert_eq!(answer.updated, 5000);
    assert_eq!(shop.count("select count(*) from product.product where price = 200").await, 10_000);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_its_batches_in_order() {
    let shop = TestShop::start().await;
    let id = shop
        .create(CreateProductRequest {
            sku: "a".to_owned(),
            name: "a".to_owned(),
            ..CreateProductRequest::default()
        })
        .await
        .id;
    let batches = (1..=5).map(move |price| BatchUpdateProductsRequest {
        on_error: OnError::Continue.into(),
        items: vec![ProductChange { price: Some(price), version: Some(price), ..row(id) }],
        idempotency_key: None,
    });
    let request = shop.admin(tokio_stream::iter(batches.collect::<Vec<_>>()));
    let answers = shop.products.clone().batch_update_products_stream(request).await.unwrap();
    let mut answers = answers.into_inner();
    let mut versions = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        versions.push(answer.results[0].version);
    }
    assert_eq!(versions, [Some(2), Some(3), Some(4), Some(5), Some(6)]);

    // A refused batch ends the stream.
    let invalid = vec![BatchUpdateProductsRequest::default(); 2];
    let request = shop.admin(tokio_stream::iter(invalid));
    let answers = shop.products.clone().batch_update_products_stream(request).await.unwrap();
    assert_eq!(reason(answers.into_inner().message().await), "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_an_error_at_shutdown() {
    let shop = TestShop::start().await;
    let (_batches, received) = mpsc::channel(1);
    let request = shop.admin(ReceiverStream::new(received));
    let answers = shop.products.clone().batch_update_products_stream(request).await.unwrap();
    let (mut answers, stops) = (answers.into_inner(), shop.process.stop());
    let (answer, ()) = tokio::join!(answers.message(), stops);
    assert_eq!(reason(answer), "UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_admin_signs_out() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 5).await.id;
    let (batches, received) = mpsc::channel(1);
    let request = shop.admin(ReceiverStream::new(received));
    let answers = shop.products.clone().batch_update_products_stream(request).await.unwrap();
    let mut answers = answers.into_inner();
    shop.accounts.clone().logout_all(shop.admin(LogoutAllRequest {})).await.expect("signs out");
    let signed_out = Instant::now();
    let refused = loop {
        let items = vec![ProductChange { stock_delta: Some(1), ..row(id) }];
        batches
            .send(BatchUpdateProductsRequest {
                on_error: OnError::Continue.into(),
                items,
                ..Default::default()
            })
            .await
            .unwrap();
        match answers.message().await {
            Ok(_) => assert!(signed_out.elapsed() < Duration::from_secs(1), "goes on"),
            Err(refused) => break refused,
        }
    };
    assert_eq!(reason(Err::<(), _>(refused)), "SESSION_REVOKED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_fails_if_its_sku_has_moved_to_another_product() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("x", 5).await.id, shop.product("z", 5).await.id);
    let mut transaction = shop.pool.begin().await.unwrap();
    for change in [
        format!("update product.product set sku = 'y' where id = {a}"),
        format!("update product.product set sku = 'x' where id = {b}"),
    ] {
        sqlx::query(AssertSqlSafe(change)).execute(&mut *transaction).await.unwrap();
    }
    // The row is resolved and waits for the lock.
    let row = vec![ProductChange { price: Some(7), ..by_sku("x") }];
    let waiting = "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'";
    let (answer, ()) = tokio::join!(shop.batch(OnError::Continue, row), async {
        eventually("it waits", || async { shop.count(waiting).await == 1 }).await;
        transaction.commit().await.unwrap();
    });
    assert_eq!(outcomes(&answer.unwrap()), [(RowStatus::Failed, "not_found")]);
    assert_eq!(shop.get(a).await.price, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_clears_the_listed_fields() {
    let shop = TestShop::start().await;
    let category = shop.category("toys", None).await.id;
    let create = |sku: &str| CreateProductRequest {
        sku: sku.to_owned(),
        name: sku.to_owned(),
        description: Some("Gives light.".to_owned()),
        category_id: Some(category),
        ..CreateProductRequest::default()
    };
    let (lamp, other) = (shop.create(create("lamp")).await.id, shop.create(create("other")).await.id);
    let clear = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
    let emptied = ProductChange { clear: clear(&["category_id", "description"]), ..row(lamp) };
    let renamed = ProductChange { name: Some("Other".to_owned()), ..row(other) };
    let answer = shop.batch(OnError::Continue, vec![emptied.clone(), renamed]).await.unwrap();
    assert_eq!(outcomes(&answer), [(RowStatus::Updated, ""), (RowStatus::Updated, "")]);
    let (product, other) = (shop.get(lamp).await, shop.get(other).await);
    assert_eq!((product.category, product.description.as_str()), (None, ""));
    assert_eq!(
        (other.category.map(|category| category.id), other.description.as_str()),
        (Some(category), "Gives light.")
    );

    let clearing = |fields: &[&str]| ProductChange { clear: clear(fields), ..row(lamp) };
    let contradictory = ProductChange { category_id: Some(category), ..clearing(&["category_id"]) };
    let rows = [emptied, clearing(&["price"]), contradictory];
    for (row, expected) in rows.into_iter().zip(["", "validation_failed", "validation_failed"]) {
        let answer = shop.batch(OnError::Continue, vec![row]).await.unwrap();
        assert_eq!(outcomes(&answer)[0].1, expected);
    }
}
