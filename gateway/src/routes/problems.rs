//! The pages to which the `type` of a problem links: cause and remedy of each code, from the table of codes.

use std::fmt::Write as _;

use axum::{extract::Path, response::Html};
use http::{
    HeaderName, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY},
};

use crate::error::{Code, Problem};

/// The pages change only with the version of the gateway. They load nothing: the style is inline, and the empty icon keeps
/// a browser from requesting one.
const HEADERS: [(HeaderName, HeaderValue); 2] = [
    (CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
        ),
    ),
];
const STYLE: &str = "\
body{max-width:46rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif}\
table{border-collapse:collapse;width:100%}\
th,td{padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8884;text-align:left}\
code{font-size:.95em;overflow-wrap:anywhere}";

type Page = ([(HeaderName, HeaderValue); 2], Html<String>);

/// Lists all codes.
pub async fn list() -> Page {
    let mut rows = String::new();
    for code in Code::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"{page}\"><code>{code}</code></a></td><td>{status}</td><td>{title}</td></tr>",
            page = code.type_uri(),
            code = code.as_str(),
            status = code.status().as_u16(),
            title = code.title(),
        );
    }
    page(
        "Problems",
        &format!("<table>\n<tr><th>Code</th><th>Status</th><th>Meaning</th></tr>\n{rows}</table>"),
    )
}

/// Shows one code.
pub async fn get(Path(name): Path<String>) -> Result<Page, Problem> {
    let code = Code::ALL.iter().find(|code| code.as_str() == name).ok_or_else(Problem::not_found)?;
    Ok(page(
        code.title(),
        &format!(
            "<p>Code <code>{code}</code>, status {status}.</p>\n<h2>Cause</h2>\n<p>{cause}</p>\n\
             <h2>Remedy</h2>\n<p>{remedy}</p>\n<p><a href=\"/problems\">All problems</a></p>",
            code = code.as_str(),
            status = code.status(),
            cause = code.cause(),
            remedy = code.remedy(),
        ),
    ))
}

fn page(title: &str, content: &str) -> Page {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} - Shoppee</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{content}\n</body>\n</html>\n"
    );
    (HEADERS, Html(html))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_codes_need_no_escape_in_html() {
        for code in Code::ALL {
            for text in [code.as_str(), code.title(), code.cause(), code.remedy()] {
                assert!(!text.is_empty() && !text.contains(['<', '>', '&', '"']), "{text}");
                assert!(text.split_whitespace().count() <= 50, "{text}");
            }
        }
    }
}
