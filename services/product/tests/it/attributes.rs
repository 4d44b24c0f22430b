//! Tests of product attributes: refused ones, and stored ones that break the rules.

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

use crate::test_shop::{TestShop, fields, reason};

/// Returns attributes with `levels` levels of objects.
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

impl TestShop {
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

    /// Reads these products by a list, by a search and by a batch call.
    async fn read_all_ways(&self, ids: &[i64]) -> [Vec<Product>; 3] {
        let mut products = self.products.clone();
        let listed = products.list_products(ListProductsRequest::default()).await;
        let search = SearchProductsRequest { q: "nested".to_owned(), ..SearchProductsRequest::default() };
        // The index is built shortly after the start.
        let searching = async {
            loop {
                match products.clone().search_products(search.clone()).await {
                    Ok(page) if page.get_ref().items.len() == ids.len() => break page.into_inner().items,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let searched =
            tokio::time::timeout(Duration::from_secs(20), searching).await.expect("the search finds all");
        let request = BatchGetProductsRequest { ids: ids.to_vec(), ..BatchGetProductsRequest::default() };
        let named = products.batch_get_products(self.service(request)).await;
        [listed.expect("a list").into_inner().items, searched, named.expect("products").into_inner().items]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_the_maximum_depth_are_returned_by_every_read() {
    let shop = TestShop::start().await;
    let product = shop.create_nested("deep", 16).await.expect("created");
    for products in shop.read_all_ways(&[product.id]).await {
        assert_eq!(products, std::slice::from_ref(&product));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_above_the_maximum_depth_are_refused() {
    let shop = TestShop::start().await;
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
    // Deeper than the decoder accepts.
    assert_eq!(reason(shop.create_nested("deep", 60).await), "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_with_invalid_stored_attributes_is_shown_without_them() {
    let mut shop = TestShop::start().await;
    let valid = shop.create_nested("valid", 2).await.expect("created");
    let mut ids = vec![valid.id];
    let deep = |levels: usize| format!(r"{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let broken = [deep(40), deep(300), "[1]".to_owned(), r#"{"a":1e999}"#.to_owned()];
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000_000));
    for (number, attributes) in broken.into_iter().chain([large]).enumerate() {
        let product = shop.create_nested(&format!("broken-{number}"), 1).await.expect("created");
        let sql = format!("update product.product set attributes = '{attributes}' where id = {}", product.id);
        sqlx::query(AssertSqlSafe(sql)).execute(&shop.pool).await.expect("written");
        ids.push(product.id);
    }
    // A process without these products in its cache.
    let replica = shop.replica().await;
    shop.products = replica.products.clone();
    for products in shop.read_all_ways(&ids).await {
        assert_eq!(products.len(), ids.len());
        for product in products {
            let attributes =
                if product.id == valid.id { valid.attributes.clone() } else { Some(Object::default()) };
            assert_eq!(product.attributes, attributes, "{}", product.sku);
        }
    }

    // Other updates keep the stored attributes.
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
