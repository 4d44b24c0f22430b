//! Examples. Responses are built from messages, so that they have the form of real ones; request bodies are JSON text.

use serde::Serialize;
use shoppee_proto::{
    Object as Attributes, Timestamp, audit::v1 as audit, auth::v1 as auth, order::v1 as order,
    product::v1 as product,
};

use super::json::Json;
use crate::{
    realtime::EventDelivery,
    shop_status::{GatewayStatus, ShopStatus},
};

/// 2026-01-15T09:30:00Z.
const EXAMPLE_TIME: i64 = 1_768_469_400;
const ORDER: &str = "019bc0e1-7a40-7c3e-9f53-2d6a1c0b8e44";
const SESSION: &str = "019bc0e0-6c11-7b52-b1f4-7a3e9d2c4f10";
const SERVICE_ACCOUNT: &str = "019bc0e2-1f3a-7c55-8d20-6e9b4a7c0d31";
pub const REQUEST_ID: &str = "019bc0e1-79fe-7d21-8a6b-5b0d3c9f1e02";

fn at(minutes: i64) -> Timestamp {
    Timestamp { seconds: EXAMPLE_TIME + 60 * minutes, nanos: 0 }
}

/// Returns the example of a parameter in the path or the query. The products, categories and users are those of the demo
/// shop of `scripts/up`, so that the examples succeed there.
pub fn parameter(operation: &str, name: &str) -> Option<Json> {
    let id: i64 = match (operation, name) {
        (_, "q") if operation == "listUsers" => return Some("ann".into()),
        (_, "q") => return Some("casserole".into()),
        ("listAuditRecords", "target") => return Some("product:42".into()),
        ("getProduct" | "setCartItem" | "removeCartItem", _) => 42,
        ("updateProduct" | "adjustStock" | "listStockChanges", "id") => 47,
        ("archiveProduct", "id") => 30,
        ("updateCategory" | "deleteCategory", "id") => 7,
        ("getUser" | "updateUser", "id") => 3,
        ("revokeSession", "id") => return Some(SESSION.into()),
        ("getServiceAccount" | "rotateServiceAccount" | "revokeServiceAccount", "id") => {
            return Some(SERVICE_ACCOUNT.into());
        }
        (_, "id") => return Some(ORDER.into()),
        _ => return None,
    };
    Some(id.into())
}

/// Returns the request body of an operation.
pub fn request_body(operation: &str) -> Option<Json> {
    let text = match operation {
        "register" => {
            r#"{"username": "zoe", "email": "zoe@example.com", "password": "correct horse battery"}"#
        }
        "login" => r#"{"username": "zoe", "password": "correct horse battery"}"#,
        "refresh" => r#"{"refresh_token": "nJ3v0cJ0y7o4bq2m9s8d1kQxw5zGh6TtLr-eUfVaXiY"}"#,
        "changePassword" => {
            r#"{"current_password": "correct horse battery", "new_password": "an even better staple"}"#
        }
        "updateUser" => r#"{"role": "admin"}"#,
        "createServiceAccount" => r#"{"name": "warehouse", "scopes": ["events:watch", "orders:ship"]}"#,
        "createProduct" => {
            r#"{"sku": "MUG-RED", "name": "Stoneware Mug, 300 ml", "price": 1299, "stock": 120,
                "description": "Safe in the dishwasher and the microwave.", "category_id": 7,
                "image_url": "https://cdn.example.com/mug-red.jpg",
                "attributes": {"colour": "red", "weight_g": 310}}"#
        }
        "updateProduct" => r#"{"price": 895, "image_url": null}"#,
        "adjustStock" => r#"{"delta": -3, "reason": "damaged in the warehouse"}"#,
        "batchUpdateProducts" => {
            r#"{"on_error": "continue", "items": [
                {"id": 47, "price": 895}, {"sku": "LITE-00030", "stock_delta": 50}]}"#
        }
        "createCategory" => r#"{"slug": "mugs", "name": "Mugs", "parent_id": 1}"#,
        "updateCategory" => r#"{"name": "Tableware and mugs"}"#,
        "addCartItem" => r#"{"product_id": 42, "quantity": 2}"#,
        "setCartItem" => r#"{"quantity": 1}"#,
        "createOrder" => {
            r#"{"items": [{"product_id": 42, "quantity": 2}],
                "shipping_address": {"recipient": "Ann Miller", "line1": "12 High Street", "city": "Utrecht",
                                     "postal_code": "3511 AB", "country": "NL"},
                "expected_total": 22800}"#
        }
        "payOrder" => r#"{"payment_token": "tok_ok"}"#,
        "cancelOrder" => r#"{"reason": "ordered twice"}"#,
        "shipOrder" => r#"{"carrier": "PostNL", "tracking_number": "3SABCD012345678"}"#,
        _ => return None,
    };
    serde_json::from_str(text).ok()
}

