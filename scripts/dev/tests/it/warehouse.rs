//! The warehouse of `examples/warehouse`, killed while customers pay.

use crate::lifecycle::Checkout;

#[test]
fn each_paid_order_is_shipped_once_by_a_consumer_that_is_killed() {
    let output = Checkout::new("warehouse").succeeds("chaos", &["warehouse", "--quick"]);
    assert!(output.contains("20 orders, each shipped once"), "{output}");
}
