//! Responses that are replayed for an `Idempotency-Key`. The services mark them in the metadata.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Response, metadata::MetadataMap};

use crate::extract::Json;

pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
pub const TRUE: HeaderValue = HeaderValue::from_static("true");

pub fn is_replayed(metadata: &MetadataMap) -> bool {
    metadata.get(REPLAYED.as_str()).is_some_and(|value| value == "true")
}

/// Converts a response that may be replayed.
pub fn into_response<T>(response: Response<T>) -> (HeaderMap, Json<T>) {
    let (metadata, body, _) = response.into_parts();
    (headers(&metadata), Json(body))
}

/// Returns the headers of a response that may be replayed.
pub fn headers(metadata: &MetadataMap) -> HeaderMap {
    is_replayed(metadata).then_some((REPLAYED, TRUE)).into_iter().collect()
}