/// Returns the response of an operation that responds with `message`.
pub fn response(operation: &str, message: &str) -> Option<Json> {
    let is_for_admin = matches!(operation, "listUsers" | "getUser" | "updateUser");
    match message {
        "User" => json(&example_user(is_for_admin)),
        "ListUsersResponse" => json(&auth::ListUsersResponse {
            items: vec![example_user(true)],
            next_cursor: Some("eyJpZCI6N30".to_owned()),
        }),
        "Tokens" => json(&example_tokens()),
        "ListSessionsResponse" => json(&example_sessions()),
        "ServiceAccount" => {
            let is_shown = matches!(operation, "createServiceAccount" | "rotateServiceAccount");
            json(&example_service_account(is_shown))
        }
        "ListServiceAccountsResponse" => json(&auth::ListServiceAccountsResponse {
            items: vec![example_service_account(false)],
            next_cursor: None,
        }),
        "ListAuditRecordsResponse" => {
            json(&audit::ListAuditRecordsResponse { items: vec![example_audit_record()], next_cursor: None })
        }
        "WsTicket" => json(&auth::WsTicket { ticket: TICKET.to_owned(), expires_in: 30 }),
        "Product" => json(&example_product()),
        "ListProductsResponse" => json(&product::ListProductsResponse {
            items: vec![example_product()],
            next_cursor: Some("eyJvZiI6MX0".to_owned()),
        }),
        "SearchProductsResponse" => json(&example_search()),
        "BatchUpdateProductsResponse" => json(&example_batch()),
        "ListStockChangesResponse" => json(&example_stock_changes()),
        "Category" => json(&example_category()),
        "ListCategoriesResponse" => {
            json(&product::ListCategoriesResponse { items: vec![example_category()], next_cursor: None })
        }
        "Cart" => json(&example_cart()),
        "Order" => json(&example_order(status_after(operation))),
        "ListOrdersResponse" => json(&order::ListOrdersResponse {
            items: vec![example_order(order::OrderStatus::Paid)],
            next_cursor: None,
        }),
        "ListOrderEventsResponse" => json(&example_history()),
        _ => None,
    }
}

/// Returns the status of a shop in which all is well.
pub fn shop_status() -> Option<Json> {
    json(&ShopStatus {
        at: at(60),
        gateway: GatewayStatus {
            unavailable_dependencies: Vec::new(),
            sockets: 12,
            admin_streams: 1,
            event_delivery: EventDelivery {
                count: 4_210,
                p50_seconds: Some(0.0028),
                p99_seconds: Some(0.0093),
            },
        },
        auth: Some(auth::AuthServiceStatus::default()),
        product: Some(product::ProductServiceStatus {
            stock_audit_age_seconds: 0.8,
            search_index_products: 1_000,
            search_index_age_seconds: 0.1,
            ..product::ProductServiceStatus::default()
        }),
        order: Some(order::OrderServiceStatus {
            orders_per_minute: vec![7; 60],
            payments_open: 1,
            ..order::OrderServiceStatus::default()
        }),
    })
}

/// Serialises a message as the gateway does.
fn json(message: &impl Serialize) -> Option<Json> {
    serde_json::from_str(&serde_json::to_string(message).ok()?).ok()
}

fn example_user(for_admin: bool) -> auth::User {
    auth::User {
        id: 7,
        username: "ann".to_owned(),
        email: "ann@example.com".to_owned(),
        role: auth::Role::User.into(),
        created_at: Some(at(0)),
        disabled: for_admin.then_some(false),
    }
}

fn example_service_account(with_secret: bool) -> auth::ServiceAccount {
    auth::ServiceAccount {
        id: SERVICE_ACCOUNT.to_owned(),
        name: "warehouse".to_owned(),
        scopes: vec!["events:watch".to_owned(), "orders:ship".to_owned()],
        created_at: Some(at(0)),
        client_secret: with_secret.then(|| "q7Vw0cJ0y7o4bq2m9s8d1kQxw5zGh6TtLr-eUfVaXiY".to_owned()),
        ..auth::ServiceAccount::default()
    }
}

