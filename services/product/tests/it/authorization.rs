//! Who may call what: nobody, a customer, an admin, a service, a token that is none.

use secrecy::SecretString;
use shoppee_kit::{client, testing::eventually};
use shoppee_proto::product::v1::{
    AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, BatchUpdateProductsRequest,
    CommitRequest, CreateCategoryRequest, CreateProductRequest, DeleteCategoryRequest, GetHoldsRequest,
    GetProductRequest, HoldRequest, ListCategoriesRequest, ListHoldsRequest, ListProductsRequest,
    ReleaseRequest, SearchProductsRequest, UpdateCategoryRequest, UpdateProductRequest,
};
use tonic::Code;

use crate::shop::Shop;

/// How each kind of caller is answered: without a token, with a bad one, as a customer, an admin, a service.
macro_rules! answers {
    ($shop:expr, $client:ident.$method:ident($message:expr)) => {{
        let bad = SecretString::from("eyJhbGciOiJub25lIn0.e30.");
        let tokens = [None, Some(&bad), Some(&*$shop.customer), Some(&*$shop.admin), Some(&*$shop.service)];
        let mut codes = Vec::new();
        for token in tokens {
            let request = client::request($message, token, std::time::Duration::from_secs(10));
            let answer = $shop.$client.clone().$method(request).await;
            codes.push(answer.err().map_or(Code::Ok, |status| status.code()));
        }
        codes
    }};
}

const BAD: Code = Code::Unauthenticated;
const NO: Code = Code::PermissionDenied;

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_open_to_read() {
    let shop = Shop::open().await;
    let id = shop.product("a", 1).await.id;
    let open = [Code::Ok, BAD, Code::Ok, Code::Ok, Code::Ok];
    assert_eq!(answers!(shop, products.get_product(GetProductRequest { id })), open);
    let ids = vec![id];
    assert_eq!(
        answers!(
            shop,
            products.batch_get_products(BatchGetProductsRequest {
                ids: ids.clone(),
                ..BatchGetProductsRequest::default()
            })
        ),
        open
    );
    assert_eq!(answers!(shop, products.list_products(ListProductsRequest::default())), open);
    let search = SearchProductsRequest { q: "a".to_owned(), ..SearchProductsRequest::default() };
    eventually("the index is built", || async {
        shop.products.clone().search_products(search.clone()).await.is_ok()
    })
    .await;
    assert_eq!(answers!(shop, products.search_products(search.clone())), open);
    assert_eq!(answers!(shop, products.list_categories(ListCategoriesRequest::default())), open);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_changes_it() {
    let shop = Shop::open().await;
    let id = shop.product("a", 1).await.id;
    // What an admin gets is a refusal of the request itself, which changes nothing.
    let admins = |refused| [BAD, BAD, NO, refused, NO];
    let invalid = Code::InvalidArgument;
    assert_eq!(answers!(shop, products.create_product(CreateProductRequest::default())), admins(invalid));
    let update = UpdateProductRequest { id: 999, ..UpdateProductRequest::default() };
    assert_eq!(answers!(shop, products.update_product(update.clone())), admins(Code::NotFound));
    let archive = ArchiveProductRequest { id: 999, expected_version: None };
    assert_eq!(answers!(shop, products.archive_product(archive)), admins(Code::NotFound));
    let adjust = AdjustStockRequest { id, ..AdjustStockRequest::default() };
    assert_eq!(answers!(shop, products.adjust_stock(adjust.clone())), admins(invalid));
    let batch = BatchUpdateProductsRequest::default();
    assert_eq!(answers!(shop, products.batch_update_products(batch.clone())), admins(invalid));
    let category = CreateCategoryRequest::default();
    assert_eq!(answers!(shop, products.create_category(category.clone())), admins(invalid));
    let category = UpdateCategoryRequest { id: 999, ..UpdateCategoryRequest::default() };
    assert_eq!(answers!(shop, products.update_category(category.clone())), admins(Code::NotFound));
    let category = DeleteCategoryRequest { id: 999 };
    assert_eq!(answers!(shop, products.delete_category(category)), admins(Code::NotFound));
    let stream = || tokio_stream::empty::<BatchUpdateProductsRequest>();
    let streams = answers!(shop, products.batch_update_products_stream(stream()));
    assert_eq!(streams, admins(Code::Ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_service_holds_stock() {
    let shop = Shop::open().await;
    let services = [BAD, BAD, NO, NO, Code::InvalidArgument];
    assert_eq!(answers!(shop, stock.hold(HoldRequest::default())), services);
    assert_eq!(answers!(shop, stock.commit(CommitRequest::default())), services);
    assert_eq!(answers!(shop, stock.release(ReleaseRequest::default())), services);
    assert_eq!(answers!(shop, audit.get_holds(GetHoldsRequest::default())), services);
    assert_eq!(answers!(shop, audit.list_holds(ListHoldsRequest::default())), services);
}
