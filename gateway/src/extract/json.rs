//! JSON bodies of requests and responses.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use mime::Mime;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    body::{self, DEFAULT_BODY_LIMIT},
    deserialize, faults, numbers,
};
use crate::error::{Code, Problem};

/// A JSON body: of a request, exactly a `T`; of a response, any value.
#[derive(Clone, Copy, Debug)]
pub struct Json<T, const LIMIT: usize = DEFAULT_BODY_LIMIT>(pub T);

impl<T: DeserializeOwned, S: Send + Sync, const LIMIT: usize> FromRequest<S> for Json<T, LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        Self::parse(&body::read(&parts, body, LIMIT).await?)
    }
}

impl<T: DeserializeOwned, const LIMIT: usize> Json<T, LIMIT> {
    /// Parses a body. The problem of an invalid one names every faulty field.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let value = parse(body).map_err(|first| faults::add_body_faults::<T>(body, first))?;
        // A batch has no free-form field.
        match (body.len() <= DEFAULT_BODY_LIMIT).then(|| numbers::first_lossy(body)).flatten() {
            Some(field) => Err(Problem::malformed(
                field,
                "has more digits than a number here keeps; send it as a string",
            )),
            None => Ok(Self(value)),
        }
    }
}

/// The body of a request without parameters: none, or an empty object.
#[derive(Clone, Copy, Debug)]
pub struct EmptyBody;

impl<S: Send + Sync> FromRequest<S> for EmptyBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}

        OptionalJson::<Empty>::from_request(request, state).await.map(|_| Self)
    }
}

/// A body whose fields are all optional; `None` if the request has no body.
#[derive(Clone, Copy, Debug)]
pub struct OptionalJson<T>(pub Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = body::read(&parts, body, DEFAULT_BODY_LIMIT).await?;
        if body.is_empty() {
            return Ok(Self(None));
        }
        check_content_type(&parts.headers)?;
        Json::<T>::parse(&body).map(|Json(value)| Self(Some(value)))
    }
}

/// Requires `application/json` or a type that ends in `+json`, in UTF-8 and not compressed.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = headers.get_all(CONTENT_ENCODING).iter().all(|encoding| encoding == "identity");
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let json = types.next().and_then(|value| value.to_str().ok()).is_some_and(is_json);
    if plain && json && types.next().is_none() {
        Ok(())
    } else {
        Err(Problem::new(Code::UnsupportedMediaType, "send application/json in UTF-8, not compressed"))
    }
}