fn example_audit_record() -> audit::AuditRecord {
    let price = |price: f64| Attributes {
        fields: [(
            "price".to_owned(),
            prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(price)) },
        )]
        .into(),
    };
    audit::AuditRecord {
        id: "019bc0e1-79ff-7a10-9c1d-4f2b8e6d5a03".to_owned(),
        at: Some(at(45)),
        service: "product".to_owned(),
        actor: Some(audit::AuditActor {
            kind: "admin".to_owned(),
            id: "1".to_owned(),
            name: Some("root".to_owned()),
        }),
        action: "product.update".to_owned(),
        target: Some(audit::AuditTarget { kind: "product".to_owned(), id: "42".to_owned() }),
        before: Some(price(11_900.0)),
        after: Some(price(11_400.0)),
        request_id: Some(REQUEST_ID.to_owned()),
    }
}

pub const TOKEN: &str =
    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6ImsxIn0.eyJzdWIiOiI3In0.c2lnbmF0dXJl";
/// Seventy-two bytes in base64.
pub const DEVICE_TOKEN: &str =
    "AAAAAAAAAAcAAAAAAAAAAQAAAABlgBmAZ2NiYWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU2Nzg5QUJDREVGRw";
const TICKET: &str =
    "eyJ0eXAiOiJ3cy10aWNrZXQrand0IiwiYWxnIjoiRWREU0EiLCJraWQiOiJrMSJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl";

fn example_tokens() -> auth::Tokens {
    auth::Tokens {
        access_token: TOKEN.to_owned(),
        token_type: "Bearer".to_owned(),
        expires_in: 86_400,
        refresh_token: "nJ3v0cJ0y7o4bq2m9s8d1kQxw5zGh6TtLr-eUfVaXiY".to_owned(),
        refresh_expires_in: 2_592_000,
        user: Some(example_user(false)),
        device_token: None,
    }
}

fn example_sessions() -> auth::ListSessionsResponse {
    let session = auth::Session {
        id: SESSION.to_owned(),
        created_at: Some(at(0)),
        last_used_at: Some(at(12)),
        user_agent: "Mozilla/5.0 (X11; Linux x86_64)".to_owned(),
        current: true,
    };
    auth::ListSessionsResponse { items: vec![session], next_cursor: None }
}

fn example_product() -> product::Product {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let grams = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(900.0)) };
    product::Product {
        id: 42,
        sku: "COOK-00042".to_owned(),
        name: "Pallas Enamelled Casserole, 6 l".to_owned(),
        description: "Gets better with every meal.".to_owned(),
        category: Some(product::CategoryRef {
            id: 5,
            slug: "cookware".to_owned(),
            name: "Cookware".to_owned(),
        }),
        price: 11_400,
        currency: "EUR".to_owned(),
        stock: 1594,
        status: product::ProductStatus::Active.into(),
        image_url: Some("https://cdn.example.com/casserole.jpg".to_owned()),
        attributes: Some(Attributes {
            fields: [("colour".to_owned(), text("Mustard")), ("weight_g".to_owned(), grams)].into(),
        }),
        version: 7,
        created_at: Some(at(0)),
        updated_at: Some(at(45)),
    }
}

