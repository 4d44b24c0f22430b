//! Answers that were given before, under the same idempotency key: the services say so in the metadata.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Response, metadata::MetadataMap};

use crate::extract::Json;

pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
pub const YES: HeaderValue = HeaderValue::from_static("true");

pub fn is_replayed(metadata: &MetadataMap) -> bool {
    metadata.get(REPLAYED.as_str()).is_some_and(|value| value == "true")
}

/// An answer that may be one of those.
pub fn answer<T>(response: Response<T>) -> (HeaderMap, Json<T>) {
    let (metadata, body, _) = response.into_parts();
    (headers(&metadata), Json(body))
}

/// What goes before the body of an answer that may be one of those.
pub fn headers(metadata: &MetadataMap) -> HeaderMap {
    is_replayed(metadata).then_some((REPLAYED, YES)).into_iter().collect()
}
