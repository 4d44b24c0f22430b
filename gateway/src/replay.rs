//! The mark of a response that is replayed for an `Idempotency-Key`: a header, and the metadata of the services.

use http::{HeaderName, HeaderValue};
use shoppee_kit::idempotency;
use tonic::metadata::MetadataMap;

/// The header of a replayed response, and the metadata key.
pub const REPLAYED: HeaderName = HeaderName::from_static(idempotency::REPLAYED);
pub const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Reports whether a service replayed its response.
pub fn is_replayed(metadata: &MetadataMap) -> bool {
    metadata.get(REPLAYED.as_str()).is_some_and(|value| value == "true")
}
