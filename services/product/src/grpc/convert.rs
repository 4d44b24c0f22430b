//! Conversions between the proto messages and the types of the rules.

use prost_types::value::Kind;
use serde_json::{Map, Value};
use shoppee_kit::status::Violations;
use shoppee_proto::{Object, json::MAX_OBJECT_DEPTH, product::v1 as wire};

use crate::{
    category::{Category, CategoryChanges, CategoryName, NewCategory, Slug},
    error::Error,
    listing::Page,
    product::{
        self, Attributes, Description, ImageUrl, Name, NewProduct, Price, Product, ProductChanges, Sku,
        Status,
    },
    search::{Facets, Results},
    stock::{Hold, Stock},
    validation::ValidationError,
};

const _: () = assert!(product::MAX_ATTRIBUTES_DEPTH == MAX_OBJECT_DEPTH, "the rule and the contract agree");

/// Converts a product to PRODUCT_VIEW_FULL.
pub fn product(product: Product, currency: &str) -> wire::Product {
    let basic = basic(&product, currency);
    wire::Product {
        description: product.description,
        image_url: product.image_url,
        attributes: Some(object(product.attributes)),
        ..basic
    }
}

/// Converts a product to PRODUCT_VIEW_BASIC.
pub fn basic(product: &Product, currency: &str) -> wire::Product {
    let status = match product.status {
        Status::Active => wire::ProductStatus::Active,
        Status::Archived => wire::ProductStatus::Archived,
    };
    wire::Product {
        id: product.id,
        sku: product.sku.clone(),
        name: product.name.clone(),
        description: String::new(),
        category: product.category.as_ref().map(|category| wire::CategoryRef {
            id: category.id,
            slug: category.slug.clone(),
            name: category.name.clone(),
        }),
        price: product.price,
        currency: currency.to_owned(),
        stock: product.stock,
        status: status.into(),
        image_url: None,
        attributes: None,
        version: product.version,
        created_at: Some(product.created_at.into()),
        updated_at: Some(product.updated_at.into()),
    }
}

pub fn page(page: Page, currency: &str) -> wire::ListProductsResponse {
    wire::ListProductsResponse {
        items: page.items.into_iter().map(|one| product(one, currency)).collect(),
        next_cursor: page.next_cursor,
    }
}

pub fn results(results: Results, currency: &str) -> wire::SearchProductsResponse {
    let products = results.items.iter().filter_map(|entry| entry.product.clone());
    wire::SearchProductsResponse {
        items: products.map(|one| product(one, currency)).collect(),
        next_cursor: results.next_cursor,
        total: number(results.total),
        // The index counts all hits.
        total_is_exact: true,
        facets: results.facets.map(facets),
    }
}

