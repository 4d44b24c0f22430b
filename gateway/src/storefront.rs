//! The storefront and its back office: pages of ES modules that use the API as any page does. `assets/storefront` has the
//! source. `build.rs` compresses it into the gateway, and browsers run it without a build. It is on in development, and
//! with `STOREFRONT=on`. The page `/demo` also connects to the control port of `scripts/up`.

mod drawing;

use std::sync::LazyLock;

use axum::{
    Router,
    extract::{Path, State},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
};
use sha2::{Digest as _, Sha256};

use crate::{error::Problem, extract::IfNoneMatch, state::AppState, static_file::StaticFile};

const SHOP: &str = "index.html";
const BACK_OFFICE: &str = "admin.html";
const DEMO: &str = "demo.html";
const IMPORT_MAP: (&str, &str) = ("<script type=\"importmap\">", "</script>");
/// A drawing depends on its address alone. A month bounds how long a browser shows one of an earlier version.
const DRAWING_CACHE: HeaderValue = HeaderValue::from_static("public, max-age=2592000");

/// Name, content type and compressed content of each file.
const COMPRESSED: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/storefront.rs"));
static FILES: LazyLock<Vec<(&str, StaticFile)>> = LazyLock::new(|| {
    let file =
        |&(name, content_type, gzip)| (name, StaticFile::from_gzip(content_type, Bytes::from_static(gzip)));
    COMPRESSED.iter().map(file).collect()
});
/// The policy of the storefront and the back office: all pages have the same import map.
static SECURITY_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| security_policy(HTML, "'self'"));
const HTML: &str = include_str!("../assets/storefront/index.html");

/// Builds the routes of the storefront, and of `/demo` if there is a control port. All views of a page have its HTML; its
/// script shows the view of the address.
pub fn router(demo_control_url: Option<&str>) -> Router<AppState> {
    let router = Router::new()
        .route("/shop", get(shop))
        .route("/shop/{*view}", get(shop))
        .route("/admin", get(back_office))
        .route("/admin/{*view}", get(back_office))
        .route("/shop/assets/{*file}", get(asset))
        .route("/shop/pictures/{kind}/{material}/{colour}", get(picture));
    let Some(control_url) = demo_control_url else { return router };
    let policy = security_policy(HTML, &format!("'self' {control_url}"));
    let demo = move |request: HeaderMap, if_none_match: IfNoneMatch| async move {
        respond_with_page(DEMO, policy, &request, &if_none_match)
    };
    router.route("/demo", get(demo))
}

/// Reports whether a route serves pages, files or drawings of the storefront, which have no rate limit: a view needs more
/// of them at once than a limit of the API allows, and none calls a service.
pub fn is_file(route: Option<&str>) -> bool {
    let root = route.and_then(|route| route.split('/').nth(1));
    matches!(root, Some("shop" | "admin" | "demo"))
}

/// Serves the storefront's first view, or redirects to the documentation where there is no storefront.
pub async fn root(State(state): State<AppState>, request: HeaderMap, if_none_match: IfNoneMatch) -> Response {
    if state.storefront {
        respond_with_page(SHOP, SECURITY_POLICY.clone(), &request, &if_none_match)
    } else {
        Redirect::temporary("/docs").into_response()
    }
}

async fn shop(request: HeaderMap, if_none_match: IfNoneMatch) -> Response {
    respond_with_page(SHOP, SECURITY_POLICY.clone(), &request, &if_none_match)
}

async fn back_office(request: HeaderMap, if_none_match: IfNoneMatch) -> Response {
    respond_with_page(BACK_OFFICE, SECURITY_POLICY.clone(), &request, &if_none_match)
}

fn respond_with_page(
    name: &str,
    policy: HeaderValue,
    request: &HeaderMap,
    if_none_match: &IfNoneMatch,
) -> Response {
    let Some(page) = find(name) else {
        return Problem::not_found().into_response();
    };
    let mut response = page.respond(request, if_none_match);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

async fn asset(
    Path(name): Path<String>,
    request: HeaderMap,
    if_none_match: IfNoneMatch,
) -> Result<Response, Problem> {
    find(&name).map(|file| file.respond(&request, &if_none_match)).ok_or_else(Problem::not_found)
}

async fn picture(
    Path((kind, material, colour)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let colour = colour.strip_suffix(".svg").ok_or_else(Problem::not_found)?;
    let headers = [(CACHE_CONTROL, DRAWING_CACHE), (CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"))];
    Ok((headers, drawing::draw(&kind, &material, colour)).into_response())
}

fn find(name: &str) -> Option<&'static StaticFile> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, file)| file)
}

/// Allows the gateway's files, calls of `servers`, and pictures of products, which an admin may keep at another host. The
/// import map is the only inline script, and is allowed by its hash.
fn security_policy(page: &str, servers: &str) -> HeaderValue {
    let import_map = page.split_once(IMPORT_MAP.0).and_then(|(_, rest)| rest.split_once(IMPORT_MAP.1));
    let import_map = import_map.map(|(content, _)| content).unwrap_or_default();
    let hash = BASE64_STANDARD.encode(Sha256::digest(import_map));
    let policy = format!(
        "default-src 'none'; script-src 'self' 'sha256-{hash}'; style-src 'self'; img-src 'self' https:; \
         connect-src {servers}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // Base64 is a valid part of a header value.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [&str; 3] = [
        HTML,
        include_str!("../assets/storefront/admin.html"),
        include_str!("../assets/storefront/demo.html"),
    ];

    #[test]
    fn a_page_has_one_inline_script_and_no_other_host() {
        for page in PAGES {
            assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<style"));
            assert_eq!(
                (page.matches("<script").count(), page.matches("<script type=\"importmap\">").count()),
                (2, 1)
            );
            let policy = security_policy(page, "'self'");
            assert!(
                !policy.to_str().unwrap().contains("unsafe")
                    && !policy.to_str().unwrap().contains("sha256-47DEQ")
            );
            assert_eq!(policy, *SECURITY_POLICY);
        }
    }

    #[test]
    fn every_file_that_a_page_names_is_there() {
        for page in PAGES {
            let names = page.split('"').filter_map(|text| text.strip_prefix("/shop/assets/"));
            for name in names {
                assert!(find(name).is_some(), "{name}");
            }
            assert!(page.matches("/shop/assets/").count() >= 8);
        }
    }
}
