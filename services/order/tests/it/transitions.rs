use shoppee_kit::testing::eventually;
use shoppee_proto::order::v1::{Actor, ListOrdersRequest, OrderStatus, PaymentStatus};

use crate::shop::{Person, TestShop, expect_error, order_request};

/// Places an order of Ann's and moves it to a status.
async fn order_in_status(ann: &Person, admin: &Person, product: i64, status: OrderStatus) -> String {
    let id = ann.buys(product, 1).await.id;
    match status {
        OrderStatus::Unspecified | OrderStatus::Pending => {}
        OrderStatus::Paid => drop(ann.pays(&id).await.expect("a valid transition")),
        OrderStatus::Shipped => {
            ann.pays(&id).await.expect("a valid transition");
            admin.ships(&id).await.expect("a valid transition");
        }
        OrderStatus::Completed => {
            ann.pays(&id).await.expect("a valid transition");
            admin.ships(&id).await.expect("a valid transition");
            ann.completes(&id).await.expect("a valid transition");
        }
        OrderStatus::Cancelled => drop(ann.cancels(&id).await.expect("a valid transition")),
    }
    id
}

#[tokio::test]
async fn every_transition_from_every_status_by_every_person_follows_the_state_machine() {
    let shop = TestShop::start_with(|settings| settings.max_unpaid_orders = 1000).await;
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
        for action in ["pay", "ship", "complete", "cancel"] {
            for person_name in ["owner", "other", "admin"] {
                let id = order_in_status(&ann, &admin, tea, state).await;
                let (before, events) = (ann.get_order(&id).await.unwrap(), ann.events().await.len());
                let person = match person_name {
                    "owner" => &ann,
                    "other" => &ben,
                    _ => &admin,
                };
                let answer = match action {
                    "pay" => person.pays(&id).await,
                    "ship" => person.ships(&id).await,
                    "complete" => person.completes(&id).await,
                    _ => person.cancels(&id).await,
                };
                // A repeat of the last transition, with the same content, succeeds.
                let is_repeat = match action {
                    "ship" => {
                        [OrderStatus::Shipped, OrderStatus::Completed].contains(&state)
                            && person_name == "admin"
                    }
                    "complete" => state == OrderStatus::Completed && person_name != "other",
                    "cancel" => state == OrderStatus::Cancelled && person_name != "other",
                    _ => false,
                };
                let expected = match (action, person_name, state) {
                    _ if is_repeat => Ok(state),
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
                let case = format!("{action} by {person_name} from {state:?}");
                if let Ok(status) = expected {
                    let order = answer.expect(&case);
                    assert_eq!(order.status(), status, "{case}");
                    assert_eq!(order.version, before.version + i64::from(!is_repeat), "{case}");
                    assert_eq!(ann.events().await.len(), events + usize::from(!is_repeat), "{case}");
                } else {
                    assert_eq!(Err(expect_error(answer).as_str()), expected, "{case}");
                    assert_eq!(
                        ann.get_order(&id).await.unwrap(),
                        before,
                        "{case}: a rejected transition changes nothing"
                    );
                    assert_eq!(
                        ann.events().await.len(),
                        events,
                        "{case}: a rejected transition has no event"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn the_history_of_an_order_lists_all_its_transitions() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let id = ann.buys(tea, 3).await.id;
    ann.pays(&id).await.unwrap();
    admin.ships(&id).await.unwrap();
    let done = admin.completes(&id).await.unwrap();

    assert_eq!(done.total, 1350);
    assert_eq!(done.payment.unwrap().status(), PaymentStatus::Paid);
    assert_eq!(done.shipment.unwrap().tracking_number, "3S-1");
    let events: Vec<_> = ann
        .history(&id)
        .await
        .unwrap()
        .iter()
        .map(|event| {
            (event.seq, event.previous_status.map(|_| event.previous_status()), event.status(), event.actor())
        })
        .collect();
    assert_eq!(
        events,
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
async fn a_cancellation_returns_stock_and_payment_once() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;

    let pending = ann.buys(tea, 4).await.id;
    assert_eq!(admin.stock(tea).await, 6);
    ann.cancels(&pending).await.unwrap();
    assert_eq!(admin.stock(tea).await, 10, "the response waits for the release");
    ann.cancels(&pending).await.unwrap();
    assert_eq!(admin.stock(tea).await, 10, "and only once");

    let paid = ann.buys(tea, 4).await.id;
    ann.pays(&paid).await.unwrap();
    let cancelled = admin.cancels(&paid).await.unwrap();
    let payment = cancelled.payment.unwrap();
    assert_eq!((payment.status(), payment.refunded_at), (PaymentStatus::RefundPending, None));
    assert_eq!(admin.stock(tea).await, 10);
    eventually("the payment is refunded", || async {
        let payment = ann.get_order(&paid).await.unwrap().payment.unwrap();
        payment.status() == PaymentStatus::Refunded && payment.refunded_at.is_some()
    })
    .await;
    let refunded: i64 =
        sqlx::query_scalar("select count(*) from orders.sandbox_charge where outcome = 'refunded'")
            .fetch_one(&shop.db().await)
            .await
            .unwrap();
    assert_eq!(refunded, 1);
}

#[tokio::test]
async fn a_repeated_transition_with_other_content_is_rejected() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let cancelled = ann.buys(tea, 1).await.id;
    ann.cancels_with(&cancelled, Some("too dear"), None).await.unwrap();
    ann.cancels_with(&cancelled, Some("too dear"), None).await.unwrap();
    for other in [None, Some("too late")] {
        assert_eq!(expect_error(ann.cancels_with(&cancelled, other, None).await), "invalid_transition");
    }
    let shipped = ann.buys(tea, 1).await.id;
    ann.pays(&shipped).await.unwrap();
    admin.ships(&shipped).await.unwrap();
    assert_eq!(expect_error(admin.ships_with(&shipped, "3S-2", None).await), "invalid_transition");
    assert_eq!(expect_error(ann.pays(&shipped).await), "invalid_transition", "a payment has its key");
}

#[tokio::test]
async fn an_order_has_exact_totals_at_the_prices_of_its_placement() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let dear = admin.sells("yacht", 1_000_000_000_000, 5000).await;
    let cheap = admin.sells("pin", 1, 5000).await;
    let order =
        ann.orders(order_request(&[(dear, 1000), (cheap, 3), (cheap, 0)][..2])).await.unwrap().into_inner();
    assert_eq!(order.total, 1_000_000_000_000_000 + 3);
    assert_eq!(order.items.iter().map(|item| item.line_total).sum::<i64>(), order.total);

    let merged = ann.orders(order_request(&[(cheap, 3), (cheap, 4)])).await.unwrap().into_inner();
    assert_eq!((merged.items.len(), merged.items[0].quantity, merged.total), (1, 7, 7));

    let mut stale = order_request(&[(cheap, 2)]);
    stale.expected_total = Some(3);
    assert_eq!(expect_error(ann.orders(stale.clone()).await), "price_changed");
    stale.expected_total = Some(2);
    ann.orders(stale).await.unwrap();
    eventually("the rejected order holds nothing", || async { admin.stock(cheap).await == 5000 - 3 - 7 - 2 })
        .await;
}

#[tokio::test]
async fn orders_are_listed_newest_first_to_their_owner_and_to_admins() {
    let shop = TestShop::start().await;
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
    let mut listed = Vec::new();
    let mut cursor = None;
    loop {
        let request = ListOrdersRequest { limit: Some(2), cursor, ..ListOrdersRequest::default() };
        let (page, next) = list(&ann, request).await.unwrap();
        listed.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    placed.reverse();
    assert_eq!(listed, placed);

    let paid = ListOrdersRequest { status: Some(OrderStatus::Paid.into()), ..ListOrdersRequest::default() };
    assert_eq!(list(&ann, paid).await.unwrap().0, placed[4..]);
    let everyone = ListOrdersRequest { everyone: true, ..ListOrdersRequest::default() };
    assert_eq!(list(&admin, everyone.clone()).await.unwrap().0.len(), 6);
    let of_user = ListOrdersRequest { user_id: Some(ben.id), ..everyone.clone() };
    assert_eq!(list(&admin, of_user).await.unwrap().0, [of_ben]);
    assert_eq!(expect_error(list(&ann, everyone).await), "forbidden");
    let invalid = |limit, cursor: Option<&str>| ListOrdersRequest {
        limit,
        cursor: cursor.map(str::to_owned),
        ..ListOrdersRequest::default()
    };
    for request in [invalid(Some(0), None), invalid(Some(101), None), invalid(None, Some("nonsense"))] {
        assert_eq!(expect_error(list(&ann, request).await), "invalid_request");
    }
}

#[tokio::test]
async fn an_order_of_another_user_is_not_found() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let tea = admin.sells("tea", 450, 100).await;
    let id = ann.buys(tea, 1).await.id;
    for unknown in [id.as_str(), "0197a6b0-0000-7000-8000-000000000000", "no id"] {
        assert_eq!(expect_error(ben.get_order(unknown).await), "not_found");
        assert_eq!(expect_error(ben.history(unknown).await), "not_found");
        assert_eq!(expect_error(ben.cancels(unknown).await), "not_found");
    }
    assert_eq!(admin.get_order(&id).await.unwrap().id, id);
    assert_eq!(ben.events().await.len(), 0);
}
