//! A few things to buy, for a shop that has none yet.

use serde_json::{Value, json};

use super::row;
use crate::{catalogue, rest::Rest, screen::say};

const PRODUCTS: usize = 6;
/// Which of the catalogue's products may come: so many that hardly one comes twice.
const NUMBERS: u32 = 100_000;

/// Creates them as an admin does; returns those that are new.
pub async fn create(rest: &Rest, admin: &str) -> anyhow::Result<Vec<Value>> {
    let mut created = Vec::new();
    while created.len() < PRODUCTS {
        let product = catalogue::product(rand::random_range(0..NUMBERS));
        if product.stock == 0 {
            continue;
        }
        let request = rest.post("/products").by(admin).body(json!({
            "sku": product.sku,
            "name": product.name,
            "description": product.description,
            "price": product.price,
            "stock": product.stock,
            "attributes": product.attributes,
        }));
        let label = request.label();
        let answer = request.send().await?;
        // From an earlier run, or from this one whose answer was lost.
        if answer.code() == "sku_taken" {
            continue;
        }
        created.push(answer.expect_success(&label)?.clone());
        say(&row(&label, &answer, &format!("{}, {} of it", product.name, product.stock)));
    }
    Ok(created)
}
