//! Form bodies (`application/x-www-form-urlencoded`), for the token endpoint of OAuth 2.

use axum::extract::{FromRequest, Request};
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use mime::Mime;

use super::{
    body::{self, DEFAULT_BODY_LIMIT},
    query::is_valid_encoding,
};
use crate::error::Problem;

/// The parameters of a form in their order; `None` if the body is no form.
#[derive(Clone, Debug)]
pub struct Form(pub Option<Vec<(String, String)>>);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let is_form = is_form(&parts.headers);
        let body = body::read(&parts, body, DEFAULT_BODY_LIMIT).await?;
        Ok(Self(is_form.then(|| parse(&body)).flatten()))
    }
}

/// Parses a form; `None` if it is not percent-encoded UTF-8.
pub fn parse(body: &[u8]) -> Option<Vec<(String, String)>> {
    is_valid_encoding(body).then(|| form_urlencoded::parse(body).into_owned().collect())
}

fn is_form(headers: &HeaderMap) -> bool {
    let is_plain = headers.get_all(CONTENT_ENCODING).iter().all(|encoding| encoding == "identity");
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let content_type =
        types.next().and_then(|value| value.to_str().ok()).and_then(|value| value.parse::<Mime>().ok());
    let is_form = content_type.is_some_and(|content_type| {
        content_type.essence_str() == mime::APPLICATION_WWW_FORM_URLENCODED.essence_str()
    });
    is_plain && is_form && types.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_percent_encoded_utf_8_is_a_form() {
        let pairs = parse(b"a=1&b=x+y%C3%A9&a=").unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x y\u{e9}"), ("a", "")]);
        assert_eq!(parse(b"").unwrap(), []);
        for invalid in [&b"a=%ff"[..], b"a=%", b"a=%zz", b"\xff"] {
            assert!(parse(invalid).is_none(), "{invalid:?}");
        }
    }

    #[test]
    fn only_one_form_content_type_is_accepted() {
        let headers = |types: &[&str]| {
            types.iter().map(|value| (CONTENT_TYPE, value.parse().unwrap())).collect::<HeaderMap>()
        };
        let form = "application/x-www-form-urlencoded";
        assert!(
            is_form(&headers(&[form]))
                && is_form(&headers(&["Application/X-WWW-Form-UrlEncoded; charset=UTF-8"]))
        );
        for other in [&[][..], &["application/json"], &["text/plain"], &[""], &[form, form]] {
            assert!(!is_form(&headers(other)), "{other:?}");
        }
    }
}
