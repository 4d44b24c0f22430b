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
    // Names every field, so that a new one is decided upon.
    let Product {
        id: _,
        sku,
        name,
        description,
        category,
        price,
        stock,
        status,
        image_url,
        attributes,
        version: _,
        revision: _,
        created_at: _,
        updated_at: _,
    } = product;
    json!({
        "sku": sku,
        "name": name,
        "description": description,
        "category_id": category.as_ref().map(|category| category.id),
        "price": price,
        "stock": stock,
        "status": status.as_str(),
        "image_url": image_url,
        "attributes": attributes,
    })
}

pub fn category_fields(category: &Category) -> Value {
    json!({"slug": category.slug, "name": category.name, "parent_id": category.parent_id})
}
