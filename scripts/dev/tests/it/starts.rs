//! Every process is started while each of its dependencies is in trouble.

use crate::whole::Checkout;

#[test]
fn every_process_lives_through_each_trouble_of_each_dependency_and_is_ready_soon_after() {
    let said = Checkout::new("starts").succeeds("chaos", &["starts", "--quick"]);
    assert!(said.contains("13 pairs"), "{said}");
}
