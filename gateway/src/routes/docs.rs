//! The API's documentation: `/openapi.json`, `/asyncapi.json`, and `/docs`, a page that reads them and tries operations
//! out. All of it is served from here, so that it works without any other host and under a policy that allows none.

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
    extract::{IfNoneMatch, etag, takes_gzip},
    openapi,
    state::AppState,
};

/// Nothing but our own files and answers. Scalar writes its styles into the page, where no hash or nonce can be given to
/// all of them; `data:` is for its icons.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// A new version of the gateway is noticed at once, and costs a 304 otherwise.
const KEPT: HeaderValue = HeaderValue::from_static("public, no-cache");

/// The page's own files by name, with their types.
const FILES: [(&str, &str, &[u8]); 2] = [
    ("docs.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/docs.js")),
    ("docs.css", "text/css; charset=utf-8", include_bytes!("../../assets/docs.css")),
];
/// Scalar, compressed by `build.rs`: the whole of it is several times as large.
const SCALAR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/scalar.js.gz"));

/// Everything there is to serve, made once.
#[derive(Clone, Debug)]
pub struct Docs(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    openapi: File,
    asyncapi: File,
    page: File,
    files: Vec<(&'static str, File)>,
}

impl Docs {
    pub fn new() -> anyhow::Result<Self> {
        let document = |json: Vec<u8>| File::compressed("application/json", json.into());
        let scalar = File::of_gzip("text/javascript; charset=utf-8", Bytes::from_static(SCALAR));
        let files = FILES
            .into_iter()
            .map(|(name, kind, content)| (name, File::plain(kind, Bytes::from_static(content))));
        Ok(Self(Arc::new(Parts {
            openapi: document(openapi::document()?)?,
            asyncapi: document(openapi::asyncapi::document()?)?,
            page: File::plain("text/html; charset=utf-8", page().into()),
            files: files.chain([("scalar.js", scalar)]).collect(),
        })))
    }
}

#[derive(Debug)]
struct File {
    kind: HeaderValue,
    etag: HeaderValue,
    gzip: Option<Bytes>,
    /// Of a file that is kept compressed alone: made for the first client that does not take gzip.
    plain: OnceLock<Bytes>,
}

impl File {
    fn plain(kind: &'static str, content: Bytes) -> Self {
        Self::new(kind, tag(&content), None, OnceLock::from(content))
    }

    /// Compresses `content`.
    fn compressed(kind: &'static str, content: Bytes) -> std::io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&content)?;
        let gzip = encoder.finish()?.into();
        Ok(Self::new(kind, tag(&content), Some(gzip), OnceLock::from(content)))
    }

    fn of_gzip(kind: &'static str, gzip: Bytes) -> Self {
        Self::new(kind, tag(&gzip), Some(gzip), OnceLock::new())
    }

    fn new(kind: &'static str, etag: HeaderValue, gzip: Option<Bytes>, plain: OnceLock<Bytes>) -> Self {
        Self { kind: HeaderValue::from_static(kind), etag, gzip, plain }
    }

    fn answer(&self, request: &HeaderMap, known: &IfNoneMatch) -> Response {
        let headers = [(ETAG, self.etag.clone())];
        let kept = [(CACHE_CONTROL, KEPT)];
        if known.has(&self.etag) {
            return (StatusCode::NOT_MODIFIED, headers, kept).into_response();
        }
        let kind = [(CONTENT_TYPE, self.kind.clone())];
        let varies = [(VARY, HeaderValue::from_static("accept-encoding"))];
        match &self.gzip {
            Some(gzip) if takes_gzip(request) => {
                let encoding = [(CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
                (headers, kept, kind, encoding, varies, gzip.clone()).into_response()
            }
            Some(_) => (headers, kept, kind, varies, self.content()).into_response(),
            None => (headers, kept, kind, self.content()).into_response(),
        }
    }

    fn content(&self) -> Bytes {
        let unpacked = || {
            let mut content = Vec::new();
            // What this program compressed can be read.
            let _ = GzDecoder::new(self.gzip.as_deref().unwrap_or_default()).read_to_end(&mut content);
            content.into()
        };
        self.plain.get_or_init(unpacked).clone()
    }
}

/// What is served changes with the program alone; the tag is that of the content.
fn tag(content: &[u8]) -> HeaderValue {
    const VERSION: i64 = 1;
    etag(VERSION, content)
}

pub async fn openapi(State(state): State<AppState>, request: HeaderMap, known: IfNoneMatch) -> Response {
    state.docs.0.openapi.answer(&request, &known)
}

pub async fn asyncapi(State(state): State<AppState>, request: HeaderMap, known: IfNoneMatch) -> Response {
    state.docs.0.asyncapi.answer(&request, &known)
}

pub async fn page_of_docs(State(state): State<AppState>, request: HeaderMap, known: IfNoneMatch) -> Response {
    let mut response = state.docs.0.page.answer(&request, &known);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

pub async fn file(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: HeaderMap,
    known: IfNoneMatch,
) -> Result<Response, Problem> {
    let found = state.docs.0.files.iter().find(|(file, _)| *file == name);
    found.map(|(_, file)| file.answer(&request, &known)).ok_or_else(Problem::not_found)
}

/// The shop has no page of its own at its root.
pub async fn root() -> Redirect {
    Redirect::temporary("/docs")
}

/// The page around Scalar. Each problem has its place there, where its `type` leads.
fn page() -> String {
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
    fn the_page_names_no_other_host_and_has_no_script_of_its_own() {
        let page = page();
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("//cdn"));
        assert!(
            !page.contains("<style")
                && !page.contains("onclick")
                && page.matches("<script src=").count() == 2
        );
    }
}
