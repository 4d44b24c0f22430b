//! The files of the API's documentation: both documents, and a page that shows them and calls operations. The gateway
//! serves all files itself: the page needs no other host.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;

use crate::{error::Code, openapi, static_file::StaticFile};

/// The files of the page: name, content type, content.
const FILES: [(&str, &str, &[u8]); 2] = [
    ("docs.js", "text/javascript; charset=utf-8", include_bytes!("../assets/docs.js")),
    ("docs.css", "text/css; charset=utf-8", include_bytes!("../assets/docs.css")),
];
/// Scalar, compressed by `build.rs` to a fraction of its size.
const SCALAR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/scalar.js.gz"));

/// All served files, built once.
#[derive(Clone, Debug)]
pub struct Docs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    openapi: StaticFile,
    asyncapi: StaticFile,
    page: StaticFile,
    files: Vec<(&'static str, StaticFile)>,
}

impl Docs {
    pub fn new() -> anyhow::Result<Self> {
        let document = |json: Vec<u8>| StaticFile::compressed("application/json", json.into());
        let scalar = StaticFile::from_gzip("text/javascript; charset=utf-8", Bytes::from_static(SCALAR));
        let files = FILES.into_iter().map(|(name, content_type, content)| {
            (name, StaticFile::plain(content_type, Bytes::from_static(content)))
        });
        Ok(Self(Arc::new(Inner {
            openapi: document(openapi::document()?)?,
            asyncapi: document(openapi::asyncapi::document()?)?,
            page: StaticFile::plain("text/html; charset=utf-8", render_page().into()),
            files: files.chain([("scalar.js", scalar)]).collect(),
        })))
    }

    pub fn openapi(&self) -> &StaticFile {
        &self.0.openapi
    }

    pub fn asyncapi(&self) -> &StaticFile {
        &self.0.asyncapi
    }

    pub fn page(&self) -> &StaticFile {
        &self.0.page
    }

    /// Returns a file of the page.
    pub fn file(&self, name: &str) -> Option<&StaticFile> {
        self.0.files.iter().find(|(file, _)| *file == name).map(|(_, file)| file)
    }
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
