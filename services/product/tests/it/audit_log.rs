//! The audit log: each act of an admin or a service on the catalogue has one record.

use secrecy::SecretString;
use serde_json::json;
use shoppee_kit::testing::{audit_records, audited_fields, mutating_methods};
use shoppee_proto::{
    audit::v1::AuditRecord,
    auth::v1::{CreateServiceAccountRequest, IssueServiceTokenRequest},
    product::v1::*,
};
use tonic::Request;
use uuid::Uuid;

use crate::test_shop::TestShop;

/// The methods with which the order service holds stock for customers.
const STOCK_METHODS: [&str; 3] = ["Commit", "Hold", "Release"];

async fn records(shop: &TestShop) -> Vec<AuditRecord> {
    audit_records(&shop.grpc_url(), &shop.admin).await
}

/// Adds an id to a request.
fn with_id<T>(id: &str, mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert("x-request-id", id.parse().expect("an id"));
    request
}

fn new_product(sku: &str) -> CreateProductRequest {
    CreateProductRequest {
        sku: sku.to_owned(),
        name: "Lamp".to_owned(),
        price: 1999,
        stock: 5,
        ..CreateProductRequest::default()
    }
}

fn batch(changes: impl IntoIterator<Item = ProductChange>) -> BatchUpdateProductsRequest {
    BatchUpdateProductsRequest {
        on_error: OnError::Continue.into(),
        items: changes.into_iter().collect(),
        idempotency_key: None,
    }
}

fn new_price(id: i64, price: i64) -> ProductChange {
    ProductChange { id: Some(id), price: Some(price), ..ProductChange::default() }
}

