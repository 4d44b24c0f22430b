//! The API's documentation: `/openapi.json`, `/asyncapi.json`, and `/docs`, a page that shows them and calls operations.
//! The gateway serves all files itself: the page needs no other host, and its security policy allows none.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    sync::{Arc, OnceLock},
};

use axum::{
    extract::{Path, State},
    response::{IntoResponse as _, Redirect, Response},
};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, VARY},
};

use crate::{
    error::{Code, Problem},
    extract::{IfNoneMatch, accepts_gzip, etag},
    openapi,
    state::AppState,
};

/// Allows only the gateway's files and responses. Scalar adds inline styles, which cannot all have a hash or a nonce; its
/// icons are `data:` URLs.
const SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// Caches have to revalidate, so that a new version of the gateway shows at once. A 304 costs little.
const REVALIDATE: HeaderValue = HeaderValue::from_static("public, no-cache");

/// The files of the page: name, content type, content.
const FILES: [(&str, &str, &[u8]); 2] = [
    ("docs.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/docs.js")),
    ("docs.css", "text/css; charset=utf-8", include_bytes!("../../assets/docs.css")),
];
/// Scalar, compressed by `build.rs` to a fraction of its size.
const SCALAR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/scalar.js.gz"));

/// All served files, built once.
#[derive(Clone, Debug)]
pub struct Docs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    openapi: File,
    asyncapi: File,
    page: File,
    files: Vec<(&'static str, File)>,
}

impl Docs {
    pub fn new() -> anyhow::Result<Self> {
        let document = |json: Vec<u8>| File::compressed("application/json", json.into());
        let scalar = File::from_gzip("text/javascript; charset=utf-8", Bytes::from_static(SCALAR));
        let files = FILES.into_iter().map(|(name, content_type, content)| {
            (name, File::plain(content_type, Bytes::from_static(content)))
        });
        Ok(Self(Arc::new(Inner {
            openapi: document(openapi::document()?)?,
            asyncapi: document(openapi::asyncapi::document()?)?,
            page: File::plain("text/html; charset=utf-8", render_page().into()),
            files: files.chain([("scalar.js", scalar)]).collect(),
        })))
    }
}

#[derive(Debug)]
struct File {
    content_type: HeaderValue,
    etag: HeaderValue,
    gzip: Option<Bytes>,
    /// A file that is stored compressed is decompressed for the first client that does not accept gzip.
    plain: OnceLock<Bytes>,
}

impl File {
    fn plain(content_type: &'static str, content: Bytes) -> Self {
        Self::new(content_type, tag(&content), None, OnceLock::from(content))
    }

    /// Compresses `content`.
    fn compressed(content_type: &'static str, content: Bytes) -> std::io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&content)?;
        let gzip = encoder.finish()?.into();
        Ok(Self::new(content_type, tag(&content), Some(gzip), OnceLock::from(content)))
    }

    fn from_gzip(content_type: &'static str, gzip: Bytes) -> Self {
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

    fn respond(&self, request: &HeaderMap, if_none_match: &IfNoneMatch) -> Response {
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

pub async fn openapi(
    State(state): State<AppState>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Response {
    state.docs.0.openapi.respond(&request, &if_none_match)
}

pub async fn asyncapi(
    State(state): State<AppState>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Response {
    state.docs.0.asyncapi.respond(&request, &if_none_match)
}

pub async fn page(State(state): State<AppState>, request: HeaderMap, if_none_match: IfNoneMatch) -> Response {
    let mut response = state.docs.0.page.respond(&request, &if_none_match);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, SECURITY_POLICY);
    response
}

pub async fn file(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Result<Response, Problem> {
    let file = state.docs.0.files.iter().find(|(file, _)| *file == name);
    file.map(|(_, file)| file.respond(&request, &if_none_match)).ok_or_else(Problem::not_found)
}

/// Redirects the root to the documentation.
pub async fn root() -> Redirect {
    Redirect::temporary("/docs")
}

/// Renders the page around Scalar, with a table of problem codes.
fn render_page() -> String {
    let mut page = String::from(concat!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
        "<title>Shoppee API</title>\n",
        "<link rel=\"icon\" href=\"data:,\">\n",
        "<link rel=\"stylesheet\" href=\"/docs/docs.css\">\n",
        "<script src=\"/docs/scalar.js\" defer></script>\n",
        "<script src=\"/docs/docs.js\" defer></script>\n</head>\n<body>\n",
        "<noscript><p>This page needs JavaScript; the document itself is ",
        "<a href=\"/openapi.json\">/openapi.json</a>.",
        "</p></noscript>\n<div id=\"api\"></div>\n",
        "<section id=\"problems\">\n<p><a href=\"/docs\">All of the API</a></p>\n<h1>Problems</h1>\n",
        "<table>\n<thead><tr><th>code</th><th>status</th><th>meaning</th></tr></thead>\n<tbody>\n",
    ));
    for code in Code::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "<tr id=\"{code}\"><td><code>{code}</code></td><td>{status}</td><td>{title}</td></tr>",
            code = code.as_str(),
            status = code.status().as_u16(),
            title = code.title(),
        );
    }
    page.push_str("</tbody>\n</table>\n</section>\n</body>\n</html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_no_other_host_and_no_inline_script() {
        let page = render_page();
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("//cdn"));
        assert!(
            !page.contains("<style")
                && !page.contains("onclick")
                && page.matches("<script src=").count() == 2
        );
    }
}
