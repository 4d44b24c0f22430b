//! Compiles the `.proto` files without protoc (protox), and adds serde attributes that give the messages their JSON shape
//! in REST, so that a body is defined once.

use std::{env, error::Error, fs, path::PathBuf};

const PROTO_FILES: [&str; 18] = [
    "shoppee/access/v1/access.proto",
    "shoppee/auth/v1/auth.proto",
    "shoppee/auth/v1/events.proto",
    "shoppee/auth/v1/status.proto",
    "shoppee/product/v1/product.proto",
    "shoppee/product/v1/category.proto",
    "shoppee/product/v1/search.proto",
    "shoppee/product/v1/stock.proto",
    "shoppee/product/v1/stock_change.proto",
    "shoppee/product/v1/audit.proto",
    "shoppee/product/v1/status.proto",
    "shoppee/product/v1/changes.proto",
    "shoppee/product/v1/cache.proto",
    "shoppee/order/v1/order.proto",
    "shoppee/order/v1/cart.proto",
    "shoppee/order/v1/status.proto",
    "shoppee/audit/v1/audit.proto",
    "google/api/annotations.proto",
];

/// Messages that are request bodies in REST. A body whose JSON differs (absent is not null, a list may be missing) is
/// defined in the gateway.
const REQUEST_BODIES: [&str; 16] = [
    "shoppee.auth.v1.RegisterRequest",
    "shoppee.auth.v1.LoginRequest",
    "shoppee.auth.v1.RefreshRequest",
    "shoppee.auth.v1.ChangePasswordRequest",
    "shoppee.auth.v1.UpdateUserRequest",
    "shoppee.auth.v1.CreateServiceAccountRequest",
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

/// Fields that are not part of a JSON body: they are in the path or a header, or internal to the gateway.
const EXCLUDED_FROM_BODY: &[&str] = &[
    "shoppee.auth.v1.RegisterRequest.idempotency_key",
    "shoppee.auth.v1.LoginRequest.user_agent",
    "shoppee.auth.v1.LoginRequest.device_token",
    "shoppee.auth.v1.Tokens.device_token",
    "shoppee.auth.v1.UpdateUserRequest.id",
    "shoppee.auth.v1.CreateServiceAccountRequest.idempotency_key",
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

/// Enum fields, which are lower-case names in JSON: the field, its type, and whether it is optional.
const ENUM_FIELDS: [(&str, &str, bool); 10] = [
    ("shoppee.auth.v1.User.role", "auth::v1::Role", false),
    ("shoppee.auth.v1.UpdateUserRequest.role", "auth::v1::Role", true),
    ("shoppee.product.v1.Product.status", "product::v1::ProductStatus", false),
    ("shoppee.product.v1.ProductChange.status", "product::v1::ProductStatus", true),
    ("shoppee.product.v1.ProductChangeResult.status", "product::v1::RowStatus", false),
    ("shoppee.product.v1.StockChange.kind", "product::v1::StockChangeKind", false),
    ("shoppee.order.v1.Order.status", "order::v1::OrderStatus", false),
    ("shoppee.order.v1.Payment.status", "order::v1::PaymentStatus", false),
    ("shoppee.order.v1.OrderEvent.status", "order::v1::OrderStatus", false),
    ("shoppee.order.v1.OrderEvent.previous_status", "order::v1::OrderStatus", true),
];

/// Fields that are omitted from a response if they are absent, instead of being null.
const OMITTED_IF_ABSENT: [&str; 10] = [
    "shoppee.auth.v1.User.disabled",
    "shoppee.auth.v1.ServiceAccount.client_secret",
    "shoppee.product.v1.SearchProductsResponse.facets",
    "shoppee.product.v1.ProductChangeResult.version",
    "shoppee.product.v1.ProductChangeResult.error",
    "shoppee.product.v1.RowError.field",
    "shoppee.product.v1.RowError.available",
    "shoppee.product.v1.RowError.current_version",
    "shoppee.product.v1.RefusedLine.unit_price",
    "shoppee.product.v1.RefusedLine.held_by_your_order",
];

/// Messages that are also deserialized: one service writes them as JSON and another reads them.
const DESERIALIZED: [&str; 1] = ["shoppee.product.v1.RefusedLine"];

/// Messages that are serialized through another type.
const SERIALIZED_AS: [(&str, &str); 1] =
    [("shoppee.order.v1.OrderHistoryEvent", "crate::json::HistoryEvent")];

#[expect(
    clippy::disallowed_methods,
    reason = "cargo passes parameters to a build script by environment variables"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=shoppee");
    println!("cargo:rerun-if-changed=google");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(PROTO_FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Encoded by the compiler, which keeps the options of the methods.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let mut config = tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "crate::json::Timestamp")
        .extern_path(".google.protobuf.Struct", "crate::json::Object")
        .message_attribute(".shoppee", "#[derive(serde::Serialize)]");
    for body in REQUEST_BODIES {
        config = config
            .message_attribute(body, "#[derive(serde::Deserialize)]")
            .message_attribute(body, "#[serde(deny_unknown_fields)]");
    }
    for message in DESERIALIZED {
        config = config.message_attribute(message, "#[derive(serde::Deserialize)]");
    }
    for (message, serialized_as) in SERIALIZED_AS {
        config = config.message_attribute(message, format!("#[serde(into = \"{serialized_as}\")]"));
    }
    for field in EXCLUDED_FROM_BODY {
        config = config.field_attribute(field, "#[serde(skip)]");
    }
    for (field, enum_type, optional) in ENUM_FIELDS {
        let with = if optional { "enum_name::optional" } else { "enum_name" };
        let default = if optional { ", default" } else { "" };
        config = config.field_attribute(
            field,
            format!(
                "#[serde(serialize_with = \"crate::json::{with}::serialize::<crate::{enum_type}, _>\", \
                 deserialize_with = \"crate::json::{with}::deserialize::<crate::{enum_type}, _>\"{default})]"
            ),
        );
    }
    for field in OMITTED_IF_ABSENT {
        config = config.field_attribute(field, "#[serde(skip_serializing_if = \"Option::is_none\")]");
    }
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
