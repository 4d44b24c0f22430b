//! The records of the audit log about products and categories, and the fields that they show.

use serde_json::{Value, json};
use shoppee_kit::audit_log::{Actor, Change, Record};

use crate::{category::Category, product::Product};

/// Returns the record of an act on a product.
pub fn product_record<'a>(actor: &'a Actor, action: &'static str, id: i64, change: Change) -> Record<'a> {
    Record::new(actor, action, format!("product:{id}"), change)
}

/// Returns the record of an act on a category.
pub fn category_record<'a>(actor: &'a Actor, action: &'static str, id: i64, change: Change) -> Record<'a> {
    Record::new(actor, action, format!("category:{id}"), change)
}

/// Returns the fields of a product that admins and services change.
pub fn product_fields(product: &Product) -> Value {
    json!({
        "sku": product.sku,
        "name": product.name,
        "description": product.description,
        "category_id": product.category.as_ref().map(|category| category.id),
        "price": product.price,
        "stock": product.stock,
        "status": product.status.as_str(),
        "image_url": product.image_url,
        "attributes": product.attributes,
    })
}

pub fn category_fields(category: &Category) -> Value {
    json!({"slug": category.slug, "name": category.name, "parent_id": category.parent_id})
}
