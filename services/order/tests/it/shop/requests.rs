//! Requests of tests, and the reasons of errors.

use shoppee_kit::status::{self, ErrorDetails};
use shoppee_proto::order::v1::{Address, CreateOrderRequest, OrderLine};
use tonic::Status;

/// Returns the reason of an error, as the `code` that a REST client reads.
pub fn expect_error<T: std::fmt::Debug>(response: Result<T, Status>) -> String {
    let ErrorDetails { reason, .. } = status::parse(&response.expect_err("an error"));
    reason.to_lowercase()
}

fn address() -> Address {
    Address {
        recipient: "Ann".to_owned(),
        line1: "High Street 1".to_owned(),
        city: "Utrecht".to_owned(),
        postal_code: "3511".to_owned(),
        country: "NL".to_owned(),
        ..Address::default()
    }
}

/// Builds an order of these products; without products an order of the cart.
pub fn order_request(items: &[(i64, i64)]) -> CreateOrderRequest {
    CreateOrderRequest {
        items: items
            .iter()
            .map(|(product_id, quantity)| OrderLine { product_id: *product_id, quantity: *quantity })
            .collect(),
        shipping_address: Some(address()),
        expected_total: None,
        idempotency_key: None,
        from_cart: items.is_empty(),
    }
}
