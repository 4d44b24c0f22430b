//! The content codings that a client accepts (RFC 9110 §12.5.3).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{HeaderMap, header::ACCEPT_ENCODING, request::Parts};

/// Reports whether the client accepts gzip: by name or by wildcard, with a weight above 0.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings = values.flat_map(|value| value.split(',')).map(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let (parameter, weight) = weight.split_once('=').unwrap_or_default();
        let is_weight = parameter.trim().eq_ignore_ascii_case("q");
        (name.trim(), !is_weight || weight.trim().parse() != Ok(0.0_f32))
    });
    let (mut by_name, mut by_wildcard) = (None, None);
    for (name, is_accepted) in codings {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            by_name = Some(is_accepted);
        } else if name == "*" {
            by_wildcard = Some(is_accepted);
        }
    }
    by_name.or(by_wildcard).unwrap_or_default()
}

/// Tells whether the client accepts gzip. Every client can get a response without a coding, even one that refuses it: that
/// replaces 406.
#[derive(Clone, Copy, Debug)]
pub struct AcceptsGzip(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for AcceptsGzip {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accepts_gzip(&parts.headers)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn accept_encoding_decides_on_gzip() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for value in
            ["gzip", "br, GZIP;q=0.5, *", "*", "gzip, *;q=0", "gzip;q=1, identity;q=0", "gzip; Q=0.1"]
        {
            assert!(accepts(value), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "gzip; q=0.0", "*;q=0", "identity;q=0", "gzip;q=0, *", "gzip;Q=0"]
        {
            assert!(!accepts(value), "{value}");
        }
    }
}