fn is_json(content_type: &str) -> bool {
    let Ok(media_type) = content_type.parse::<Mime>() else {
        return false;
    };
    let is_json = media_type.type_() == mime::APPLICATION
        && (media_type.subtype() == mime::JSON || media_type.suffix() == Some(mime::JSON));
    let mut charsets = media_type.params().filter(|(name, _)| *name == mime::CHARSET);
    // `utf8` is a label of the same encoding (WHATWG Encoding).
    let is_utf_8 = charsets.all(|(_, charset)| charset == mime::UTF_8 || charset == "utf8");
    is_json && is_utf_8
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = deserialize::from_deserializer(&mut deserializer).map_err(|error| {
        let text = error.source.to_string();
        if error.source.is_data() || text.starts_with("number out of range") {
            error.into_fault("body").into_problem()
        } else {
            Problem::malformed("body", "is not JSON")
        }
    })?;
    deserializer.end().map_err(|_| Problem::malformed("body", "goes on after its end"))?;
    Ok(value)
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => {
                ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "serialising a response failed");
                Problem::internal().into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoppee_proto::{
        auth::v1::RegisterRequest,
        order::v1::{Address, OrderLine},
        product::v1::CreateProductRequest,
    };

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "only deserialised")]
        items: Vec<OrderLine>,
        #[expect(dead_code, reason = "only deserialised")]
        shipping_address: Option<Address>,
    }

    fn first_error<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> (String, String) {
        let problem = parse::<T>(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest);
        let error = &problem.errors()[0];
        (error.field.clone(), error.message.clone())
    }

    #[test]
    fn the_faulty_field_is_named() {
        for (body, field) in [
            (r#"{"items":[{"product_id":1,"quantity":"x"}]}"#, "items[0].quantity"),
            (
                r#"{"items":[{"product_id":1,"quantity":1},{"product_id":1.5,"quantity":1}]}"#,
                "items[1].product_id",
            ),
            (r#"{"items":[{"product_id":1}]}"#, "items[0].quantity"),
            (r#"{"items":[{"product_id":1,"quantity":9223372036854775808}]}"#, "items[0].quantity"),
            (r#"{"items":[{"product_id":1,"quantity":1e400}]}"#, "items[0].quantity"),
            (r#"{"items":[{"product_id":1,"quantity":1,"price":1}]}"#, "items[0].price"),
            (r#"{"items":[{"product_id":1,"product_id":1,"quantity":1}]}"#, "items[0].product_id"),
            (r#"{"items":{}}"#, "items"),
            (r#"{"items":[],"shipping_address":{"recipient":"A","line1":null}}"#, "shipping_address.line1"),
            (r#"{"items":[],"items":[]}"#, "items"),
            (r#"{"shipping_address":null}"#, "items"),
            (r#"{"items":[],"":1}"#, "body"),
            ("{}", "items"),
            ("7", "body"),
        ] {
            assert_eq!(first_error::<Order>(body).0, field, "{body}");
        }
    }

    #[test]
    fn a_list_in_place_of_an_object_is_rejected() {
        assert_eq!(first_error::<RegisterRequest>(r#"["ann","ann@example.com","secret-secret"]"#).0, "body");
        assert_eq!(
            first_error::<Order>(r#"{"items":[[1,2]]}"#),
            ("items[0]".into(), "must be an object".into())
        );
    }

    #[test]
    fn a_body_that_is_not_json_is_rejected() {
        for body in ["", " ", "{", "nul", "{\"items\":[}", "\u{feff}{}", "{'items':[]}", "{\"items\":[],}"] {
            assert_eq!(first_error::<Order>(body), ("body".into(), "is not JSON".into()), "{body}");
        }
        assert_eq!(first_error::<Order>(r#"{"items":[]} {}"#).1, "goes on after its end");
        assert!(parse::<Order>(b"{\"items\":[],\"\xff\":1}").is_err());
    }

    #[test]
    fn messages_do_not_repeat_the_input() {
        let (field, message) = first_error::<Order>(&format!(r#"{{"items":"{}"}}"#, "<script>".repeat(100)));
        assert_eq!((field.as_str(), message.as_str()), ("items", "must be a list"));
        let (field, _) = first_error::<Order>(&format!(r#"{{"{}\n":1}}"#, "x".repeat(10_000)));
        assert!(field.len() <= 64, "{field}");
    }

    #[test]
    fn attributes_accept_any_unambiguous_json() {
        let body = |attributes: &str| {
            format!(r#"{{"sku":"a","name":"b","price":1,"stock":1,"attributes":{attributes}}}"#)
        };
        assert!(parse::<CreateProductRequest>(body(r#"{"a":[1,{"b":null}],"c":1.5}"#).as_bytes()).is_ok());
        assert_eq!(first_error::<CreateProductRequest>(&body(r#"{"a":{"b":1,"b":2}}"#)).0, "attributes.a.b");
        assert!(first_error::<CreateProductRequest>(&body(r#"{"a":9007199254740993}"#)).1.contains("2^53"));
        assert_eq!(
            first_error::<CreateProductRequest>(&body("[]")),
            ("attributes".into(), "must be an object".into())
        );
    }

    #[test]
    fn attributes_with_too_many_levels_fail_validation() {
        let deep = format!(
            r#"{{"sku":"a","name":"b","price":1,"stock":1,"attributes":{{"a":{}}}}}"#,
            "[".repeat(100_000)
        );
        let problem = parse::<CreateProductRequest>(deep.as_bytes()).unwrap_err();
        assert_eq!(problem.code, Code::ValidationFailed);
        assert_eq!(problem.errors()[0].field, "attributes");
        assert_eq!(problem.errors()[0].message, "must have at most 16 levels");
    }

    #[test]
    fn only_json_content_types_in_utf_8_are_accepted() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/merge-patch+json",
            "application/json;charset=\"utf-8\"",
            "application/json; charset=utf8",
            "application/json; charset=UTF8",
            "application/json;",
            "application/json; profile=\"https://shop.example/a;b=c\"",
            "application/json; profile=\"a\"; charset=utf-8",
            "application/json; odata.metadata=minimal",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/json",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin1",
            "application/jsonp",
            "application/+json",
            "application/json; charset",
            "text/plain+json",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
