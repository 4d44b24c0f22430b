//! The facts of a refusal beside its reason, for programs.

use shoppee_kit::status::{self, Told};
use shoppee_proto::{
    order::v1::CreateOrderRequest,
    product::v1::{ArchiveProductRequest, RefusedLine, UpdateProductRequest},
};
use tonic::Status;

use crate::shop::{Person, Shop, wish};

fn told<T: std::fmt::Debug>(answer: Result<T, Status>) -> Told {
    status::read(&answer.expect_err("refused"))
}

fn lines(told: &Told) -> Vec<RefusedLine> {
    serde_json::from_str(&told.facts["lines"]).expect("lines")
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
async fn an_order_beyond_the_stock_names_each_line_that_is_short() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup, pot) = (
        admin.sells("tea", 450, 10).await,
        admin.sells("cup", 1200, 1).await,
        admin.sells("pot", 1, 0).await,
    );
    let refusal = told(ann.orders(wish(&[(tea, 10), (cup, 2), (pot, 3)])).await);
    assert_eq!(refusal.reason, "OUT_OF_STOCK");
    assert_eq!(lines(&refusal), [line(cup, "cup", 2, 1), line(pot, "pot", 3, 0)]);
}

#[tokio::test]
async fn an_order_of_what_the_customers_own_unpaid_order_holds_names_that_order() {
    let shop = Shop::open().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let cup = admin.sells("cup", 1200, 2).await;
    let (first, second) = (ann.buys(cup, 1).await, ann.buys(cup, 1).await);
    let refusal = told(ann.orders(wish(&[(cup, 1)])).await);
    let own = RefusedLine { held_by_your_order: Some(second.id.clone()), ..line(cup, "cup", 1, 0) };
    assert_eq!((refusal.reason.as_str(), lines(&refusal)), ("OUT_OF_STOCK", vec![own]));
    let others = told(ben.orders(wish(&[(cup, 1)])).await);
    assert_eq!(lines(&others), [line(cup, "cup", 1, 0)], "nobody is told of another's orders");

    ann.pays(&first.id).await.unwrap();
    ann.pays(&second.id).await.unwrap();
    assert_eq!(lines(&told(ann.orders(wish(&[(cup, 1)])).await)), [line(cup, "cup", 1, 0)]);
}

#[tokio::test]
async fn an_order_of_what_is_not_sold_names_each_line() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 1).await);
    let archive = ArchiveProductRequest { id: cup, expected_version: None };
    admin.products().0.archive_product(admin.request(archive)).await.unwrap();
    let unknown = RefusedLine { sku: None, ..line(999_999, "", 2, 0) };
    let refusal = told(ann.orders(wish(&[(tea, 1), (cup, 1), (999_999, 2)])).await);
    assert_eq!(refusal.reason, "PRODUCT_UNAVAILABLE");
    assert_eq!(lines(&refusal), [line(cup, "cup", 1, 0), unknown.clone()]);
    assert_eq!(lines(&told(ann.adds(cup, 3).await)), [line(cup, "cup", 3, 0)]);
    assert_eq!(lines(&told(ann.adds(999_999, 2).await)), [unknown]);
}

#[tokio::test]
async fn an_order_at_old_prices_names_the_new_ones() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 5).await);
    reprice(&admin, cup, 1300).await;
    let mut order = wish(&[(tea, 2), (cup, 1)]);
    order.expected_total = Some(2 * 450 + 1200);
    let refusal = told(ann.orders(order).await);
    assert_eq!(refusal.reason, "PRICE_CHANGED");
    assert_eq!(refusal.facts["current_total"], "2200");
    let priced = |line, price| RefusedLine { unit_price: Some(price), ..line };
    assert_eq!(lines(&refusal), [priced(line(tea, "tea", 2, 10), 450), priced(line(cup, "cup", 1, 5), 1300)]);
}

#[tokio::test]
async fn an_order_of_a_cart_names_the_lines_whose_price_moved_since_it_was_shown() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 5).await);
    ann.adds(tea, 2).await.unwrap();
    ann.adds(cup, 1).await.unwrap();
    let order = |total| CreateOrderRequest { expected_total: Some(total), ..wish(&[]) };
    let moved = |refusal: &Told| -> Vec<(i64, Option<i64>)> {
        lines(refusal).into_iter().map(|line| (line.product_id, line.unit_price)).collect()
    };
    reprice(&admin, cup, 1300).await;
    let refusal = told(ann.orders(order(2 * 450 + 1200)).await);
    assert_eq!(refusal.facts["current_total"], "2200");
    assert_eq!(moved(&refusal), [(cup, Some(1300))]);

    // The cart shows the price of the cup now.
    assert_eq!(ann.cart().await.total, 2200);
    reprice(&admin, tea, 400).await;
    let refusal = told(ann.orders(order(2200)).await);
    assert_eq!(moved(&refusal), [(tea, Some(400))]);
    assert_eq!(ann.orders(order(2100)).await.unwrap().into_inner().total, 2100);
}

#[tokio::test]
async fn a_step_that_cannot_be_taken_names_the_status_and_the_steps_that_can() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let order = ann.buys(tea, 1).await.id;
    let facts = |answer| {
        let refusal = told(answer);
        assert_eq!(refusal.reason, "INVALID_TRANSITION");
        (refusal.facts["current_status"].clone(), refusal.facts["allowed"].clone())
    };
    let expect = |status: &str, allowed: &str| (status.to_owned(), allowed.to_owned());
    assert_eq!(facts(ann.completes(&order).await), expect("pending", r#"["pay","cancel"]"#));
    assert_eq!(facts(admin.ships(&order).await), expect("pending", r#"["cancel"]"#));
    ann.pays(&order).await.unwrap();
    assert_eq!(facts(ann.cancels(&order).await), expect("paid", "[]"));
    assert_eq!(facts(admin.completes(&order).await), expect("paid", r#"["ship","cancel"]"#));
}

#[tokio::test]
async fn a_declined_payment_says_why_also_when_it_is_repeated() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let order = ann.buys(tea, 1).await.id;
    for (token, code) in [("tok_declined", "card_declined"), ("tok_insufficient_funds", "insufficient_funds")]
    {
        for _ in 0..2 {
            let refusal = told(ann.pays_with(&order, token, Some(token)).await);
            assert_eq!(refusal.reason, "PAYMENT_DECLINED");
            assert_eq!(refusal.facts["decline_code"], code);
        }
    }
}
