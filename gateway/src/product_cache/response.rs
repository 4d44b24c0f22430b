//! Rendered responses: products and pages as JSON.

use std::{
    io::Read as _,
    sync::{Arc, OnceLock},
};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::{Compression, read::GzEncoder};
use http::{
    HeaderValue,
    header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, VARY},
};
use serde::Serialize;
use shoppee_proto::product::v1::Product;

use crate::{error::Problem, extract::etag};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The bytes of a page that fits into one packet: compression would not make it arrive sooner.
const MIN_COMPRESSED_SIZE: usize = 1400;

/// A product as JSON, with its entity tag.
#[derive(Clone, Debug)]
pub struct ProductResponse {
    pub etag: HeaderValue,
    body: Bytes,
}

impl ProductResponse {
    pub fn new(product: &Product) -> Result<Self, Problem> {
        Ok(Self::from_json(product.version, render(product)?))
    }

    /// Wraps the rendered JSON of a product's version.
    pub fn from_json(version: i64, body: Vec<u8>) -> Self {
        Self { etag: etag(version, &body), body: body.into() }
    }

    /// Returns the size of the body in bytes.
    pub fn len(&self) -> usize {
        self.body.len()
    }
}

impl IntoResponse for ProductResponse {
    fn into_response(self) -> Response {
        ([(ETAG, self.etag), (CONTENT_TYPE, JSON)], self.body).into_response()
    }
}

/// A page of a list or a search as JSON, compressed for the clients that accept it. Cheap to clone. A page must hold no
/// secret: compressed next to text that a client chose, the length would reveal it (BREACH).
#[derive(Clone, Debug)]
pub struct Page(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    json: Bytes,
    /// Compressed for the first client that accepts it.
    gzip: OnceLock<Bytes>,
}

impl Page {
    pub fn new(page: &impl Serialize) -> Result<Self, Problem> {
        render(page).map(Self::from_json)
    }

    pub fn from_json(json: Vec<u8>) -> Self {
        Self(Arc::new(Inner { json: json.into(), gzip: OnceLock::new() }))
    }

    /// Returns the size of the JSON in bytes.
    pub fn len(&self) -> usize {
        self.0.json.len()
    }

    /// Returns the response, compressed if the client accepts gzip and the page is large enough.
    pub fn respond(&self, accepts_gzip: bool) -> Response {
        let headers = [(CONTENT_TYPE, JSON), (VARY, HeaderValue::from_static("accept-encoding"))];
        if accepts_gzip && self.len() > MIN_COMPRESSED_SIZE {
            let encoding = [(CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
            let gzip = self.0.gzip.get_or_init(|| compress(&self.0.json));
            return (headers, encoding, gzip.clone()).into_response();
        }
        (headers, self.0.json.clone()).into_response()
    }
}

#[cfg(test)]
impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        self.0.json == other.0.json
    }
}

/// Returns `json` compressed by gzip, at the level that costs the least.
fn compress(json: &[u8]) -> Bytes {
    let mut compressed = Vec::new();
    // Writing into a vector cannot fail.
    let _ = GzEncoder::new(json, Compression::fast()).read_to_end(&mut compressed);
    compressed.into()
}

fn render(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "response cannot be serialized");
        Problem::internal()
    })
}
