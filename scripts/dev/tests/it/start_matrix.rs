//! The start of every process while one of its dependencies is impaired.

use crate::lifecycle::Checkout;

#[test]
fn every_process_survives_the_outage_of_each_dependency_and_recovers() {
    let output = Checkout::new("starts").succeeds("chaos", &["starts", "--quick"]);
    assert!(output.contains("13 pairs"), "{output}");
}
