//! The content codings that a client accepts (RFC 9110 §12.5.3).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{HeaderMap, header::ACCEPT_ENCODING, request::Parts};

use crate::state::AppState;

/// Reports whether the client accepts gzip: by name or by wildcard, with a weight above 0.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings = values.flat_map(|value| value.split(',')).map(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let (parameter, weight) = weight.split_once('=').unwrap_or_default();
        let is_weight = parameter.trim().eq_ignore_ascii_case("q");
        (name.trim(), !is_weight || weight.trim().parse() != Ok(0.0_f32))
    });
    let (mut by_name, mut by_wildcard) = (None, None);
    for (name, is_taken) in codings {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            by_name = Some(is_taken);
        } else if name == "*" {
            by_wildcard = Some(is_taken);
        }
    }
    by_name.or(by_wildcard).unwrap_or_default()
}

/// The client accepts gzip, or does not. Every client can get an answer without a coding. A client that refuses it and
/// accepts no other coding gets it too, in place of 406.
#[derive(Clone, Copy, Debug)]
pub struct AcceptsGzip(pub bool);

impl FromRequestParts<AppState> for AcceptsGzip {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        Ok(Self(takes_gzip(&parts.headers)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_client_says_whether_it_takes_gzip() {
        let takes = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for value in
            ["gzip", "br, GZIP;q=0.5, *", "*", "gzip, *;q=0", "gzip;q=1, identity;q=0", "gzip; Q=0.1"]
        {
            assert!(takes(value), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "gzip; q=0.0", "*;q=0", "identity;q=0", "gzip;q=0, *", "gzip;Q=0"]
        {
            assert!(!takes(value), "{value}");
        }
    }
}
