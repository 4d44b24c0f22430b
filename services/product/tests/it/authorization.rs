//! Tests of authorization: calls without a token, with an invalid one, by a customer, an admin and a service.

use secrecy::SecretString;
use shoppee_kit::{client, testing::eventually};
use shoppee_proto::product::v1::{
    AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, BatchUpdateProductsRequest,
    CommitRequest, CreateCategoryRequest, CreateProductRequest, DeleteCategoryRequest, GetHoldsRequest,
    GetProductRequest, GetStatusRequest, HoldRequest, ListCategoriesRequest, ListHoldsRequest,
    ListProductsRequest, ListStockChangesRequest, ReleaseRequest, SearchProductsRequest,
    UpdateCategoryRequest, UpdateProductRequest,
};
use tonic::Code;

use crate::test_shop::TestShop;

/// Returns the codes for each kind of caller: no token, an invalid one, a customer, an admin, a service.
macro_rules! codes {
    ($shop:expr, $client:ident.$method:ident($message:expr)) => {{
        let invalid = SecretString::from("eyJhbGciOiJub25lIn0.e30.");
        let tokens =
            [None, Some(&invalid), Some(&*$shop.customer), Some(&*$shop.admin), Some(&*$shop.service)];
        let mut codes = Vec::new();
        for token in tokens {
            let request = client::request($message, token, std::time::Duration::from_secs(10));
            let answer = $shop.$client.clone().$method(request).await;
            codes.push(answer.err().map_or(Code::Ok, |status| status.code()));
        }
        codes
    }};
}

const UNAUTHENTICATED: Code = Code::Unauthenticated;
const DENIED: Code = Code::PermissionDenied;

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_the_catalogue_need_no_token() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 1).await.id;
    let open = [Code::Ok, UNAUTHENTICATED, Code::Ok, Code::Ok, Code::Ok];
    assert_eq!(codes!(shop, products.get_product(GetProductRequest { id })), open);
    let ids = vec![id];
    assert_eq!(
        codes!(
            shop,
            products.batch_get_products(BatchGetProductsRequest {
                ids: ids.clone(),
                ..BatchGetProductsRequest::default()
            })
        ),
        open
    );
    assert_eq!(codes!(shop, products.list_products(ListProductsRequest::default())), open);
    let search = SearchProductsRequest { q: "a".to_owned(), ..SearchProductsRequest::default() };
    eventually("the index is built", || async {
        shop.products.clone().search_products(search.clone()).await.is_ok()
    })
    .await;
    assert_eq!(codes!(shop, products.search_products(search.clone())), open);
    assert_eq!(codes!(shop, products.list_categories(ListCategoriesRequest::default())), open);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_the_catalogue_need_an_admin() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 1).await.id;
    // The admin's request is invalid, so that it changes nothing.
    let admins = |refused| [UNAUTHENTICATED, UNAUTHENTICATED, DENIED, refused, DENIED];
    let invalid = Code::InvalidArgument;
    assert_eq!(codes!(shop, products.create_product(CreateProductRequest::default())), admins(invalid));
    let update = UpdateProductRequest { id: 999, ..UpdateProductRequest::default() };
    assert_eq!(codes!(shop, products.update_product(update.clone())), admins(Code::NotFound));
    let archive = ArchiveProductRequest { id: 999, expected_version: None };
    assert_eq!(codes!(shop, products.archive_product(archive)), admins(Code::NotFound));
    let adjust = AdjustStockRequest { id, ..AdjustStockRequest::default() };
    assert_eq!(codes!(shop, products.adjust_stock(adjust.clone())), admins(invalid));
    let batch = BatchUpdateProductsRequest::default();
    assert_eq!(codes!(shop, products.batch_update_products(batch.clone())), admins(invalid));
    let category = CreateCategoryRequest::default();
    assert_eq!(codes!(shop, products.create_category(category.clone())), admins(invalid));
    let category = UpdateCategoryRequest { id: 999, ..UpdateCategoryRequest::default() };
    assert_eq!(codes!(shop, products.update_category(category.clone())), admins(Code::NotFound));
    let category = DeleteCategoryRequest { id: 999 };
    assert_eq!(codes!(shop, products.delete_category(category)), admins(Code::NotFound));
    let stream = || tokio_stream::empty::<BatchUpdateProductsRequest>();
    let streams = codes!(shop, products.batch_update_products_stream(stream()));
    assert_eq!(streams, admins(Code::Ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_calls_need_a_service_token() {
    let shop = TestShop::start().await;
    let services = [UNAUTHENTICATED, UNAUTHENTICATED, DENIED, DENIED, Code::InvalidArgument];
    assert_eq!(codes!(shop, stock.hold(HoldRequest::default())), services);
    assert_eq!(codes!(shop, stock.commit(CommitRequest::default())), services);
    assert_eq!(codes!(shop, stock.release(ReleaseRequest::default())), services);
    assert_eq!(codes!(shop, audit.get_holds(GetHoldsRequest::default())), services);
    assert_eq!(codes!(shop, audit.list_holds(ListHoldsRequest::default())), services);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_back_office_needs_an_admin() {
    let shop = TestShop::start().await;
    let id = shop.product("a", 1).await.id;
    let admins = [UNAUTHENTICATED, UNAUTHENTICATED, DENIED, Code::Ok, DENIED];
    let changes = ListStockChangesRequest { id, ..ListStockChangesRequest::default() };
    assert_eq!(codes!(shop, products.list_stock_changes(changes.clone())), admins);
    assert_eq!(codes!(shop, status.get_status(GetStatusRequest {})), admins);
}
