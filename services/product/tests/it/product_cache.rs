//! `ProductCacheService.Lookup`: the products that a process has in memory, and nothing else.

use serde_json::{Value, json};
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    ArchiveProductRequest, CachedProduct, GetPageRequest, GetProductRequest, ListProductsRequest,
    LookupRequest, Product, ProductAsOf, SearchProductsRequest,
};
use tonic::{Code, Status};

use crate::shop::{Memory, Products, Shop};

pub async fn look(products: &Products, id: i64) -> Result<Product, Status> {
    products.clone().get_product(GetProductRequest { id }).await.map(tonic::Response::into_inner)
}

pub async fn look_up(
    memory: &Memory,
    wanted: impl IntoIterator<Item = (i64, i64)>,
) -> Result<Vec<CachedProduct>, Status> {
    let products = wanted.into_iter().map(|(id, revision)| ProductAsOf { id, revision }).collect();
    Ok(memory.clone().lookup(LookupRequest { products }).await?.into_inner().products)
}

/// Looks at a product until it is in memory, which is believed some moments after the start.
pub async fn remembers(products: &Products, memory: &Memory, id: i64) {
    eventually("it is in memory", || async {
        look(products, id).await.expect("is shown");
        look_up(memory, [(id, 0)]).await.is_ok_and(|found| found.len() == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_empty_the_memory() {
    let shop = Shop::open().await;
    let id = shop.product("a", 1).await.id;
    remembers(&shop.products, &shop.memory, id).await;
    // Whoever says to have seen what is yet to come is told nothing, and others what there is.
    assert_eq!(look_up(&shop.memory, [(id, i64::MAX)]).await.unwrap(), []);
    assert_eq!(look_up(&shop.memory, [(id, 0)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_looked_up_in_memory_and_in_nothing_else() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let (one, other) = (shop.product("a", 10).await.id, shop.product("b", 10).await.id);
    let (gone, unknown) = (shop.product("c", 10).await.id, other + 1000);
    let archive = ArchiveProductRequest { id: gone, ..ArchiveProductRequest::default() };
    shop.products.clone().archive_product(shop.admin(archive)).await.expect("archived");
    look(&shop.products, unknown).await.expect_err("does not exist");
    remembers(&shop.products, &shop.memory, one).await;
    remembers(&shop.products, &shop.memory, other).await;

    let all = [one, gone, other, unknown].map(|id| (id, 0));
    let found = look_up(&shop.memory, all).await.expect("looked up");
    let ids = |found: &[CachedProduct]| found.iter().map(|found| found.id).collect::<Vec<_>>();
    assert_eq!(ids(&found), [one, other], "nothing that is archived, nothing that does not exist");
    let shown = look(&shop.products, one).await.expect("is shown");
    assert_eq!(found[0].version, shown.version);
    assert_eq!(found[0].json, serde_json::to_vec(&shown).unwrap());
    remembers(&replica.products, &replica.memory, one).await;
    let there = look_up(&replica.memory, all).await.expect("looked up");
    assert_eq!(ids(&there), [one], "it read what was not in memory");

    let (newer, at) = (found[0].revision + 1, found[1].revision);
    let found = look_up(&shop.memory, [(one, newer), (other, at)]).await.expect("looked up");
    assert_eq!(ids(&found), [other], "who has seen a newer state is not shown this one");

    let many = (1..=101).map(|id| (id, 0));
    assert_eq!(look_up(&shop.memory, many).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Reads a page as JSON.
async fn page(memory: &Memory, request: GetPageRequest) -> Value {
    let page = memory.clone().get_page(request).await.expect("a page").into_inner();
    serde_json::from_slice(&page.json).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_the_answer_of_the_list_and_of_the_search_as_json() {
    let shop = Shop::open().await;
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
        let found = shop.products.clone().search_products(search.clone()).await;
        found.is_ok_and(|found| found.into_inner().total == 3)
    })
    .await;
    // Nothing in memory, and then some: one product is in memory in an old state.
    for _ in 0..2 {
        shop.adjust(ids[2], -1).await.expect("adjusted");
        let listed = shop.products.clone().list_products(list.clone()).await.expect("listed").into_inner();
        let request = GetPageRequest { list: Some(list.clone()), search: None };
        assert_eq!(page(&shop.memory, request).await, json!(listed));
        for product in &listed.items {
            remembers(&shop.products, &shop.memory, product.id).await;
        }
        let request = GetPageRequest { list: Some(list.clone()), search: None };
        assert_eq!(page(&shop.memory, request).await, json!(listed));
        let found = shop.products.clone().search_products(search.clone()).await.expect("found").into_inner();
        let request = GetPageRequest { list: None, search: Some(search.clone()) };
        assert_eq!(page(&shop.memory, request).await, json!(found));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_page_is_a_page_and_none_at_all_is_refused() {
    let shop = Shop::open().await;
    let list = || Some(ListProductsRequest::default());
    let empty = page(&shop.memory, GetPageRequest { list: list(), search: None }).await;
    assert_eq!(empty["items"], json!([]));
    let search = || Some(SearchProductsRequest { q: "lamp".to_owned(), ..SearchProductsRequest::default() });
    for (list, search) in [(None, None), (list(), search())] {
        let refused = shop.memory.clone().get_page(GetPageRequest { list, search }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let wrong = ListProductsRequest { limit: Some(0), ..ListProductsRequest::default() };
    let refused = shop.memory.clone().get_page(GetPageRequest { list: Some(wrong), search: None }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
