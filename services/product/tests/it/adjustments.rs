//! Tests of stock corrections that are requested at once.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use shoppee_proto::product::v1::AdjustStockRequest;

use crate::test_shop::{TestShop, order, reason};

fn adjustment(id: i64, delta: i64, key: Option<String>) -> AdjustStockRequest {
    AdjustStockRequest { id, delta, reason: "delivery".to_owned(), idempotency_key: key }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_simultaneous_corrections_are_each_answered_with_their_stock() {
    let shop = TestShop::start().await;
    let replica = shop.replica().await;
    let product = shop.product("a", 0).await;
    let adjust = async |number: usize| {
        let request = shop.admin(adjustment(product.id, 1, Some(format!("key-{number}"))));
        let products = if number.is_multiple_of(2) { &shop.products } else { &replica.products };
        products.clone().adjust_stock(request).await.expect("corrected").into_inner()
    };
    let adjusted = join_all((0..100).map(adjust)).await;
    let stocks: BTreeSet<i64> = adjusted.iter().map(|product| product.stock).collect();
    assert_eq!(stocks, (1..=100).collect(), "each stock once");
    let versions: BTreeSet<i64> = adjusted.iter().map(|product| product.version).collect();
    assert_eq!(versions, (product.version + 1..=product.version + 100).collect());
    // The answers are saved under their keys.
    let repeated = join_all((0..100).map(adjust)).await;
    assert_eq!(repeated, adjusted);
    assert_eq!(shop.stock_of(product.id).await, 100);
    assert_eq!(shop.count("select count(*) from product.stock_ledger where kind = 'adjustment'").await, 100);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_and_holds_of_one_product_lose_no_unit() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 50).await.id;
    let holds = join_all((0..200).map(|_| shop.hold(order(), [(product, 1)])));
    let delta = |number: usize| if number.is_multiple_of(2) { 2 } else { -1 };
    let corrections = join_all((0..100).map(|number| shop.adjust(product, delta(number))));
    let (held, corrected) = tokio::join!(holds, corrections);
    let units = held.iter().filter(|hold| hold.is_ok()).count();
    for refused in held.into_iter().filter(Result::is_err) {
        assert_eq!(reason(refused), "OUT_OF_STOCK");
    }
    let mut supplied = 50;
    for (number, outcome) in corrected.into_iter().enumerate() {
        match outcome {
            Ok(_) => supplied += delta(number),
            Err(status) => assert_eq!(reason(Err::<(), _>(status)), "OUT_OF_STOCK"),
        }
    }
    let available = format!("select available from product.stock where product_id = {product}");
    assert_eq!(shop.count(&available).await + i64::try_from(units).expect("small"), supplied);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_corrections_under_a_few_keys_have_one_effect_each() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("a", 0).await.id, shop.product("b", 0).await.id);
    let send = async |number: usize| {
        let key = format!("key-{}", number % 5);
        // The last key comes with two requests.
        let id = if number % 10 == 9 { b } else { a };
        shop.products.clone().adjust_stock(shop.admin(adjustment(id, 1, Some(key)))).await
    };
    let outcomes = join_all((0..100).map(send)).await;
    let refused: Vec<_> = outcomes.into_iter().filter(Result::is_err).map(reason).collect();
    assert_eq!(refused, vec!["IDEMPOTENCY_KEY_REUSED"; 10]);
    let total = "select sum(available)::bigint from product.stock";
    assert_eq!(shop.count(total).await, 5);
    shop.assert_stock_invariant().await;
}
