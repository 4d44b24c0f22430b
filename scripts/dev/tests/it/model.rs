//! Random sequences of requests, whose responses a simple model predicts.

use crate::lifecycle::Checkout;

#[test]
fn random_requests_get_the_responses_that_the_model_predicts() {
    let output = Checkout::new("model").succeeds("chaos", &["model", "--quick"]);
    assert!(output.contains("20 sequences, 600 requests") && output.contains("no difference"), "{output}");
}
