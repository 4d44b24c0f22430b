//! Tests of the ProductCacheService: look-ups in memory, and rendered pages.

use serde_json::{Value, json};
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    ArchiveProductRequest, CachedProduct, GetPageRequest, GetProductRequest, ListProductsRequest,
    LookupRequest, Product, ProductAsOf, SearchProductsRequest,
};
use tonic::{Code, Status};

use crate::test_shop::{CachedProducts, Products, TestShop};

pub async fn get_product(products: &Products, id: i64) -> Result<Product, Status> {
    products.clone().get_product(GetProductRequest { id }).await.map(tonic::Response::into_inner)
}

pub async fn lookup(
    memory: &CachedProducts,
    keys: impl IntoIterator<Item = (i64, i64)>,
) -> Result<Vec<CachedProduct>, Status> {
    let products = keys.into_iter().map(|(id, revision)| ProductAsOf { id, revision }).collect();
    Ok(memory.clone().lookup(LookupRequest { products }).await?.into_inner().products)
}

/// Reads a product until it is in memory, which is bypassed shortly after the start.
pub async fn wait_until_cached(products: &Products, memory: &CachedProducts, id: i64) {
    eventually("it is in memory", || async {
        get_product(products, id).await.expect("is shown");
        lookup(memory, [(id, 0)]).await.is_ok_and(|cached| cached.len() == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_with_a_future_revision_misses_and_keeps_the_entry() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 1).await.id;
    wait_until_cached(&shop.products, &shop.cached_products, id).await;
    // A look-up with a future revision misses, and does not invalidate the entry.
    assert_eq!(lookup(&shop.cached_products, [(id, i64::MAX)]).await.unwrap(), []);
    assert_eq!(lookup(&shop.cached_products, [(id, 0)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_returns_only_products_in_memory() {
    let shop = TestShop::start().await;
    let replica = shop.replica().await;
    let (one, other) = (shop.product("a", 10).await.id, shop.product("b", 10).await.id);
    let (gone, unknown) = (shop.product("c", 10).await.id, other + 1000);
    let archive = ArchiveProductRequest { id: gone, ..ArchiveProductRequest::default() };
    shop.products.clone().archive_product(shop.admin(archive)).await.expect("archived");
    get_product(&shop.products, unknown).await.expect_err("does not exist");
    wait_until_cached(&shop.products, &shop.cached_products, one).await;
    wait_until_cached(&shop.products, &shop.cached_products, other).await;

    let all = [one, gone, other, unknown].map(|id| (id, 0));
    let cached = lookup(&shop.cached_products, all).await.expect("looked up");
    let ids = |products: &[CachedProduct]| products.iter().map(|product| product.id).collect::<Vec<_>>();
    assert_eq!(ids(&cached), [one, other], "neither archived nor unknown products");
    let product = get_product(&shop.products, one).await.expect("is shown");
    assert_eq!(cached[0].version, product.version);
    assert_eq!(cached[0].json, serde_json::to_vec(&product).unwrap());
    wait_until_cached(&replica.products, &replica.cached_products, one).await;
    let other_cached = lookup(&replica.cached_products, all).await.expect("looked up");
    assert_eq!(ids(&other_cached), [one], "a look-up reads nothing from PostgreSQL");

    let (newer, at) = (cached[0].revision + 1, cached[1].revision);
    let cached = lookup(&shop.cached_products, [(one, newer), (other, at)]).await.expect("looked up");
    assert_eq!(ids(&cached), [other], "a newer minimum revision misses");

    let many = (1..=101).map(|id| (id, 0));
    assert_eq!(lookup(&shop.cached_products, many).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Parses a page as JSON.
async fn page(memory: &CachedProducts, request: GetPageRequest) -> Value {
    let page = memory.clone().get_page(request).await.expect("a page").into_inner();
    serde_json::from_slice(&page.json).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_equals_the_list_or_search_response_as_json() {
    let shop = TestShop::start().await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(shop.product(&format!("lamp-{number}"), 10).await.id);
    }
    let list = ListProductsRequest { limit: Some(2), ..ListProductsRequest::default() };
    let search = SearchProductsRequest {
        q: "lamp".to_owned(),
        limit: Some(2),
        facets: Some(true),
        ..SearchProductsRequest::default()
    };
    eventually("all are found", || async {
        let page = shop.products.clone().search_products(search.clone()).await;
        page.is_ok_and(|page| page.into_inner().total == 3)
    })
    .await;
    // First without cached products, then with some, one of them stale.
    for _ in 0..2 {
        shop.adjust(ids[2], -1).await.expect("adjusted");
        let listed = shop.products.clone().list_products(list.clone()).await.expect("listed").into_inner();
        let request = GetPageRequest { list: Some(list.clone()), search: None };
        assert_eq!(page(&shop.cached_products, request).await, json!(listed));
        for product in &listed.items {
            wait_until_cached(&shop.products, &shop.cached_products, product.id).await;
        }
        let request = GetPageRequest { list: Some(list.clone()), search: None };
        assert_eq!(page(&shop.cached_products, request).await, json!(listed));
        let searched =
            shop.products.clone().search_products(search.clone()).await.expect("found").into_inner();
        let request = GetPageRequest { list: None, search: Some(search.clone()) };
        assert_eq!(page(&shop.cached_products, request).await, json!(searched));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_result_is_a_page_and_an_invalid_request_is_refused() {
    let shop = TestShop::start().await;
    let list = || Some(ListProductsRequest::default());
    let empty = page(&shop.cached_products, GetPageRequest { list: list(), search: None }).await;
    assert_eq!(empty["items"], json!([]));
    let search = || Some(SearchProductsRequest { q: "lamp".to_owned(), ..SearchProductsRequest::default() });
    for (list, search) in [(None, None), (list(), search())] {
        let refused =
            shop.cached_products.clone().get_page(GetPageRequest { list, search }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let invalid = ListProductsRequest { limit: Some(0), ..ListProductsRequest::default() };
    let refused =
        shop.cached_products.clone().get_page(GetPageRequest { list: Some(invalid), search: None }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
