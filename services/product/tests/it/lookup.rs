//! `ProductCacheService.Lookup`: the products that a process has in memory, and nothing else.

use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    ArchiveProductRequest, CachedProduct, GetProductRequest, LookupRequest, Product, ProductAsOf,
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
