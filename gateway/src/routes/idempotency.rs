//! Responses that may be replayed for an `Idempotency-Key`.

use http::HeaderMap;
use tonic::{Response, metadata::MetadataMap};

use crate::{
    extract::Json,
    replay::{REPLAYED, TRUE, is_replayed},
};

/// Converts a response that may be replayed.
pub fn into_response<T>(response: Response<T>) -> (HeaderMap, Json<T>) {
    let (metadata, body, _) = response.into_parts();
    (headers(&metadata), Json(body))
}

/// Returns the headers of a response that may be replayed.
pub fn headers(metadata: &MetadataMap) -> HeaderMap {
    is_replayed(metadata).then_some((REPLAYED, TRUE)).into_iter().collect()
}
