use std::time::Duration;

use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{Actor, OrderStatus};

use crate::shop::{Shop, refused};

#[tokio::test]
async fn an_order_that_is_not_paid_runs_out_and_its_stock_comes_back() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let (kept, lost) = (ann.buys(tea, 1).await.id, ann.buys(tea, 2).await.id);
    ann.pays(&kept).await.unwrap();

    shop.let_pass(Duration::from_mins(15));
    assert_eq!(refused(ann.pays(&lost).await), "order_expired");
    eventually("it is cancelled", || async {
        ann.sees(&lost).await.unwrap().status() == OrderStatus::Cancelled
    })
    .await;
    eventually("its stock is back", || async { admin.stock(tea).await == 9 }).await;
    let end = ann.history(&lost).await.unwrap().pop().unwrap();
    assert_eq!((end.actor(), end.reason.as_deref()), (Actor::System, Some("expired")));
    for step in [ann.pays(&lost).await, ann.cancels(&lost).await] {
        assert_eq!(refused(step), "order_expired");
    }
    assert_eq!(ann.sees(&kept).await.unwrap().status(), OrderStatus::Paid, "what is paid stays");
}

#[tokio::test]
async fn only_so_many_orders_may_wait_for_payment() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_orders = 3).await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    let wishes: Vec<_> = (0..12)
        .map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(crate::shop::wish(&[(tea, 1)])).await })
        })
        .collect();
    let mut placed = Vec::new();
    for wish in wishes {
        match wish.await.unwrap() {
            Ok(order) => placed.push(order.into_inner().id),
            other => assert_eq!(refused(other), "too_many_unpaid_orders"),
        }
    }
    assert_eq!(placed.len(), 3, "exactly, though they came at once");
    eventually("the refused ones hold nothing", || async { admin.stock(tea).await == 97 }).await;
    ann.pays(&placed[0]).await.unwrap();
    ann.buys(tea, 1).await;
}
