//! Tests of hold, commit, release and expiry: repeated, reordered and concurrent calls.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    ArchiveProductRequest, HoldRequest, HoldResponse, ListHoldsRequest, RefusedLine, ReleaseReason,
    UpdateProductRequest,
};

use crate::test_shop::{TestShop, order, reason, refused_lines};

#[tokio::test(flavor = "multi_thread")]
async fn the_last_unit_is_held_by_one_of_two_hundred_orders() {
    let shop = TestShop::start().await;
    let product = shop.product("last", 1).await.id;
    let answers = join_all((0..200).map(|_| shop.hold(order(), [(product, 1)])));
    let answers = answers.await;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(won, 1);
    for answer in answers.into_iter().filter(Result::is_err) {
        assert_eq!(reason(answer), "OUT_OF_STOCK");
    }
    assert_eq!(shop.stock_of(product).await, 0);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_holds_take_exactly_the_stock() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("a", 300).await.id, shop.product("b", 300).await.id);
    let lines = [vec![(a, 1), (b, 1)], vec![(b, 1), (a, 1)], vec![(a, 2)]];
    let requests: Vec<_> = (0..600).map(|n| lines[n % 3].clone()).collect();
    let answers = join_all(requests.iter().map(|lines| shop.hold(order(), lines.clone()))).await;
    let (mut left_a, mut left_b) = (300, 300);
    for (answer, lines) in answers.into_iter().zip(requests) {
        match answer {
            Ok(hold) => {
                let taken =
                    |id| hold.lines.iter().find(|line| line.product_id == id).map_or(0, |l| l.quantity);
                left_a -= taken(a);
                left_b -= taken(b);
                assert_eq!(hold.lines.len(), lines.len(), "whole or not at all");
            }
            Err(status) => assert_eq!(reason(Err::<(), _>(status)), "OUT_OF_STOCK"),
        }
    }
    assert_eq!((shop.stock_of(a).await, shop.stock_of(b).await), (left_a, left_b));
    assert_eq!(left_a, 0, "more was requested than available");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(shop.count(deadlocks).await, 0);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_hold_returns_the_same_lines() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.product("a", 10).await.id, shop.product("b", 10).await.id);
    let order_id = order();
    let first = shop.hold(order_id, [(b, 2), (a, 1)]).await.unwrap();
    assert_eq!(first.lines.iter().map(|line| line.product_id).collect::<Vec<_>>(), [a, b]);
    assert_eq!((first.lines[0].unit_price, first.currency.as_str()), (1000, "EUR"));

    // A price change does not affect the hold.
    let dearer = UpdateProductRequest {
        id: a,
        price: Some(2000),
        update_mask: Some(mask(&["price"])),
        ..UpdateProductRequest::default()
    };
    shop.products.clone().update_product(shop.admin(dearer)).await.unwrap();
    let again = shop.hold(order_id, [(a, 1), (b, 2)]).await.unwrap();
    assert_eq!(again.lines, first.lines);
    assert_eq!(shop.stock_of(b).await, 8);

    assert_eq!(reason(shop.hold(order_id, [(a, 1)]).await), "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(reason(shop.hold(order_id, [(a, 1), (b, 3)]).await), "IDEMPOTENCY_KEY_REUSED");
    // Concurrent requests for a new hold.
    let new = order();
    let answers = join_all((0..50).map(|_| shop.hold(new, [(a, 3)]))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|hold| hold.lines[0].unit_price == 2000)));
    assert_eq!(shop.stock_of(a).await, 6);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_hold_extends_and_never_shortens_it() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let order_id = order();
    let until = |hold: shoppee_proto::product::v1::HoldResponse| hold.expires_at.unwrap().seconds;
    let first = until(shop.hold_for(order_id, [(product, 1)], 60).await.unwrap());
    let longer = until(shop.hold_for(order_id, [], 600).await.unwrap());
    assert!((539..=541).contains(&(longer - first)), "{first} {longer}");
    let shorter = until(shop.hold_for(order_id, [(product, 1)], 5).await.unwrap());
    assert_eq!(shorter, longer);
    assert_eq!(reason(shop.hold_for(order(), [], 60).await), "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_call_with_an_older_fence_changes_nothing() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let order_id = order();
    let first = shop.hold(order_id, [(product, 1)]).await.unwrap();
    assert_eq!(first.lines[0].available, 9);
    let call = |fence, ttl_seconds, shorten| {
        let order_id = order_id.to_string();
        shop.hold_as(HoldRequest { order_id, ttl_seconds, fence, shorten, ..HoldRequest::default() })
    };
    let lasts = async |answer: Result<HoldResponse, tonic::Status>| {
        let until = answer.unwrap().expires_at.unwrap().seconds;
        until - first.expires_at.unwrap().seconds + 60
    };
    let around = |seconds: i64| seconds - 1..=seconds + 15;
    assert!(around(600).contains(&lasts(call(1, 600, false).await).await));
    assert!(around(90).contains(&lasts(call(1, 90, true).await).await), "cut back");
    assert!(around(700).contains(&lasts(call(2, 700, false).await).await));
    // Late calls with the fencing token of the first attempt.
    assert!(around(700).contains(&lasts(call(1, 90, true).await).await));
    assert!(around(700).contains(&lasts(call(1, 9000, false).await).await));
    assert!(around(700).contains(&lasts(call(2, 9000, true).await).await), "shortened, never prolonged");
    shop.commit(order_id).await.unwrap();
    call(3, 1, true).await.unwrap();
    shop.commit(order_id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_commit_and_release_are_idempotent() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let one = [(product, 1)];

    let sold = order();
    shop.hold(sold, one).await.unwrap();
    shop.commit(sold).await.unwrap();
    shop.commit(sold).await.unwrap();
    // A repeated hold of a committed order returns the same lines.
    assert_eq!(shop.hold(sold, one).await.unwrap().lines[0].quantity, 1);
    assert_eq!(shop.stock_of(product).await, 9);

    let released = order();
    shop.hold(released, one).await.unwrap();
    shop.release(released).await.unwrap();
    shop.release(released).await.unwrap();
    assert_eq!(reason(shop.commit(released).await), "ORDER_EXPIRED");
    assert_eq!(reason(shop.hold(released, one).await), "ORDER_EXPIRED");
    assert_eq!(reason(shop.hold(released, []).await), "ORDER_EXPIRED");
    assert_eq!(shop.stock_of(product).await, 9);

    // Sold units are returned once.
    shop.release(sold).await.unwrap();
    shop.release(sold).await.unwrap();
    assert_eq!(reason(shop.commit(sold).await), "ORDER_EXPIRED");
    assert_eq!(shop.stock_of(product).await, 10);
    assert_eq!(reason(shop.commit(order()).await), "NOT_FOUND");
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_after_its_release_is_refused() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let late = order();
    shop.release(late).await.unwrap();
    shop.release(late).await.unwrap();
    assert_eq!(reason(shop.hold(late, [(product, 1)]).await), "ORDER_EXPIRED");
    assert_eq!(reason(shop.commit(late).await), "ORDER_EXPIRED");
    assert_eq!(shop.stock_of(product).await, 10);

    // Concurrent calls: in either order all units are returned.
    for _ in 0..50 {
        let order_id = order();
        let (hold, release) = tokio::join!(shop.hold(order_id, [(product, 1)]), shop.release(order_id));
        release.unwrap();
        if let Err(status) = hold {
            assert_eq!(reason(Err::<(), _>(status)), "ORDER_EXPIRED");
        }
        assert_eq!(reason(shop.commit(order_id).await), "ORDER_EXPIRED");
    }
    assert_eq!(shop.stock_of(product).await, 10);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_checkout_releases_a_hold_but_not_sold_units() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 10).await.id;
    let abandon = |order| shop.release_for(order, ReleaseReason::CheckoutAbandoned);

    let held = order();
    shop.hold(held, [(product, 2)]).await.unwrap();
    abandon(held).await.unwrap();
    abandon(held).await.unwrap();
    assert_eq!(shop.stock_of(product).await, 10);
    let early = order();
    abandon(early).await.unwrap();
    assert_eq!(reason(shop.hold(early, [(product, 1)]).await), "ORDER_EXPIRED", "a release before its hold");

    let sold = order();
    shop.hold(sold, [(product, 3)]).await.unwrap();
    shop.commit(sold).await.unwrap();
    assert_eq!(reason(abandon(sold).await), "HOLD_COMMITTED");
    assert_eq!(shop.stock_of(product).await, 7);
    // Concurrent calls: the units are either sold or returned.
    let mut left = 7;
    for _ in 0..20 {
        let order_id = order();
        shop.hold(order_id, [(product, 1)]).await.unwrap();
        let (committed, abandoned) = tokio::join!(shop.commit(order_id), abandon(order_id));
        assert_ne!(committed.is_ok(), abandoned.is_ok());
        left -= i64::from(committed.is_ok());
        shop.release_for(order_id, ReleaseReason::OrderCancelled).await.unwrap();
        left += i64::from(committed.is_ok());
        // Throttled stock changes are visible within a second.
        eventually("what is left shows", || async { shop.stock_of(product).await == left }).await;
    }
    shop.release_for(sold, ReleaseReason::OrderCancelled).await.unwrap();
    eventually("a cancelled order returns what was sold", || async { shop.stock_of(product).await == 10 })
        .await;
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_hold_returns_its_units() {
    let shop = TestShop::start().await;
    let product = shop.product("a", 700).await.id;
    let orders: Vec<_> = (0..600).map(|_| order()).collect();
    for outcome in join_all(orders.iter().map(|order| shop.hold_for(*order, [(product, 1)], 60))).await {
        outcome.unwrap();
    }
    shop.commit(orders[0]).await.unwrap();
    shop.hold_for(orders[1], [], 600).await.unwrap();
    assert_eq!(shop.stock_of(product).await, 100);

    shop.process.process.clock.advance(Duration::from_secs(61));
    // A hold is expired at once, even before its stock is released.
    assert_eq!(reason(shop.commit(orders[2]).await), "ORDER_EXPIRED");
    assert_eq!(reason(shop.hold(orders[3], [(product, 1)]).await), "ORDER_EXPIRED");
    shop.release(orders[4]).await.unwrap();
    shop.wait_until_stock_is(product, 698).await;
    assert_eq!(reason(shop.commit(orders[5]).await), "ORDER_EXPIRED");
    shop.release(orders[5]).await.unwrap();
    shop.commit(orders[1]).await.unwrap();
    assert_eq!(shop.stock_of(product).await, 698);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_hold_names_the_products() {
    let shop = TestShop::start().await;
    let (few, gone) = (shop.product("few", 2).await.id, shop.product("gone", 5).await.id);
    let archive = ArchiveProductRequest { id: gone, expected_version: None };
    shop.products.clone().archive_product(shop.admin(archive)).await.unwrap();

    let unavailable = || shop.hold(order(), [(few, 1), (gone, 1), (999, 1)]);
    assert_eq!(reason(unavailable().await), "PRODUCT_UNAVAILABLE");
    let line = |product_id, sku: Option<&str>, requested, available| RefusedLine {
        product_id,
        sku: sku.map(str::to_owned),
        requested,
        available,
        ..RefusedLine::default()
    };
    let expected = [line(gone, Some("gone"), 1, 0), line(999, None, 1, 0)];
    assert_eq!(refused_lines(unavailable().await), expected);
    let short = || shop.hold(order(), [(few, 3)]);
    assert_eq!(reason(short().await), "OUT_OF_STOCK");
    assert_eq!(refused_lines(short().await), [line(few, Some("few"), 3, 2)]);
    let correction = shop.adjust(few, -3).await;
    assert_eq!(refused_lines(correction), [line(few, Some("few"), 3, 2)]);
    for invalid in [vec![(few, 0)], vec![(few, 1001)], vec![(few, 1), (few, 1)]] {
        assert_eq!(reason(shop.hold(order(), invalid).await), "VALIDATION_FAILED");
    }
    assert_eq!(reason(shop.hold_for(order(), [(few, 1)], 0).await), "VALIDATION_FAILED");
    assert_eq!(shop.stock_of(few).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_lists_its_own_holds_page_by_page() {
    let shop = TestShop::start().await;
    let tea = shop.product("tea", 100).await.id;
    let orders: Vec<_> = (0..6).map(|_| order()).collect();
    for order in &orders {
        shop.hold(*order, [(tea, 1)]).await.unwrap();
    }
    let [held, committed, released, foreign, old, newest] = orders[..] else { unreachable!("there are six") };
    shop.commit(committed).await.unwrap();
    shop.release(released).await.unwrap();
    // A hold of another service, and one of the version before.
    for (order, caller) in [(foreign, Some("warehouse")), (old, None)] {
        sqlx::query("update product.stock_hold set caller = $2 where order_id = $1 and caller = 'order'")
            .bind(order)
            .bind(caller)
            .execute(&shop.pool)
            .await
            .unwrap();
    }
    let list = async |request: ListHoldsRequest| {
        let page = shop.audit.clone().list_holds(shop.service(request)).await.unwrap().into_inner();
        (page.order_ids, page.next_after_order_id)
    };
    let ids = |orders: &[uuid::Uuid]| orders.iter().map(ToString::to_string).collect::<Vec<_>>();
    let all = ListHoldsRequest { limit: 500, ..ListHoldsRequest::default() };
    assert_eq!(list(all.clone()).await, (ids(&[held, committed, old, newest]), None));
    let until = ListHoldsRequest { until_order_id: old.to_string(), held_only: true, ..all };
    assert_eq!(list(until.clone()).await, (ids(&[held, old]), None));
    // The limit counts the holds that are left out.
    let first = ListHoldsRequest { limit: 4, ..until };
    assert_eq!(list(first.clone()).await, (ids(&[held]), Some(foreign.to_string())));
    let second = ListHoldsRequest { after_order_id: foreign.to_string(), ..first };
    assert_eq!(list(second).await, (ids(&[old]), None));
}

fn mask(paths: &[&str]) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }
}
