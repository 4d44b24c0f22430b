//! Products for a shop that has nothing in stock.

use serde_json::{Value, json};

use super::row;
use crate::{demo_data, output::print_line, rest::Rest};

const PRODUCT_COUNT: usize = 6;
/// The range of the demo products' numbers: large, so that a collision with an earlier run is rare.
const MAX_NUMBER: u32 = 100_000;

/// Creates products with an admin's token, and returns those that are new.
pub async fn create(rest: &Rest, admin: &str) -> anyhow::Result<Vec<Value>> {
    let mut created = Vec::new();
    while created.len() < PRODUCT_COUNT {
        let product = demo_data::product(rand::random_range(0..MAX_NUMBER));
        if product.stock == 0 {
            continue;
        }
        let request = rest.post("/products").bearer(admin).body(json!({
            "sku": product.sku,
            "name": product.name,
            "description": product.description,
            "price": product.price,
            "stock": product.stock,
            "attributes": product.attributes,
        }));
        let label = request.label();
        let response = request.send().await?;
        // The product exists from an earlier run, or from an attempt whose response was lost.
        if response.code() == "sku_taken" {
            continue;
        }
        created.push(response.expect_success(&label)?.clone());
        print_line(&row(&label, &response, &format!("{}, {} of it", product.name, product.stock)));
    }
    Ok(created)
}
