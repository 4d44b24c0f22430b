//! Files that the gateway serves from memory. They have an entity tag, and are compressed once.

use std::{
    io::{Read as _, Write as _},
    sync::OnceLock,
};

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, VARY},
};

use crate::extract::{IfNoneMatch, accepts_gzip, etag};

/// Caches have to revalidate, so that a new version of the gateway shows at once. A 304 costs little.
const REVALIDATE: HeaderValue = HeaderValue::from_static("public, no-cache");

#[derive(Debug)]
pub struct StaticFile {
    content_type: HeaderValue,
    etag: HeaderValue,
    gzip: Option<Bytes>,
    /// A file that is stored compressed is decompressed for the first client that does not accept gzip.
    plain: OnceLock<Bytes>,
}

impl StaticFile {
    pub fn plain(content_type: &'static str, content: Bytes) -> Self {
        Self::new(content_type, tag(&content), None, OnceLock::from(content))
    }

    /// Compresses `content`.
    pub fn compressed(content_type: &'static str, content: Bytes) -> std::io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&content)?;
        let gzip = encoder.finish()?.into();
        Ok(Self::new(content_type, tag(&content), Some(gzip), OnceLock::from(content)))
    }

    pub fn from_gzip(content_type: &'static str, gzip: Bytes) -> Self {
        Self::new(content_type, tag(&gzip), Some(gzip), OnceLock::new())
    }

    fn new(
        content_type: &'static str,
        etag: HeaderValue,
        gzip: Option<Bytes>,
        plain: OnceLock<Bytes>,
    ) -> Self {
        Self { content_type: HeaderValue::from_static(content_type), etag, gzip, plain }
    }

    pub fn respond(&self, request: &HeaderMap, if_none_match: &IfNoneMatch) -> Response {
        let headers = [(ETAG, self.etag.clone())];
        let cache_control = [(CACHE_CONTROL, REVALIDATE)];
        if if_none_match.matches(&self.etag) {
            return (StatusCode::NOT_MODIFIED, headers, cache_control).into_response();
        }
        let content_type = [(CONTENT_TYPE, self.content_type.clone())];
        let vary = [(VARY, HeaderValue::from_static("accept-encoding"))];
        match &self.gzip {
            Some(gzip) if accepts_gzip(request) => {
                let encoding = [(CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
                (headers, cache_control, content_type, encoding, vary, gzip.clone()).into_response()
            }
            Some(_) => (headers, cache_control, content_type, vary, self.content()).into_response(),
            None => (headers, cache_control, content_type, self.content()).into_response(),
        }
    }

    fn content(&self) -> Bytes {
        let decompress = || {
            let mut content = Vec::new();
            // Data that this program or its build compressed is valid.
            let _ = GzDecoder::new(self.gzip.as_deref().unwrap_or_default()).read_to_end(&mut content);
            content.into()
        };
        self.plain.get_or_init(decompress).clone()
    }
}

/// Returns the entity tag of a file.
fn tag(content: &[u8]) -> HeaderValue {
    const VERSION: i64 = 1;
    etag(VERSION, content)
}
