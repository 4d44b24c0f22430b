//! The audit log: each act of an admin or a service on an order has one record, and customers' own acts have none.

use serde_json::json;
use shoppee_kit::testing::{audit_records, audited_fields, mutating_methods};
use shoppee_proto::{audit::v1::AuditRecord, order::v1::*};
use tonic::Request;

use crate::shop::{Person, TestShop};

/// The methods with which users act on what they own.
const OWN_ACTS: [&str; 6] =
    ["AddCartItem", "ClearCart", "CreateOrder", "PayOrder", "RemoveCartItem", "SetCartItem"];

async fn records(shop: &TestShop, admin: &Person) -> Vec<AuditRecord> {
    audit_records(&shop.order_url(), &admin.token).await
}

/// Adds an id to a request.
fn with_id<T>(id: &str, mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert("x-request-id", id.parse().expect("an id"));
    request
}

fn cancellation(order: &Order) -> CancelOrderRequest {
    CancelOrderRequest { id: order.id.clone(), reason: Some("no stock".to_owned()), idempotency_key: None }
}

fn shipment(order: &Order) -> ShipOrderRequest {
    ShipOrderRequest {
        id: order.id.clone(),
        carrier: "Post".to_owned(),
        tracking_number: "3S-1".to_owned(),
        idempotency_key: None,
    }
}

/// Places and pays an order.
async fn paid(person: &Person, product: i64) -> Order {
    let order = person.buys(product, 1).await;
    person.pays(&order.id).await.expect("paid")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_act_of_an_admin_has_one_record() {
    let shop = TestShop::start().await;
    let (root, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = root.sells("lamp", 1000, 100).await;
    let mut orders = root.service();
    for method in mutating_methods("shoppee.order.v1") {
        if OWN_ACTS.contains(&method.as_str()) {
            continue;
        }
        let order = paid(&ann, product).await;
        let id = format!("act.{method}");
        let action = match method.as_str() {
            "CancelOrder" => {
                orders.cancel_order(with_id(&id, root.request(cancellation(&order)))).await.unwrap();
                "order.cancel"
            }
            "ShipOrder" => {
                orders.ship_order(with_id(&id, root.request(shipment(&order)))).await.unwrap();
                "order.ship"
            }
            "CompleteOrder" => {
                root.ships(&order.id).await.unwrap();
                let request = CompleteOrderRequest { id: order.id.clone(), idempotency_key: None };
                orders.complete_order(with_id(&id, root.request(request))).await.unwrap();
                "order.complete"
            }
            other => panic!("{other} needs an audit record: act here, or add it to OWN_ACTS"),
        };
        let records = records(&shop, &root).await;
        let own: Vec<_> = records.iter().filter(|record| record.request_id() == id).collect();
        assert_eq!(own.len(), 1, "{method}: {own:?}");
        assert_eq!(own[0].action, action);
        let target = own[0].target.clone().unwrap();
        assert_eq!((target.kind.as_str(), target.id), ("order", order.id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_service_have_its_name_and_no_address() {
    let shop = TestShop::start().await;
    let (root, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = root.sells("lamp", 1000, 100).await;
    let (shipped, cancelled) = (paid(&ann, product).await, paid(&ann, product).await);
    let mut orders = root.service();
    let ship_service = shop.service("orders:ship").await;
    for _ in 0..2 {
        // The repeat changes nothing.
        orders.ship_order(ship_service.request(shipment(&shipped))).await.unwrap();
    }
    let cancel_service = shop.service("orders:cancel").await;
    orders.cancel_order(cancel_service.request(cancellation(&cancelled))).await.unwrap();

    let records = records(&shop, &root).await;
    let [cancellation, shipment] = &records[..] else { panic!("{records:?}") };
    for record in [cancellation, shipment] {
        let actor = record.actor.clone().unwrap();
        assert_eq!((actor.kind.as_str(), actor.name()), ("service", "warehouse"));
        assert_eq!(record.service, "order");
    }
    assert_eq!(
        audited_fields(shipment.before.as_ref()),
        json!({"status": "paid", "carrier": null, "tracking_number": null})
    );
    assert_eq!(
        audited_fields(shipment.after.as_ref()),
        json!({"status": "shipped", "carrier": "Post", "tracking_number": "3S-1"})
    );
    assert_eq!(
        audited_fields(cancellation.before.as_ref()),
        json!({"status": "paid", "payment_status": "paid", "cancel_reason": null})
    );
    assert_eq!(
        audited_fields(cancellation.after.as_ref()),
        json!({"status": "cancelled", "payment_status": "refund_pending", "cancel_reason": "no stock"})
    );
    for (order, step) in [(&shipped, OrderStatus::Shipped), (&cancelled, OrderStatus::Cancelled)] {
        let history = ann.history(&order.id).await.unwrap();
        let last = history.last().unwrap();
        assert_eq!(
            (last.status(), last.actor(), last.actor_word.as_str()),
            (step, Actor::Service, "service")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_acts_of_customers_and_admins_have_no_record() {
    let shop = TestShop::start().await;
    let (root, ann) = (shop.admin().await, shop.customer("ann").await);
    let product = root.sells("lamp", 1000, 100).await;
    for buyer in [&root, &ann] {
        buyer.add_to_cart(product, 1).await.unwrap();
        let order = buyer.buys(product, 1).await;
        buyer.cancels(&order.id).await.unwrap();
    }
    let order = paid(&ann, product).await;
    root.ships(&order.id).await.unwrap();
    ann.completes(&order.id).await.unwrap();
    let refused = root.cancels(&order.id).await;
    assert!(refused.is_err(), "{refused:?}");
    let actions: Vec<_> = records(&shop, &root).await.into_iter().map(|record| record.action).collect();
    assert_eq!(actions, ["order.ship"]);
}
