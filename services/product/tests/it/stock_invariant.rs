//! A randomized concurrency test of the stock invariant: supplied = available + held + sold.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use shoppee_proto::product::v1::{BatchUpdateProductsRequest, OnError, ProductChange, UpdateProductRequest};
use uuid::Uuid;

use crate::test_shop::{TestShop, order, reason};

/// A deterministic random number generator: xorshift64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn amount(&mut self, bound: u64) -> i64 {
        i64::try_from(self.below(bound)).expect("small") + 1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_invariant_holds_under_concurrent_calls() {
    let shop = TestShop::start().await;
    let mut products = Vec::new();
    for at in 0..6 {
        products.push(shop.product(&format!("p{at}"), 40).await.id);
    }
    // Half of the calls use shared orders, so that concurrent calls conflict.
    let shared: Vec<Uuid> = (0..60).map(|_| order()).collect();
    let done = AtomicU64::new(0);
    let (shop_ref, products, shared, done_ref) = (&shop, &products, &shared, &done);
    let one = |seed: u64| async move {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..60 {
            let own = order();
            let pick = |rng: &mut Rng| products[usize::try_from(rng.below(6)).expect("small")];
            let on = match rng.below(2) {
                0 => own,
                _ => shared[usize::try_from(rng.below(60)).expect("small")],
            };
            let (a, b, count) = (pick(&mut rng), pick(&mut rng), rng.amount(3));
            let outcome = match rng.below(10) {
                0..=3 => {
                    let lines = if a == b { vec![(a, count)] } else { vec![(a, count), (b, 1)] };
                    shop_ref.hold_for(on, lines, rng.amount(20)).await.map(drop)
                }
                4 => shop_ref.commit(on).await,
                5 => shop_ref.release(on).await,
                6 => shop_ref.adjust(a, rng.amount(9) - 5).await.map(drop),
                7 => {
                    let lines = [(a, count)];
                    match shop_ref.hold(own, lines).await {
                        Ok(_) if rng.below(2) == 0 => shop_ref.commit(own).await,
                        Ok(_) => shop_ref.release(own).await,
                        Err(status) => Err(status),
                    }
                }
                8 => {
                    let request = UpdateProductRequest {
                        id: a,
                        stock: Some(rng.amount(30)),
                        update_mask: Some(prost_types::FieldMask { paths: vec!["stock".to_owned()] }),
                        ..UpdateProductRequest::default()
                    };
                    shop_ref.products.clone().update_product(shop_ref.admin(request)).await.map(drop)
                }
                _ => {
                    let item = |id, delta| ProductChange {
                        id: Some(id),
                        stock_delta: Some(delta),
                        price: Some(delta + 50),
                        ..ProductChange::default()
                    };
                    let request = BatchUpdateProductsRequest {
                        on_error: OnError::Continue.into(),
                        items: vec![item(a, rng.amount(5)), item(b, -rng.amount(5))],
                        idempotency_key: None,
                    };
                    let batch = shop_ref.admin(request);
                    shop_ref.products.clone().batch_update_products(batch).await.map(drop)
                }
            };
            match outcome {
                Ok(()) => {
                    done_ref.fetch_add(1, Ordering::Relaxed);
                }
                Err(status) => {
                    let reason = reason(Err::<(), _>(status));
                    let documented = [
                        "OUT_OF_STOCK",
                        "ORDER_EXPIRED",
                        "IDEMPOTENCY_KEY_REUSED",
                        "NOT_FOUND",
                        "VALIDATION_FAILED",
                    ];
                    assert!(documented.contains(&reason.as_str()), "{reason}");
                }
            }
            if rng.below(15) == 0 {
                shop_ref.process.process.clock.advance(Duration::from_secs(2));
            }
        }
    };
    let auditing = async {
        // The invariant holds during the calls too.
        for _ in 0..20 {
            shop.assert_stock_invariant().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(join_all((1..=16).map(one)), auditing);
    assert!(done.load(Ordering::Relaxed) > 300, "something happened");

    shop.process.process.clock.advance(Duration::from_hours(1));
    shoppee_kit::testing::eventually("every hold is over", || async {
        shop.count("select count(*) from product.stock_hold where state = 'held'").await == 0
    })
    .await;
    shop.assert_stock_invariant().await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(shop.count(deadlocks).await, 0);
}
