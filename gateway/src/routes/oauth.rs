//! `/oauth/token`: the token endpoint of OAuth 2 with the client credentials grant (RFC 6749 §4.4).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header::AUTHORIZATION};
use serde::Serialize;
use shoppee_proto::auth::v1::IssueServiceTokenRequest;

use crate::{
    auth::Anonymous,
    error::OAuthError,
    extract::{Form, Json, parse_form},
    upstream::Upstream,
};

const GRANT_TYPE: &str = "client_credentials";

/// A successful response (RFC 6749 §5.1).
#[derive(Debug, Serialize)]
pub struct TokenResponse {
    access_token: String,
    token_type: &'static str,
    expires_in: i64,
    scope: String,
}

pub async fn issue_token(
    upstream: Upstream,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Json<TokenResponse>, OAuthError> {
    let form = form.ok_or(OAuthError::InvalidRequest("the body is application/x-www-form-urlencoded"))?;
    let request = parse_request(&headers, &form)?;
    let issued = upstream.call(&Anonymous, request).await?;
    Ok(Json(TokenResponse {
        access_token: issued.access_token,
        token_type: "Bearer",
        expires_in: issued.expires_in,
        scope: issued.scope,
    }))
}

/// Returns the only value of a parameter. One without a value counts as absent (RFC 6749 §3.2).
fn parameter<'a>(form: &'a [(String, String)], name: &str) -> Result<Option<&'a str>, OAuthError> {
    let mut values = form.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let value = values.next().filter(|value| !value.is_empty());
    match values.next() {
        Some(_) => Err(OAuthError::InvalidRequest("a parameter is repeated")),
        None => Ok(value),
    }
}

/// Parses a request, with the credentials in the header (RFC 6749 §2.3.1) or in the body. Unknown parameters are ignored.
fn parse_request(
    headers: &HeaderMap,
    form: &[(String, String)],
) -> Result<IssueServiceTokenRequest, OAuthError> {
    let [grant_type, client_id, client_secret, scope] = ["grant_type", "client_id", "client_secret", "scope"]
        .map(|name| parameter(form, name).map(|value| value.map(str::to_owned)));
    match grant_type?.as_deref() {
        Some(GRANT_TYPE) => {}
        Some(_) => return Err(OAuthError::UnsupportedGrantType),
        None => return Err(OAuthError::InvalidRequest("grant_type is missing")),
    }
    let (client_id, client_secret, scope) = (client_id?, client_secret?, scope?);
    let (client_id, client_secret) = match basic_credentials(headers)? {
        Some((id, _)) if client_secret.is_some() || client_id.as_ref().is_some_and(|own| *own != id) => {
            return Err(OAuthError::InvalidRequest("the client authenticates in two ways"));
        }
        Some(credentials) => credentials,
        None => match (client_id, client_secret) {
            (Some(id), Some(secret)) => (id, secret),
            (None, _) | (_, None) => return Err(OAuthError::InvalidClient),
        },
    };
    Ok(IssueServiceTokenRequest { client_id, client_secret, scope })
}

/// Returns the credentials of an `Authorization: Basic` header, whose parts are form-encoded.
fn basic_credentials(headers: &HeaderMap) -> Result<Option<(String, String)>, OAuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let credentials = value.to_str().ok().filter(|_| values.next().is_none()).and_then(parse_basic);
    credentials.map(Some).ok_or(OAuthError::InvalidClient)
}

fn parse_basic(value: &str) -> Option<(String, String)> {
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some((form_decode(id)?, form_decode(secret)?))
}

/// Decodes one value of a form.
fn form_decode(text: &str) -> Option<String> {
    if text.contains(['&', '=']) {
        // Encoded values have neither; a client that does not encode sends the text as it is.
        return Some(text.to_owned());
    }
    parse_form(format!("v={text}").as_bytes())?.pop().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        authorization: Option<&str>,
        body: &str,
    ) -> Result<(String, String, Option<String>), OAuthError> {
        let headers = authorization.map(|value| (AUTHORIZATION, value.parse().unwrap()));
        let form = parse_form(body.as_bytes()).unwrap();
        parse_request(&headers.into_iter().collect(), &form)
            .map(|request| (request.client_id, request.client_secret, request.scope))
    }

    fn basic(credentials: &str) -> String {
        format!("Basic {}", STANDARD.encode(credentials))
    }

    #[test]
    fn credentials_come_from_the_header_or_the_body() {
        let expected = |id: &str, secret: &str, scope: Option<&str>| {
            Ok((id.to_owned(), secret.to_owned(), scope.map(str::to_owned)))
        };
        let grant = "grant_type=client_credentials";
        assert_eq!(
            request(None, &format!("{grant}&client_id=a&client_secret=b+c&scope=x+y&audience=z")),
            expected("a", "b c", Some("x y"))
        );
        assert_eq!(request(Some(&basic("a:b:c")), grant), expected("a", "b:c", None));
        assert_eq!(request(Some(&basic("a%3Ab:c%20d+e")), grant), expected("a:b", "c d e", None));
        assert_eq!(request(Some(&basic("a:b=")), &format!("{grant}&scope=")), expected("a", "b=", None));
        let lower = basic("a:b").replace("Basic", "bASIC");
        assert_eq!(request(Some(&lower), &format!("{grant}&client_id=a")), expected("a", "b", None));
    }

    #[test]
    fn a_malformed_request_has_the_error_of_the_standard() {
        use OAuthError::{InvalidClient, InvalidRequest, UnsupportedGrantType};
        let error = |authorization: Option<&str>, body: &str| request(authorization, body).unwrap_err();
        let grant = "grant_type=client_credentials";
        for body in ["", "grant_type=", "client_id=a&client_secret=b"] {
            assert!(matches!(error(None, body), InvalidRequest(_)), "{body}");
        }
        for other in ["password", "authorization_code", "CLIENT_CREDENTIALS"] {
            assert_eq!(error(None, &format!("grant_type={other}")), UnsupportedGrantType);
        }
        for twice in ["grant_type=client_credentials", "client_id=b", "client_secret=c", "scope=y"] {
            let body = format!("{grant}&client_id=a&client_secret=b&scope=x&{twice}");
            assert!(matches!(error(None, &body), InvalidRequest(_)), "{twice}");
        }
        for missing in [String::new(), "&client_id=a".into(), "&client_secret=b".into()] {
            assert_eq!(error(None, &format!("{grant}{missing}")), InvalidClient, "{missing}");
        }
        for odd in ["Bearer x", "Basic", "Basic !", &basic("no colon"), &basic("a%ff:b")] {
            assert_eq!(error(Some(odd), grant), InvalidClient, "{odd}");
        }
        for two in ["client_secret=b", "client_id=other"] {
            assert!(matches!(error(Some(&basic("a:b")), &format!("{grant}&{two}")), InvalidRequest(_)));
        }
    }
}
