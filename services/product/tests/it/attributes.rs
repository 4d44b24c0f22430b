//! Attributes that are refused, and rows whose attributes break the rules.

use std::time::Duration;

use shoppee_proto::{
    Object,
    product::v1::{
        AdjustStockRequest, BatchGetProductsRequest, CreateProductRequest, ListProductsRequest, Product,
        SearchProductsRequest, UpdateProductRequest,
    },
};
use sqlx::AssertSqlSafe;
use tonic::Status;

use crate::shop::{Shop, fields, reason};

/// A message with as many levels of objects as asked for.
fn nested(levels: usize) -> Object {
    let leaf = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
    let value = (1..levels).fold(leaf, |inner, _| {
        let fields = [("a".to_owned(), inner)].into();
        prost_types::Value {
            kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct { fields })),
        }
    });
    Object { fields: [("a".to_owned(), value)].into() }
}

impl Shop {
    async fn create_nested(&self, sku: &str, levels: usize) -> Result<Product, Status> {
        let request = CreateProductRequest {
            sku: sku.to_owned(),
            name: "Nested lamp".to_owned(),
            price: 1,
            attributes: Some(nested(levels)),
            ..CreateProductRequest::default()
        };
        self.products.clone().create_product(self.admin(request)).await.map(tonic::Response::into_inner)
    }

    /// The names of a list, of a search and of a call for these products.
    async fn shown(&self, ids: &[i64]) -> [Vec<Product>; 3] {
        let mut products = self.products.clone();
        let listed = products.list_products(ListProductsRequest::default()).await;
        let search = SearchProductsRequest { q: "nested".to_owned(), ..SearchProductsRequest::default() };
        // The index of a process is built soon after its start.
        let searching = async {
            loop {
                match products.clone().search_products(search.clone()).await {
                    Ok(page) if page.get_ref().items.len() == ids.len() => break page.into_inner().items,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let found =
            tokio::time::timeout(Duration::from_secs(20), searching).await.expect("the search finds all");
        let request = BatchGetProductsRequest { ids: ids.to_vec(), ..BatchGetProductsRequest::default() };
        let named = products.batch_get_products(self.service(request)).await;
        [listed.expect("a list").into_inner().items, found, named.expect("products").into_inner().items]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_nested_as_deeply_as_they_may_be_travel_in_every_answer() {
    let shop = Shop::open().await;
    let product = shop.create_nested("deep", 16).await.expect("created");
    for products in shop.shown(&[product.id]).await {
        assert_eq!(products, std::slice::from_ref(&product));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_nested_more_deeply_are_refused() {
    let shop = Shop::open().await;
    for levels in [17, 30] {
        let created = shop.create_nested("deep", levels).await;
        assert_eq!(fields(created.clone()), ["attributes"]);
        assert_eq!(reason(created), "VALIDATION_FAILED");
    }
    let product = shop.product("flat", 1).await;
    let request = UpdateProductRequest {
        id: product.id,
        update_mask: Some(prost_types::FieldMask { paths: vec!["attributes".to_owned()] }),
        attributes: Some(nested(17)),
        ..UpdateProductRequest::default()
    };
    let updated = shop.products.clone().update_product(shop.admin(request)).await;
    assert_eq!(fields(updated), ["attributes"]);
    // Beyond what is decoded at all.
    assert_eq!(reason(shop.create_nested("deep", 60).await), "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_attributes_that_break_the_rules_is_shown_without_them() {
    let mut shop = Shop::open().await;
    let well = shop.create_nested("well", 2).await.expect("created");
    let mut ids = vec![well.id];
    let deep = |levels: usize| format!(r"{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let broken = [deep(40), deep(300), "[1]".to_owned(), r#"{"a":1e999}"#.to_owned()];
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000_000));
    for (number, attributes) in broken.into_iter().chain([large]).enumerate() {
        let product = shop.create_nested(&format!("broken-{number}"), 1).await.expect("created");
        let sql = format!("update product.product set attributes = '{attributes}' where id = {}", product.id);
        sqlx::query(AssertSqlSafe(sql)).execute(&shop.pool).await.expect("written");
        ids.push(product.id);
    }
    // Another process, which has none of them in memory.
    let replica = shop.replica().await;
    shop.products = replica.products.clone();
    for products in shop.shown(&ids).await {
        assert_eq!(products.len(), ids.len());
        for product in products {
            let attributes =
                if product.id == well.id { well.attributes.clone() } else { Some(Object::default()) };
            assert_eq!(product.attributes, attributes, "{}", product.sku);
        }
    }

    // Who changes something else does not lose them.
    let id = ids[1];
    let request = AdjustStockRequest { id, delta: 1, reason: "count".to_owned(), idempotency_key: None };
    shop.products.clone().adjust_stock(shop.admin(request)).await.expect("adjusted");
    let request = UpdateProductRequest {
        id,
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".to_owned()] }),
        name: Some("Renamed".to_owned()),
        ..UpdateProductRequest::default()
    };
    shop.products.clone().update_product(shop.admin(request)).await.expect("renamed");
    let sql = format!("select count(*) from product.product where id = {id} and attributes ? 'a'");
    assert_eq!(shop.count(&sql).await, 1);
}
