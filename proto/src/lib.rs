//! The Protobuf messages and gRPC services of the shop, generated from `shoppee/**/*.proto`, with their JSON mapping
//! ([`json`]) and the names of the Redis streams ([`streams`]).

pub mod json;
pub mod streams;

#[expect(clippy::pedantic, reason = "generated")]
pub mod access {
    pub mod v1 {
        tonic::include_proto!("shoppee.access.v1");
    }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod auth {
    pub mod v1 {
        tonic::include_proto!("shoppee.auth.v1");
    }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod product {
    pub mod v1 {
        tonic::include_proto!("shoppee.product.v1");
    }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod order {
    pub mod v1 {
        tonic::include_proto!("shoppee.order.v1");
    }
}

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod audit {
    pub mod v1 {
        tonic::include_proto!("shoppee.audit.v1");
    }
}

pub use json::{Object, Timestamp};

/// The metadata with the revision of a product, a decimal number that grows with every visible change, including stock
/// movements of orders. In a response it is the revision that is shown or was written. In a request it is the minimum
/// revision (monotonic reads): the response is not older.
pub const PRODUCT_REVISION: &str = "product-revision";

/// Bounds the staleness of a response of the product service: a replica that has not polled the change log for this time
/// bypasses its cache. A change is visible within a second, including in copies of its responses.
pub const PRODUCT_MAX_STALENESS: std::time::Duration = std::time::Duration::from_millis(600);

/// The encoded `google.protobuf.FileDescriptorSet`, for server reflection and for the options of the
/// methods (`google.api.http`, `shoppee.access.v1.rule`).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
