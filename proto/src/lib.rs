//! The contract: what the services say to each other and to their callers. Everything but [`json`] and [`streams`] is generated
//! from `shoppee/**/*.proto`; to add a message or a method, write it there.

pub mod json;
pub mod streams;

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

pub use json::{Object, Timestamp};

/// Metadata of answers that show a product, or say that it was changed: its revision, a decimal number that grows with
/// everything that is shown differently, orders' moves of stock included. In a request for a product, the least that is
/// good enough: who has seen a state is not shown an older one.
pub const PRODUCT_REVISION: &str = "product-revision";

/// What a replica of the product service tells is at most so old: without a look at the log of changes for so long, its
/// memory is not believed. Changes must show within a second, in copies of what it tells too.
pub const PRODUCT_LAG: std::time::Duration = std::time::Duration::from_millis(600);

/// The compiled contract, a `google.protobuf.FileDescriptorSet`: for server reflection, and for checks of the
/// `google.api.http` annotations.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
