//! The API's documentation: `/openapi.json`, and `/docs`, a page that reads it and tries operations out. All
//! of it is served from here, so that it works without any other host and under a policy that allows none.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    extract::{Path, State as Given},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{
        ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, VARY,
    },
};

use crate::{
    error::{Code, Problem},
    extract::{IfNoneMatch, etag},
    openapi,
    state::State,
};

/// Nothing but our own files and answers; `data:` for the arrows in Swagger UI's style sheet.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// A new version of the gateway is noticed at once, and costs a 304 otherwise.
const KEPT: HeaderValue = HeaderValue::from_static("public, no-cache");

macro_rules! unpacked {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name))
    };
}

/// Name, type, content, and the same compressed where it is large.
type Source = (&'static str, &'static str, &'static [u8], Option<&'static [u8]>);

const FILES: [Source; 4] = [
    (
        "swagger-ui-bundle.js",
        "text/javascript; charset=utf-8",
        unpacked!("swagger-ui-bundle.js"),
        Some(unpacked!("swagger-ui-bundle.js.gz")),
    ),
    (
        "swagger-ui.css",
        "text/css; charset=utf-8",
        unpacked!("swagger-ui.css"),
        Some(unpacked!("swagger-ui.css.gz")),
    ),
    ("docs.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/docs.js"), None),
    ("docs.css", "text/css; charset=utf-8", include_bytes!("../../assets/docs.css"), None),
];

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
        let file = |(name, kind, content, compressed): Source| {
            (name, File::new(kind, Bytes::from_static(content), compressed.map(Bytes::from_static)))
        };
        Ok(Self(Arc::new(Parts {
            openapi: File::new("application/json", openapi::document()?.into(), None),
            asyncapi: File::new("application/json", openapi::asyncapi::document()?.into(), None),
            page: File::new("text/html; charset=utf-8", page().into(), None),
            files: FILES.into_iter().map(file).collect(),
        })))
    }
}

#[derive(Debug)]
struct File {
    kind: HeaderValue,
    etag: HeaderValue,
    content: Bytes,
    compressed: Option<Bytes>,
}

impl File {
    fn new(kind: &'static str, content: Bytes, compressed: Option<Bytes>) -> Self {
        /// What is served changes with the program alone; the tag is that of the content.
        const VERSION: i64 = 1;
        let etag = etag(VERSION, &content);
        Self { kind: HeaderValue::from_static(kind), etag, content, compressed }
    }

    fn answer(&self, request: &HeaderMap, known: &IfNoneMatch) -> Response {
        let headers = [(ETAG, self.etag.clone())];
        let kept = [(CACHE_CONTROL, KEPT)];
        if known.has(&self.etag) {
            return (StatusCode::NOT_MODIFIED, headers, kept).into_response();
        }
        let kind = [(CONTENT_TYPE, self.kind.clone())];
        let varies = [(VARY, HeaderValue::from_static("accept-encoding"))];
        match &self.compressed {
            Some(compressed) if takes_gzip(request) => {
                let encoding = [(CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
                (headers, kept, kind, encoding, varies, compressed.clone()).into_response()
            }
            Some(_) => (headers, kept, kind, varies, self.content.clone()).into_response(),
            None => (headers, kept, kind, self.content.clone()).into_response(),
        }
    }
}

/// Whether the client takes gzip: it names it, and not with a weight of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

pub async fn openapi(Given(state): Given<State>, request: HeaderMap, known: IfNoneMatch) -> Response {
    state.docs.0.openapi.answer(&request, &known)
}

pub async fn asyncapi(Given(state): Given<State>, request: HeaderMap, known: IfNoneMatch) -> Response {
    state.docs.0.asyncapi.answer(&request, &known)
}

pub async fn page_of_docs(Given(state): Given<State>, request: HeaderMap, known: IfNoneMatch) -> Response {
    let mut response = state.docs.0.page.answer(&request, &known);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

pub async fn file(
    Given(state): Given<State>,
    Path(name): Path<String>,
    request: HeaderMap,
    known: IfNoneMatch,
) -> Result<Response, Problem> {
    let found = state.docs.0.files.iter().find(|(file, _)| *file == name);
    found.map(|(_, file)| file.answer(&request, &known)).ok_or_else(Problem::not_found)
}

/// The page around Swagger UI. Each problem has its place there, where its `type` leads.
fn page() -> String {
    let mut page = String::from(concat!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
        "<title>Shoppee API</title>\n",
        "<link rel=\"icon\" href=\"data:,\">\n",
        "<link rel=\"stylesheet\" href=\"/docs/swagger-ui.css\">\n",
        "<link rel=\"stylesheet\" href=\"/docs/docs.css\">\n",
        "<script src=\"/docs/swagger-ui-bundle.js\" defer></script>\n",
        "<script src=\"/docs/docs.js\" defer></script>\n</head>\n<body>\n",
        "<noscript><p>This page needs JavaScript; the document itself is ",
        "<a href=\"/openapi.json\">/openapi.json</a>.",
        "</p></noscript>\n<div id=\"api\"></div>\n",
        "<section id=\"problems\">\n<h2>Problems</h2>\n",
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
    fn a_client_says_whether_it_takes_gzip() {
        let takes = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(takes("gzip") && takes("br, GZIP;q=0.5, *"));
        assert!(!takes("br") && !takes("gzip;q=0") && !takes("gzip; q=0.0") && !takes(""));
    }

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
