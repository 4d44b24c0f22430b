use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{Actor, ListOrdersRequest, OrderStatus, PaymentStatus};

use crate::shop::{Person, Shop, refused, wish};

/// An order of Ann's in each state.
async fn in_state(ann: &Person, admin: &Person, product: i64, status: OrderStatus) -> String {
    let id = ann.buys(product, 1).await.id;
    match status {
        OrderStatus::Unspecified | OrderStatus::Pending => {}
        OrderStatus::Paid => drop(ann.pays(&id).await.expect("a legal step")),
        OrderStatus::Shipped => {
            ann.pays(&id).await.expect("a legal step");
            admin.ships(&id).await.expect("a legal step");
        }
        OrderStatus::Completed => {
            ann.pays(&id).await.expect("a legal step");
            admin.ships(&id).await.expect("a legal step");
            ann.completes(&id).await.expect("a legal step");
        }
        OrderStatus::Cancelled => drop(ann.cancels(&id).await.expect("a legal step")),
    }
    id
}

#[tokio::test]
async fn every_step_from_every_state_by_everybody() {
    let shop = Shop::open_with(|settings| settings.max_unpaid_orders = 1000).await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 1000).await;
    let states = [
        OrderStatus::Pending,
        OrderStatus::Paid,
        OrderStatus::Shipped,
        OrderStatus::Completed,
        OrderStatus::Cancelled,
    ];
    for state in states {
        for step in ["pay", "ship", "complete", "cancel"] {
            for who in ["owner", "other", "admin"] {
                let id = in_state(&ann, &admin, tea, state).await;
                let (before, told) = (ann.sees(&id).await.unwrap(), ann.events().await.len());
                let person = match who {
                    "owner" => &ann,
                    "other" => &ben,
                    _ => &admin,
                };
                let answer = match step {
                    "pay" => person.pays(&id).await,
                    "ship" => person.ships(&id).await,
                    "complete" => person.completes(&id).await,
                    _ => person.cancels(&id).await,
                };
                // Taken before, with the same content.
                let taken = match step {
                    "ship" => {
                        [OrderStatus::Shipped, OrderStatus::Completed].contains(&state) && who == "admin"
                    }
                    "complete" => state == OrderStatus::Completed && who != "other",
                    "cancel" => state == OrderStatus::Cancelled && who != "other",
                    _ => false,
                };
                let expected = match (step, who, state) {
                    _ if taken => Ok(state),
                    ("ship", "owner" | "other", _) | ("pay", "admin", _) => Err("forbidden"),
                    (_, "other", _) => Err("not_found"),
                    ("pay", _, OrderStatus::Pending) => Ok(OrderStatus::Paid),
                    ("ship", _, OrderStatus::Paid) => Ok(OrderStatus::Shipped),
                    ("complete", _, OrderStatus::Shipped) => Ok(OrderStatus::Completed),
                    ("cancel", _, OrderStatus::Pending) | ("cancel", "admin", OrderStatus::Paid) => {
                        Ok(OrderStatus::Cancelled)
                    }
                    _ => Err("invalid_transition"),
                };
                let case = format!("{step} by {who} from {state:?}");
                if let Ok(status) = expected {
                    let order = answer.expect(&case);
                    assert_eq!(order.status(), status, "{case}");
                    assert_eq!(order.version, before.version + i64::from(!taken), "{case}");
                    assert_eq!(ann.events().await.len(), told + usize::from(!taken), "{case}");
                } else {
                    assert_eq!(Err(refused(answer).as_str()), expected, "{case}");
                    assert_eq!(
                        ann.sees(&id).await.unwrap(),
                        before,
                        "{case}: a refused step changes nothing"
                    );
                    assert_eq!(ann.events().await.len(), told, "{case}: a refused step tells nothing");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_whole_life_of_an_order_is_in_its_history() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let id = ann.buys(tea, 3).await.id;
    ann.pays(&id).await.unwrap();
    admin.ships(&id).await.unwrap();
    let done = admin.completes(&id).await.unwrap();

    assert_eq!(done.total, 1350);
    assert_eq!(done.payment.unwrap().status(), PaymentStatus::Paid);
    assert_eq!(done.shipment.unwrap().tracking_number, "3S-1");
    let told: Vec<_> = ann
        .history(&id)
        .await
        .unwrap()
        .iter()
        .map(|event| {
            (event.seq, event.previous_status.map(|_| event.previous_status()), event.status(), event.actor())
        })
        .collect();
    assert_eq!(
        told,
        [
            (1, None, OrderStatus::Pending, Actor::Customer),
            (2, Some(OrderStatus::Pending), OrderStatus::Paid, Actor::Customer),
            (3, Some(OrderStatus::Paid), OrderStatus::Shipped, Actor::Admin),
            (4, Some(OrderStatus::Shipped), OrderStatus::Completed, Actor::Admin),
        ]
    );
    assert_eq!(admin.history(&id).await.unwrap().len(), 4);
    assert_eq!(admin.stock(tea).await, 7);
}

#[tokio::test]
async fn stock_comes_back_once_and_money_too() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;

    let pending = ann.buys(tea, 4).await.id;
    assert_eq!(admin.stock(tea).await, 6);
    ann.cancels(&pending).await.unwrap();
    assert_eq!(admin.stock(tea).await, 10, "back as soon as the cancellation is answered");
    ann.cancels(&pending).await.unwrap();
    assert_eq!(admin.stock(tea).await, 10, "and only once");

    let paid = ann.buys(tea, 4).await.id;
    ann.pays(&paid).await.unwrap();
    let cancelled = admin.cancels(&paid).await.unwrap();
    let payment = cancelled.payment.unwrap();
    assert_eq!((payment.status(), payment.refunded_at), (PaymentStatus::RefundPending, None));
    assert_eq!(admin.stock(tea).await, 10);
    eventually("the money is back", || async {
        let payment = ann.sees(&paid).await.unwrap().payment.unwrap();
        payment.status() == PaymentStatus::Refunded && payment.refunded_at.is_some()
    })
    .await;
    let refunded: i64 =
        sqlx::query_scalar("select count(*) from orders.sandbox_charge where outcome = 'refunded'")
            .fetch_one(&shop.look().await)
            .await
            .unwrap();
    assert_eq!(refunded, 1);
}

#[tokio::test]
async fn a_step_that_was_taken_with_other_content_is_refused() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let cancelled = ann.buys(tea, 1).await.id;
    ann.cancels_as(&cancelled, Some("too dear"), None).await.unwrap();
    ann.cancels_as(&cancelled, Some("too dear"), None).await.unwrap();
    for other in [None, Some("too late")] {
        assert_eq!(refused(ann.cancels_as(&cancelled, other, None).await), "invalid_transition");
    }
    let shipped = ann.buys(tea, 1).await.id;
    ann.pays(&shipped).await.unwrap();
    admin.ships(&shipped).await.unwrap();
    assert_eq!(refused(admin.ships_as(&shipped, "3S-2", None).await), "invalid_transition");
    assert_eq!(refused(ann.pays(&shipped).await), "invalid_transition", "a payment has its key");
}

#[tokio::test]
async fn totals_are_exact_and_prices_frozen() {
    let shop = Shop::open().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let dear = admin.sells("yacht", 1_000_000_000_000, 5000).await;
    let cheap = admin.sells("pin", 1, 5000).await;
    let order = ann.orders(wish(&[(dear, 1000), (cheap, 3), (cheap, 0)][..2])).await.unwrap().into_inner();
    assert_eq!(order.total, 1_000_000_000_000_000 + 3);
    assert_eq!(order.items.iter().map(|item| item.line_total).sum::<i64>(), order.total);

    let merged = ann.orders(wish(&[(cheap, 3), (cheap, 4)])).await.unwrap().into_inner();
    assert_eq!((merged.items.len(), merged.items[0].quantity, merged.total), (1, 7, 7));

    let mut stale = wish(&[(cheap, 2)]);
    stale.expected_total = Some(3);
    assert_eq!(refused(ann.orders(stale.clone()).await), "price_changed");
    stale.expected_total = Some(2);
    ann.orders(stale).await.unwrap();
    eventually("the refused order holds nothing", || async { admin.stock(cheap).await == 5000 - 3 - 7 - 2 })
        .await;
}

#[tokio::test]
async fn orders_are_listed_newest_first_to_their_owner_and_to_admins() {
    let shop = Shop::open().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let mut placed = Vec::new();
    for _ in 0..5 {
        placed.push(ann.buys(tea, 1).await.id);
    }
    let of_ben = ben.buys(tea, 1).await.id;
    ann.pays(&placed[0]).await.unwrap();

    let list = async |person: &Person, request: ListOrdersRequest| {
        let answer = person.service().list_orders(person.request(request)).await;
        answer.map(|answer| {
            let page = answer.into_inner();
            (page.items.into_iter().map(|order| order.id).collect::<Vec<_>>(), page.next_cursor)
        })
    };
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let request = ListOrdersRequest { limit: Some(2), cursor, ..ListOrdersRequest::default() };
        let (page, next) = list(&ann, request).await.unwrap();
        seen.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    placed.reverse();
    assert_eq!(seen, placed);

    let paid = ListOrdersRequest { status: Some(OrderStatus::Paid.into()), ..ListOrdersRequest::default() };
    assert_eq!(list(&ann, paid).await.unwrap().0, placed[4..]);
    let everyone = ListOrdersRequest { everyone: true, ..ListOrdersRequest::default() };
    assert_eq!(list(&admin, everyone.clone()).await.unwrap().0.len(), 6);
    let of_user = ListOrdersRequest { user_id: Some(ben.id), ..everyone.clone() };
    assert_eq!(list(&admin, of_user).await.unwrap().0, [of_ben]);
    assert_eq!(refused(list(&ann, everyone).await), "forbidden");
    let odd = |limit, cursor: Option<&str>| ListOrdersRequest {
        limit,
        cursor: cursor.map(str::to_owned),
        ..ListOrdersRequest::default()
    };
    for request in [odd(Some(0), None), odd(Some(101), None), odd(None, Some("nonsense"))] {
        assert_eq!(refused(list(&ann, request).await), "invalid_request");
    }
}

#[tokio::test]
async fn what_is_another_users_does_not_exist() {
    let shop = Shop::open().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let id = ann.buys(tea, 1).await.id;
    for unknown in [id.as_str(), "0197a6b0-0000-7000-8000-000000000000", "no id"] {
        assert_eq!(refused(ben.sees(unknown).await), "not_found");
        assert_eq!(refused(ben.history(unknown).await), "not_found");
        assert_eq!(refused(ben.cancels(unknown).await), "not_found");
    }
    assert_eq!(admin.sees(&id).await.unwrap().id, id);
    assert_eq!(ben.events().await.len(), 0);
}
