//! The facts of a details beside its reason, for programs.

use shoppee_kit::status::{self, ErrorDetails};
use shoppee_proto::{
    order::v1::CreateOrderRequest,
    product::v1::{ArchiveProductRequest, RefusedLine, UpdateProductRequest},
};
use tonic::Status;

use crate::shop::{Person, TestShop, order_request};

fn error_details<T: std::fmt::Debug>(response: Result<T, Status>) -> ErrorDetails {
    status::parse(&response.expect_err("an error"))
}

fn lines(details: &ErrorDetails) -> Vec<RefusedLine> {
    serde_json::from_str(&details.metadata["lines"]).expect("lines")
}

fn line(product_id: i64, sku: &str, requested: i64, available: i64) -> RefusedLine {
    RefusedLine { product_id, sku: Some(sku.to_owned()), requested, available, ..RefusedLine::default() }
}

async fn reprice(admin: &Person, id: i64, price: i64) {
    let change = UpdateProductRequest {
        id,
        update_mask: Some(prost_types::FieldMask { paths: vec!["price".to_owned()] }),
        price: Some(price),
        ..UpdateProductRequest::default()
    };
    admin.products().0.update_product(admin.request(change)).await.expect("repriced");
}

#[tokio::test]
async fn an_out_of_stock_error_names_each_short_line() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup, pot) = (
        admin.sells("tea", 450, 10).await,
        admin.sells("cup", 1200, 1).await,
        admin.sells("pot", 1, 0).await,
    );
    let details = error_details(ann.orders(order_request(&[(tea, 10), (cup, 2), (pot, 3)])).await);
    assert_eq!(details.reason, "OUT_OF_STOCK");
    assert_eq!(lines(&details), [line(cup, "cup", 2, 1), line(pot, "pot", 3, 0)]);
}

#[tokio::test]
async fn the_units_of_a_refused_order_are_back_before_its_response() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let cup = admin.sells("cup", 1200, 1).await;
    for _ in 0..10 {
        let order = CreateOrderRequest { expected_total: Some(1), ..order_request(&[(cup, 1)]) };
        assert_eq!(error_details(ann.orders(order).await).reason, "PRICE_CHANGED");
    }
}

#[tokio::test]
async fn an_out_of_stock_error_names_the_customers_own_unpaid_order() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let cup = admin.sells("cup", 1200, 2).await;
    let (first, second) = (ann.buys(cup, 1).await, ann.buys(cup, 1).await);
    let details = error_details(ann.orders(order_request(&[(cup, 1)])).await);
    let own = RefusedLine { held_by_your_order: Some(second.id.clone()), ..line(cup, "cup", 1, 0) };
    assert_eq!((details.reason.as_str(), lines(&details)), ("OUT_OF_STOCK", vec![own]));
    let other = error_details(ben.orders(order_request(&[(cup, 1)])).await);
    assert_eq!(lines(&other), [line(cup, "cup", 1, 0)], "orders of other users are not named");

    ann.pays(&first.id).await.unwrap();
    ann.pays(&second.id).await.unwrap();
    assert_eq!(lines(&error_details(ann.orders(order_request(&[(cup, 1)])).await)), [line(cup, "cup", 1, 0)]);
}

#[tokio::test]
async fn an_unavailable_product_error_names_each_line() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 1).await);
    let archive = ArchiveProductRequest { id: cup, expected_version: None };
    admin.products().0.archive_product(admin.request(archive)).await.unwrap();
    let unknown = RefusedLine { sku: None, ..line(999_999, "", 2, 0) };
    let details = error_details(ann.orders(order_request(&[(tea, 1), (cup, 1), (999_999, 2)])).await);
    assert_eq!(details.reason, "PRODUCT_UNAVAILABLE");
    assert_eq!(lines(&details), [line(cup, "cup", 1, 0), unknown.clone()]);
    assert_eq!(lines(&error_details(ann.add_to_cart(cup, 3).await)), [line(cup, "cup", 3, 0)]);
    assert_eq!(lines(&error_details(ann.add_to_cart(999_999, 2).await)), [unknown]);
}

#[tokio::test]
async fn a_changed_price_error_names_the_current_prices() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 5).await);
    reprice(&admin, cup, 1300).await;
    let mut order = order_request(&[(tea, 2), (cup, 1)]);
    order.expected_total = Some(2 * 450 + 1200);
    let details = error_details(ann.orders(order).await);
    assert_eq!(details.reason, "PRICE_CHANGED");
    assert_eq!(details.metadata["current_total"], "2200");
    let priced = |line, price| RefusedLine { unit_price: Some(price), ..line };
    assert_eq!(lines(&details), [priced(line(tea, "tea", 2, 10), 450), priced(line(cup, "cup", 1, 5), 1300)]);
}

#[tokio::test]
async fn a_changed_price_error_of_a_cart_names_the_lines_changed_since_it_was_shown() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 5).await);
    ann.add_to_cart(tea, 2).await.unwrap();
    ann.add_to_cart(cup, 1).await.unwrap();
    let order = |total| CreateOrderRequest { expected_total: Some(total), ..order_request(&[]) };
    let changed_lines = |details: &ErrorDetails| -> Vec<(i64, Option<i64>)> {
        lines(details).into_iter().map(|line| (line.product_id, line.unit_price)).collect()
    };
    reprice(&admin, cup, 1300).await;
    let details = error_details(ann.orders(order(2 * 450 + 1200)).await);
    assert_eq!(details.metadata["current_total"], "2200");
    assert_eq!(changed_lines(&details), [(cup, Some(1300))]);

    // Reading the cart saves the current price of the cup.
    assert_eq!(ann.cart().await.total, 2200);
    reprice(&admin, tea, 400).await;
    let details = error_details(ann.orders(order(2200)).await);
    assert_eq!(changed_lines(&details), [(tea, Some(400))]);
    assert_eq!(ann.orders(order(2100)).await.unwrap().into_inner().total, 2100);
}

#[tokio::test]
async fn an_invalid_transition_error_names_the_status_and_the_allowed_transitions() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let order = ann.buys(tea, 1).await.id;
    let facts = |answer| {
        let details = error_details(answer);
        assert_eq!(details.reason, "INVALID_TRANSITION");
        (details.metadata["current_status"].clone(), details.metadata["allowed"].clone())
    };
    let expect = |status: &str, allowed: &str| (status.to_owned(), allowed.to_owned());
    assert_eq!(facts(ann.completes(&order).await), expect("pending", r#"["pay","cancel"]"#));
    assert_eq!(facts(admin.ships(&order).await), expect("pending", r#"["cancel"]"#));
    ann.pays(&order).await.unwrap();
    assert_eq!(facts(ann.cancels(&order).await), expect("paid", "[]"));
    assert_eq!(facts(admin.completes(&order).await), expect("paid", r#"["ship","cancel"]"#));
}

#[tokio::test]
async fn a_declined_payment_error_has_its_reason_on_every_repeat() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let order = ann.buys(tea, 1).await.id;
    for (token, code) in [("tok_declined", "card_declined"), ("tok_insufficient_funds", "insufficient_funds")]
    {
        for _ in 0..2 {
            let details = error_details(ann.pays_with(&order, token, Some(token)).await);
            assert_eq!(details.reason, "PAYMENT_DECLINED");
            assert_eq!(details.metadata["decline_code"], code);
        }
    }
}