/// Calls a method as the admin with an id, on a product and a category without products. Returns the action.
async fn act(shop: &TestShop, method: &str, id: &str, product: i64, category: i64) -> &'static str {
    let mut products = shop.products.clone();
    match method {
        "CreateProduct" => {
            let request = new_product(method);
            products.create_product(with_id(id, shop.admin(request))).await.expect("accepted");
            "product.create"
        }
        "UpdateProduct" => {
            let mask = prost_types::FieldMask { paths: vec!["price".to_owned()] };
            let request = UpdateProductRequest {
                id: product,
                update_mask: Some(mask),
                price: Some(1799),
                ..UpdateProductRequest::default()
            };
            products.update_product(with_id(id, shop.admin(request))).await.expect("accepted");
            "product.update"
        }
        "ArchiveProduct" => {
            let request = ArchiveProductRequest { id: product, expected_version: None };
            products.archive_product(with_id(id, shop.admin(request))).await.expect("accepted");
            "product.archive"
        }
        "AdjustStock" => {
            let reason = "count".to_owned();
            let request = AdjustStockRequest { id: product, delta: 3, reason, idempotency_key: None };
            products.adjust_stock(with_id(id, shop.admin(request))).await.expect("accepted");
            "stock.adjust"
        }
        "BatchUpdateProducts" => {
            let request = batch([new_price(product, 5)]);
            products.batch_update_products(with_id(id, shop.admin(request))).await.expect("accepted");
            "product.batch_update"
        }
        "BatchUpdateProductsStream" => {
            let requests = tokio_stream::iter([batch([new_price(product, 6)])]);
            let request = with_id(id, shop.admin(requests));
            let mut responses =
                products.batch_update_products_stream(request).await.expect("accepted").into_inner();
            responses.message().await.expect("accepted").expect("a response");
            "product.batch_update"
        }
        "CreateCategory" => {
            let request = CreateCategoryRequest {
                slug: "lamps".to_owned(),
                name: "Lamps".to_owned(),
                ..CreateCategoryRequest::default()
            };
            products.create_category(with_id(id, shop.admin(request))).await.expect("accepted");
            "category.create"
        }
        "UpdateCategory" => {
            let mask = prost_types::FieldMask { paths: vec!["name".to_owned()] };
            let request = UpdateCategoryRequest {
                id: category,
                update_mask: Some(mask),
                name: Some(id.to_owned()),
                ..UpdateCategoryRequest::default()
            };
            products.update_category(with_id(id, shop.admin(request))).await.expect("accepted");
            "category.update"
        }
        "DeleteCategory" => {
            let request = DeleteCategoryRequest { id: category };
            products.delete_category(with_id(id, shop.admin(request))).await.expect("accepted");
            "category.delete"
        }
        other => panic!("{other} needs an audit record: act here, or add it to STOCK_METHODS"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_act_of_an_admin_has_one_record() {
    let shop = TestShop::start().await;
    for (method, number) in mutating_methods("shoppee.product.v1").iter().zip(0..) {
        if STOCK_METHODS.contains(&method.as_str()) {
            continue;
        }
        let product = shop.product(&format!("sku-{number}"), 1).await.id;
        let category = CreateCategoryRequest {
            slug: format!("category-{number}"),
            name: "Category".to_owned(),
            ..CreateCategoryRequest::default()
        };
        let category =
            shop.products.clone().create_category(shop.admin(category)).await.unwrap().into_inner();
        let id = format!("act.{method}");
        let action = act(&shop, method, &id, product, category.id).await;
        let records = records(&shop).await;
        let own: Vec<_> = records.iter().filter(|record| record.request_id() == id).collect();
        assert_eq!(own.len(), 1, "{method}: {own:?}");
        assert_eq!((own[0].action.as_str(), own[0].service.as_str()), (action, "product"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_the_fields_that_changed_with_their_reason() {
    let shop = TestShop::start().await;
    let product = shop.create(new_product("lamp")).await.id;
    let mut products = shop.products.clone();
    let mask = ["price", "stock", "name", "description"].map(str::to_owned).to_vec();
    let update = UpdateProductRequest {
        id: product,
        update_mask: Some(prost_types::FieldMask { paths: mask }),
        price: Some(1799),
        stock: Some(7),
        name: Some("Lamp".to_owned()),
        description: Some("bright ".repeat(1000)),
        ..UpdateProductRequest::default()
    };
    products.update_product(shop.admin(update)).await.unwrap();
    let (delta, reason) = (-2, "broken in transport".to_owned());
    let adjustment = AdjustStockRequest { id: product, delta, reason, idempotency_key: None };
    products.adjust_stock(shop.admin(adjustment)).await.unwrap();
    let change = ProductChange {
        stock_delta: Some(4),
        clear: vec!["description".to_owned()],
        ..new_price(product, 5)
    };
    products.batch_update_products(shop.admin(batch([change]))).await.unwrap();

    let records = records(&shop).await;
    let [change, adjustment, update, creation] = &records[..] else { panic!("{records:?}") };
    let sides = |record: &AuditRecord| {
        assert_eq!(record.target.as_ref().unwrap().kind, "product");
        assert_eq!(record.target.as_ref().unwrap().id, product.to_string());
        (audited_fields(record.before.as_ref()), audited_fields(record.after.as_ref()))
    };
    let (before, after) = sides(creation);
    assert!(before.is_null());
    assert_eq!((&after["sku"], &after["price"], &after["stock"]), (&json!("lamp"), &json!(1999), &json!(5)));
    let (before, after) = sides(update);
    assert_eq!(before, json!({"price": 1999, "stock": 5, "description": ""}));
    assert_eq!((&after["price"], &after["stock"]), (&json!(1799), &json!(7)));
    let cut = after["description"].as_str().unwrap();
    assert!(cut.starts_with("bright bright ") && cut.ends_with('…') && cut.len() < 512, "{cut}");
    assert_eq!(
        sides(adjustment),
        (json!({"stock": 7}), json!({"stock": 5, "reason": "broken in transport"}))
    );
    let (before, after) = sides(change);
    assert_eq!((&before["price"], &before["stock"]), (&json!(1799), &json!(5)));
    assert_eq!(after, json!({"price": 5, "stock": 9, "description": ""}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_record_for_each_changed_row_and_none_for_the_others() {
    let shop = TestShop::start().await;
    let mut products = shop.products.clone();
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(shop.product(&format!("sku-{number}"), 1).await.id);
    }
    let before = records(&shop).await.len();
    let rows = || [new_price(ids[0], 5), new_price(ids[1], 1000), new_price(ids[2], 6), new_price(999, 7)];
    products.batch_update_products(with_id("rows", shop.admin(batch(rows())))).await.unwrap();
    let abort = BatchUpdateProductsRequest { on_error: OnError::Abort.into(), ..batch(rows()) };
    products.batch_update_products(with_id("aborted", shop.admin(abort))).await.unwrap();
    let records = records(&shop).await;
    assert_eq!(records.len(), before + 2);
    // The ids of a batch ascend.
    let targets: Vec<_> = records[..2].iter().map(|record| record.target.clone().unwrap().id).collect();
    assert_eq!(targets, [ids[2].to_string(), ids[0].to_string()]);
    assert!(records[..2].iter().all(|record| record.request_id() == "rows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_of_one_batch_have_their_own_actors_and_a_replay_has_no_record() {
    let shop = TestShop::start().await;
    let product = shop.product("lamp", 10).await.id;
    let request = CreateServiceAccountRequest {
        name: "counter".to_owned(),
        scopes: vec!["stock:adjust".to_owned()],
        ..CreateServiceAccountRequest::default()
    };
    let mut accounts = shop.accounts.clone();
    let account = accounts.create_service_account(shop.admin(request)).await.unwrap().into_inner();
    let credentials = IssueServiceTokenRequest {
        client_id: account.id.clone(),
        client_secret: account.client_secret().to_owned(),
        scope: None,
    };
    let token = accounts.issue_service_token(credentials).await.unwrap().into_inner().access_token;
    let token = SecretString::from(token);
    let adjust = |number: i32, key: Option<String>, token: SecretString| {
        let (mut products, id) = (shop.products.clone(), format!("count-{number}"));
        async move {
            let reason = "count".to_owned();
            let request = AdjustStockRequest { id: product, delta: 1, reason, idempotency_key: key };
            let request =
                shoppee_kit::client::request(request, Some(&token), std::time::Duration::from_secs(30));
            products.adjust_stock(with_id(&id, request)).await.unwrap();
        }
    };
    let key = Uuid::new_v4().to_string();
    let admin = SecretString::clone(&shop.admin);
    let corrections = (0..20).map(|number| {
        let token = if number % 2 == 0 { admin.clone() } else { token.clone() };
        // Two have one key: they are one correction.
        tokio::spawn(adjust(number, (number % 10 == 0).then(|| key.clone()), token))
    });
    for correction in corrections.collect::<Vec<_>>() {
        correction.await.unwrap();
    }
    let records = records(&shop).await;
    let corrections = records.iter().filter(|record| record.action == "stock.adjust");
    let mut actors = [0, 0];
    let mut stocks = Vec::new();
    for record in corrections {
        let actor = record.actor.as_ref().unwrap();
        let number: usize = record.request_id().strip_prefix("count-").unwrap().parse().unwrap();
        let expected = if number.is_multiple_of(2) { ("admin", "boss") } else { ("service", "counter") };
        assert_eq!((actor.kind.as_str(), actor.name()), expected);
        assert!(number.is_multiple_of(2) || actor.id == account.id);
        actors[number % 2] += 1;
        stocks.push(audited_fields(record.after.as_ref())["stock"].as_i64().unwrap());
    }
    assert_eq!(actors, [9, 10]);
    stocks.sort_unstable();
    assert_eq!(stocks, (11..30).collect::<Vec<_>>(), "each follows the one before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_has_no_record() {
    let shop = TestShop::start().await;
    let product = shop.product("lamp", 10).await.id;
    let before = records(&shop).await.len();
    let order = Uuid::now_v7();
    shop.hold(order, [(product, 2)]).await.unwrap();
    let commit = CommitRequest { order_id: order.to_string() };
    shop.stock.clone().commit(shop.service(commit)).await.unwrap();
    assert_eq!(records(&shop).await.len(), before);
}