fn facets(facets: Facets) -> wire::SearchFacets {
    let category = facets.categories.into_iter().map(|category| wire::CategoryFacet {
        slug: category.slug,
        name: category.name,
        count: number(category.count),
    });
    let price = facets.prices.into_iter().map(|price| wire::PriceFacet {
        min: price.min,
        max: price.max,
        count: number(price.count),
    });
    wire::SearchFacets {
        category: category.collect(),
        in_stock: Some(wire::StockFacet {
            r#true: number(facets.in_stock),
            r#false: number(facets.sold_out),
        }),
        price: price.collect(),
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub fn category(category: Category) -> wire::Category {
    wire::Category {
        id: category.id,
        slug: category.slug,
        name: category.name,
        parent_id: category.parent_id,
    }
}

pub fn hold(hold: Hold, currency: &str) -> wire::HoldResponse {
    let lines = hold.lines.into_iter().map(|line| wire::HeldLine {
        product_id: line.product_id,
        sku: line.sku,
        name: line.name,
        unit_price: line.unit_price,
        quantity: line.quantity,
        available: line.available,
    });
    wire::HoldResponse {
        lines: lines.collect(),
        currency: currency.to_owned(),
        expires_at: Some(hold.expires_at.into()),
    }
}

fn object(attributes: Attributes) -> Object {
    Object { fields: attributes.into_iter().map(|(key, value)| (key, wire_value(value))).collect() }
}

fn wire_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        // All numbers were received as doubles.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(wire_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.into_iter().map(|(key, value)| (key, wire_value(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Parses the free attributes of a request; empty if absent.
fn attributes(object: Option<Object>) -> Result<Attributes, ValidationError> {
    let Some(object) = object else {
        return Ok(Map::new());
    };
    if !object.fields.values().all(is_finite) {
        return Err("must not contain infinity or NaN");
    }
    match serde_json::to_value(&object) {
        Ok(Value::Object(fields)) => product::validate_attributes(fields),
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) | Err(_) => {
            Err("must be an object")
        }
    }
}

fn is_finite(value: &prost_types::Value) -> bool {
    match &value.kind {
        Some(Kind::NumberValue(number)) => number.is_finite(),
        Some(Kind::StructValue(object)) => object.fields.values().all(is_finite),
        Some(Kind::ListValue(list)) => list.values.iter().all(is_finite),
        Some(Kind::NullValue(_) | Kind::BoolValue(_) | Kind::StringValue(_)) | None => true,
    }
}

pub fn status(number: Option<i32>) -> Result<Status, ValidationError> {
    match number.map(wire::ProductStatus::try_from) {
        Some(Ok(wire::ProductStatus::Active)) => Ok(Status::Active),
        Some(Ok(wire::ProductStatus::Archived)) => Ok(Status::Archived),
        Some(Ok(wire::ProductStatus::Unspecified) | Err(_)) | None => Err("must be active or archived"),
    }
}

pub fn new_product(request: wire::CreateProductRequest) -> Result<NewProduct, Error> {
    let mut bad = Violations::default();
    let sku = bad.collect("sku", Sku::parse(request.sku));
    let name = bad.collect("name", Name::parse(request.name));
    let description = bad.collect("description", Description::parse(request.description.unwrap_or_default()));
    let price = bad.collect("price", Price::parse(request.price));
    let stock = bad.collect("stock", Stock::parse(request.stock));
    let image_url = bad.collect("image_url", request.image_url.map(ImageUrl::parse).transpose());
    let attributes = bad.collect("attributes", attributes(request.attributes));
    match (sku, name, description, price, stock, image_url, attributes) {
        (
            Some(sku),
            Some(name),
            Some(description),
            Some(price),
            Some(stock),
            Some(image_url),
            Some(attributes),
        ) => Ok(NewProduct {
            sku,
            name,
            description,
            category_id: request.category_id,
            price,
            stock,
            image_url,
            attributes,
        }),
        _ => Err(Error::Invalid(bad)),
    }
}

/// Parses the changes that the field mask names. An unknown path is malformed.
pub fn changes(request: wire::UpdateProductRequest) -> Result<ProductChanges, Error> {
    let (mut changes, mut bad) = (ProductChanges::default(), Violations::default());
    let mut unknown = Violations::default();
    for path in request.update_mask.unwrap_or_default().paths {
        match path.as_str() {
            "sku" => changes.sku = bad.collect("sku", required(request.sku.clone()).and_then(Sku::parse)),
            "name" => {
                changes.name = bad.collect("name", required(request.name.clone()).and_then(Name::parse));
            }
            "price" => changes.price = bad.collect("price", required(request.price).and_then(Price::parse)),
            "stock" => changes.stock = bad.collect("stock", required(request.stock).and_then(Stock::parse)),
            "description" => {
                let description = request.description.clone().unwrap_or_default();
                changes.description = bad.collect("description", Description::parse(description));
            }
            "category_id" => changes.category_id = Some(request.category_id),
            "image_url" => {
                let image_url = request.image_url.clone().map(ImageUrl::parse).transpose();
                changes.image_url = bad.collect("image_url", image_url);
            }
            "attributes" => {
                changes.attributes = bad.collect("attributes", attributes(request.attributes.clone()));
            }
            "status" => changes.status = bad.collect("status", status(request.status)),
            _ => unknown.require(false, "update_mask", "names a field that cannot be changed"),
        }
    }
    unknown.finish().map_err(Error::Malformed)?;
    bad.finish().map_err(Error::Invalid)?;
    Ok(changes)
}

/// Returns the value of a mandatory field.
fn required<T>(value: Option<T>) -> Result<T, ValidationError> {
    value.ok_or("must not be cleared")
}

pub fn new_category(request: wire::CreateCategoryRequest) -> Result<NewCategory, Error> {
    let mut bad = Violations::default();
    let slug = bad.collect("slug", Slug::parse(request.slug));
    let name = bad.collect("name", CategoryName::parse(request.name));
    match (slug, name) {
        (Some(slug), Some(name)) => Ok(NewCategory { slug, name, parent_id: request.parent_id }),
        (Some(_) | None, Some(_) | None) => Err(Error::Invalid(bad)),
    }
}

/// Parses the changes that the field mask names.
pub fn category_changes(request: wire::UpdateCategoryRequest) -> Result<CategoryChanges, Error> {
    let (mut changes, mut bad) = (CategoryChanges::default(), Violations::default());
    let mut unknown = Violations::default();
    for path in request.update_mask.unwrap_or_default().paths {
        match path.as_str() {
            "slug" => {
                changes.slug = bad.collect("slug", required(request.slug.clone()).and_then(Slug::parse));
            }
            "name" => {
                changes.name =
                    bad.collect("name", required(request.name.clone()).and_then(CategoryName::parse));
            }
            "parent_id" => changes.parent_id = Some(request.parent_id),
            _ => unknown.require(false, "update_mask", "names a field that cannot be changed"),
        }
    }
    unknown.finish().map_err(Error::Malformed)?;
    bad.finish().map_err(Error::Invalid)?;
    Ok(changes)
}
