//! Tests of the list of stock changes.

use shoppee_kit::status;
use shoppee_proto::product::v1::{
    ListStockChangesRequest, ListStockChangesResponse, ReleaseReason, StockChangeKind,
};
use tonic::Status;

use crate::test_shop::{TestShop, fields, order, reason};

async fn list(
    shop: &TestShop,
    id: i64,
    limit: i32,
    cursor: Option<String>,
) -> Result<ListStockChangesResponse, Status> {
    let request = shop.admin(ListStockChangesRequest { id, limit: Some(limit), cursor });
    shop.products.clone().list_stock_changes(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_listed_with_the_stock_after_each_page_by_page() {
    use StockChangeKind::{Adjustment, Hold, Release, Return, Sale, Supply};
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    shop.product("b", 5).await;
    let (sold, released) = (order(), order());
    shop.hold(sold, [(product, 2)]).await.expect("held");
    shop.commit(sold).await.expect("sold");
    shop.hold(released, [(product, 3)]).await.expect("held");
    shop.release(released).await.expect("released");
    shop.adjust(product, -4).await.expect("corrected");
    shop.release_for(sold, ReleaseReason::OrderCancelled).await.expect("returned");
    let expected = [
        (Return, 2, 6),
        (Adjustment, -4, 4),
        (Release, 3, 8),
        (Hold, -3, 5),
        (Sale, -2, 8),
        (Hold, -2, 8),
        (Supply, 10, 10),
    ];

    let whole = list(&shop, product, 100, None).await.expect("a list");
    let found = whole.items.iter().map(|change| (change.kind(), change.quantity, change.available));
    assert_eq!(found.collect::<Vec<_>>(), expected);
    assert_eq!(whole.next_cursor, None);
    assert!(
        whole.items.is_sorted_by(|a, b| a.id > b.id) && whole.items.iter().all(|change| change.at.is_some())
    );
    let (returned, corrected) = (&whole.items[0], &whole.items[1]);
    assert_eq!((returned.order_id.as_deref(), &returned.reason), (Some(&*sold.to_string()), &None));
    assert!(corrected.order_id.is_none() && corrected.reason.is_some());

    // A change between two pages is on neither of them.
    let (mut paged, mut cursor) = (Vec::new(), None);
    loop {
        let page = list(&shop, product, 3, cursor).await.expect("a page");
        assert!(page.items.len() <= 3);
        paged.extend(page.items);
        shop.adjust(product, 1).await.expect("corrected");
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, whole.items);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_without_changes_has_an_empty_list_and_invalid_requests_are_refused() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 0).await.id;
    let empty = list(&shop, product, 20, None).await.expect("a list");
    assert_eq!((empty.items.len(), empty.next_cursor), (0, None));
    assert_eq!(reason(list(&shop, product + 1, 20, None).await), "NOT_FOUND");
    for (limit, cursor, field) in [(0, None, "limit"), (101, None, "limit"), (20, Some("x"), "cursor")] {
        let refused = list(&shop, product, limit, cursor.map(ToOwned::to_owned)).await;
        let status = refused.as_ref().expect_err("refused");
        assert_eq!(status::parse(status).reason, "INVALID_REQUEST");
        assert_eq!(fields(refused), [field]);
    }
}