fn example_search() -> product::SearchProductsResponse {
    product::SearchProductsResponse {
        items: vec![example_product()],
        next_cursor: None,
        total: 1,
        total_is_exact: true,
        facets: Some(product::SearchFacets {
            category: vec![product::CategoryFacet {
                slug: "cookware".to_owned(),
                name: "Cookware".to_owned(),
                count: 1,
            }],
            in_stock: Some(product::StockFacet { r#true: 1, r#false: 0 }),
            price: vec![product::PriceFacet { min: 10_000, max: 19_999, count: 1 }],
        }),
    }
}

fn example_batch() -> product::BatchUpdateProductsResponse {
    let result = |index, id, status: product::RowStatus, version, error| product::ProductChangeResult {
        index,
        id,
        status: status.into(),
        version,
        error,
        revision: 0,
    };
    let sold = product::RowError {
        code: "out_of_stock".to_owned(),
        message: "there is not enough in stock".to_owned(),
        available: Some(3),
        ..product::RowError::default()
    };
    product::BatchUpdateProductsResponse {
        updated: 1,
        failed: 1,
        results: vec![
            result(0, Some(47), product::RowStatus::Updated, Some(8), None),
            result(1, Some(48), product::RowStatus::Failed, None, Some(sold)),
        ],
    }
}

fn example_stock_changes() -> product::ListStockChangesResponse {
    let hold = product::StockChange {
        id: 9002,
        kind: product::StockChangeKind::Hold.into(),
        quantity: -2,
        available: 95,
        order_id: Some(ORDER.to_owned()),
        reason: None,
        at: Some(at(60)),
    };
    let correction = product::StockChange {
        id: 9001,
        kind: product::StockChangeKind::Adjustment.into(),
        quantity: -3,
        available: 97,
        order_id: None,
        reason: Some("damaged in the warehouse".to_owned()),
        at: Some(at(5)),
    };
    product::ListStockChangesResponse { items: vec![hold, correction], next_cursor: None }
}

fn example_category() -> product::Category {
    product::Category { id: 5, slug: "cookware".to_owned(), name: "Cookware".to_owned(), parent_id: Some(1) }
}

fn example_cart() -> order::Cart {
    let item = order::CartItem {
        product_id: 42,
        sku: "COOK-00042".to_owned(),
        name: "Pallas Enamelled Casserole, 6 l".to_owned(),
        unit_price: 11_400,
        quantity: 2,
        line_total: 22_800,
        available: true,
    };
    order::Cart { items: vec![item], total: 22_800, currency: "EUR".to_owned(), updated_at: Some(at(50)) }
}

/// Returns the status of an order in the response of an operation.
fn status_after(operation: &str) -> order::OrderStatus {
    match operation {
        "payOrder" => order::OrderStatus::Paid,
        "shipOrder" => order::OrderStatus::Shipped,
        "completeOrder" => order::OrderStatus::Completed,
        "cancelOrder" => order::OrderStatus::Cancelled,
        _ => order::OrderStatus::Pending,
    }
}

fn example_order(status: order::OrderStatus) -> order::Order {
    use order::OrderStatus::{Cancelled, Completed, Paid, Shipped};
    let is_paid = matches!(status, Paid | Shipped | Completed);
    let payment = if is_paid { order::PaymentStatus::Paid } else { order::PaymentStatus::Unpaid };
    let shipment = order::Shipment {
        carrier: "PostNL".to_owned(),
        tracking_number: "3SABCD012345678".to_owned(),
        shipped_at: Some(at(120)),
    };
    let item = order::OrderItem {
        product_id: 42,
        sku: "COOK-00042".to_owned(),
        name: "Pallas Enamelled Casserole, 6 l".to_owned(),
        unit_price: 11_400,
        quantity: 2,
        line_total: 22_800,
    };
    order::Order {
        id: ORDER.to_owned(),
        user_id: 7,
        status: status.into(),
        items: vec![item],
        total: 22_800,
        currency: "EUR".to_owned(),
        shipping_address: Some(order::Address {
            recipient: "Ann Miller".to_owned(),
            line1: "12 High Street".to_owned(),
            line2: None,
            city: "Utrecht".to_owned(),
            region: None,
            postal_code: "3511 AB".to_owned(),
            country: "NL".to_owned(),
            phone: None,
        }),
        payment: Some(order::Payment {
            status: payment.into(),
            paid_at: is_paid.then(|| at(63)),
            refunded_at: None,
        }),
        shipment: Some(shipment).filter(|_| matches!(status, Shipped | Completed)),
        cancel_reason: (status == Cancelled).then(|| "ordered twice".to_owned()),
        expires_at: Some(at(75)),
        version: match status {
            Completed => 4,
            Shipped => 3,
            Paid | Cancelled => 2,
            order::OrderStatus::Unspecified | order::OrderStatus::Pending => 1,
        },
        created_at: Some(at(60)),
        updated_at: Some(at(63)),
    }
}

fn example_history() -> order::ListOrderEventsResponse {
    let event = |seq, status: order::OrderStatus, previous: Option<order::OrderStatus>, minutes| {
        order::OrderHistoryEvent {
            seq,
            status: status.into(),
            previous_status: previous.map(Into::into),
            at: Some(at(minutes)),
            actor: order::Actor::Customer.into(),
            ..order::OrderHistoryEvent::default()
        }
    };
    order::ListOrderEventsResponse {
        items: vec![
            event(41, order::OrderStatus::Pending, None, 60),
            event(42, order::OrderStatus::Paid, Some(order::OrderStatus::Pending), 63),
        ],
        next_cursor: None,
    }
}
