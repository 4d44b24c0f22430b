//! Compiles the contract without protoc (protox), and gives the messages the JSON shape of the REST side, so that a
//! body is defined once, in the `.proto`.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 11] = [
    "shoppee/auth/v1/auth.proto",
    "shoppee/auth/v1/events.proto",
    "shoppee/product/v1/product.proto",
    "shoppee/product/v1/category.proto",
    "shoppee/product/v1/search.proto",
    "shoppee/product/v1/stock.proto",
    "shoppee/product/v1/audit.proto",
    "shoppee/product/v1/changes.proto",
    "shoppee/product/v1/cache.proto",
    "shoppee/order/v1/order.proto",
    "google/api/annotations.proto",
];

/// What a REST client sends as it stands here. A body whose JSON differs (absent is not null, a list that may be
/// missing) is written by hand in the gateway.
const BODIES: [&str; 15] = [
    "shoppee.auth.v1.RegisterRequest",
    "shoppee.auth.v1.LoginRequest",
    "shoppee.auth.v1.RefreshRequest",
    "shoppee.auth.v1.ChangePasswordRequest",
    "shoppee.auth.v1.UpdateUserRequest",
    "shoppee.product.v1.CreateProductRequest",
    "shoppee.product.v1.AdjustStockRequest",
    "shoppee.product.v1.CreateCategoryRequest",
    "shoppee.order.v1.AddCartItemRequest",
    "shoppee.order.v1.SetCartItemRequest",
    "shoppee.order.v1.OrderLine",
    "shoppee.order.v1.Address",
    "shoppee.order.v1.PayOrderRequest",
    "shoppee.order.v1.CancelOrderRequest",
    "shoppee.order.v1.ShipOrderRequest",
];

/// Fields of bodies that come from elsewhere or go elsewhere, the path or a header, or go no further than the gateway.
const NOT_IN_BODY: &[&str] = &[
    "shoppee.auth.v1.RegisterRequest.idempotency_key",
    "shoppee.auth.v1.LoginRequest.user_agent",
    "shoppee.auth.v1.LoginRequest.device_token",
    "shoppee.auth.v1.Tokens.device_token",
    "shoppee.auth.v1.UpdateUserRequest.id",
    "shoppee.product.v1.CreateProductRequest.idempotency_key",
    "shoppee.product.v1.AdjustStockRequest.id",
    "shoppee.product.v1.AdjustStockRequest.idempotency_key",
    "shoppee.product.v1.CreateCategoryRequest.idempotency_key",
    "shoppee.product.v1.UpdateProductRequest.update_mask",
    "shoppee.product.v1.UpdateCategoryRequest.update_mask",
    "shoppee.product.v1.ProductChangeResult.revision",
    "shoppee.order.v1.SetCartItemRequest.product_id",
    "shoppee.order.v1.PayOrderRequest.id",
    "shoppee.order.v1.PayOrderRequest.idempotency_key",
    "shoppee.order.v1.AddCartItemRequest.idempotency_key",
    "shoppee.order.v1.CancelOrderRequest.id",
    "shoppee.order.v1.CancelOrderRequest.idempotency_key",
    "shoppee.order.v1.ShipOrderRequest.id",
    "shoppee.order.v1.ShipOrderRequest.idempotency_key",
];

/// Enumerations, as lower-case words: the field, its type, whether it may be absent.
const WORDS: [(&str, &str, bool); 9] = [
    ("shoppee.auth.v1.User.role", "auth::v1::Role", false),
    ("shoppee.auth.v1.UpdateUserRequest.role", "auth::v1::Role", true),
    ("shoppee.product.v1.Product.status", "product::v1::ProductStatus", false),
    ("shoppee.product.v1.ProductChange.status", "product::v1::ProductStatus", true),
    ("shoppee.product.v1.ProductChangeResult.status", "product::v1::RowStatus", false),
    ("shoppee.order.v1.Order.status", "order::v1::OrderStatus", false),
    ("shoppee.order.v1.Payment.status", "order::v1::PaymentStatus", false),
    ("shoppee.order.v1.OrderEvent.status", "order::v1::OrderStatus", false),
    ("shoppee.order.v1.OrderEvent.previous_status", "order::v1::OrderStatus", true),
];

/// Fields that are left out of an answer where they do not apply, instead of being null.
const OMITTED_WHERE_ABSENT: [&str; 6] = [
    "shoppee.auth.v1.User.disabled",
    "shoppee.product.v1.SearchProductsResponse.facets",
    "shoppee.product.v1.ProductChangeResult.version",
    "shoppee.product.v1.ProductChangeResult.error",
    "shoppee.product.v1.RefusedLine.unit_price",
    "shoppee.product.v1.RefusedLine.held_by_your_order",
];

/// What one service writes as JSON and another reads.
const READ_BACK: [&str; 1] = ["shoppee.product.v1.RefusedLine"];

/// Messages whose JSON is written by hand.
const WRITTEN_AS: [(&str, &str); 1] = [("shoppee.order.v1.OrderHistoryEvent", "crate::json::HistoryEvent")];

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script all it knows by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=shoppee");
    println!("cargo:rerun-if-changed=google");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Encoded by the compiler: only so are the google.api.http annotations among them.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let mut config = tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "crate::json::Timestamp")
        .extern_path(".google.protobuf.Struct", "crate::json::Object")
        .message_attribute(".shoppee", "#[derive(serde::Serialize)]");
    for body in BODIES {
        config = config
            .message_attribute(body, "#[derive(serde::Deserialize)]")
            .message_attribute(body, "#[serde(deny_unknown_fields)]");
    }
    for message in READ_BACK {
        config = config.message_attribute(message, "#[derive(serde::Deserialize)]");
    }
    for (message, written_as) in WRITTEN_AS {
        config = config.message_attribute(message, format!("#[serde(into = \"{written_as}\")]"));
    }
    for field in NOT_IN_BODY {
        config = config.field_attribute(field, "#[serde(skip)]");
    }
    for (field, word, optional) in WORDS {
        let with = if optional { "word::optional" } else { "word" };
        let default = if optional { ", default" } else { "" };
        config = config.field_attribute(
            field,
            format!(
                "#[serde(serialize_with = \"crate::json::{with}::serialize::<crate::{word}, _>\", \
                 deserialize_with = \"crate::json::{with}::deserialize::<crate::{word}, _>\"{default})]"
            ),
        );
    }
    for field in OMITTED_WHERE_ABSENT {
        config = config.field_attribute(field, "#[serde(skip_serializing_if = \"Option::is_none\")]");
    }
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
