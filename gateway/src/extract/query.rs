//! Query parameters: each at most once, none that the route does not know, all of them in UTF-8.

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use shoppee_proto::json::EnumName;

use super::{faults, strict};
use crate::{error::Problem, state::AppState};

/// All parameters of a request, and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// For routes that know no parameter: an error wherever there is one.
pub fn refuse(query: &str) -> Result<(), Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct None {}

    parse::<None>(query).map(|None {}| ())
}

/// An enumeration's number from its word.
pub fn word<'de, W: EnumName, D: Deserializer<'de>>(deserializer: D) -> Result<Option<W>, D::Error> {
    let word = String::deserialize(deserializer)?;
    W::from_json_name(&word).map(Some).ok_or_else(|| serde::de::Error::custom("unknown word"))
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    if !is_sound(query.as_bytes()) {
        return Err(Problem::malformed("query", "is not percent-encoded UTF-8"));
    }
    let pairs = form_urlencoded::parse(query.as_bytes());
    strict::read(serde_urlencoded::Deserializer::new(pairs)).map_err(|wrong| {
        let pairs = pairs.into_owned().collect();
        faults::of_query::<T>(pairs, wrong.fault("query").problem())
    })
}

/// Whether decoding loses nothing: what is broken would be guessed at otherwise.
fn is_sound(query: &[u8]) -> bool {
    let mut decoded = Vec::with_capacity(query.len());
    let mut rest = query;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let [high, low, after @ ..] = rest else { return false };
        let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16)) else {
            return false;
        };
        decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
        rest = after;
    }
    std::str::from_utf8(&decoded).is_ok()
}

#[cfg(test)]
mod tests {
    use shoppee_proto::order::v1::OrderStatus;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        q: Option<String>,
        limit: Option<i32>,
        in_stock: Option<bool>,
        #[serde(default, deserialize_with = "word")]
        status: Option<OrderStatus>,
    }

    #[test]
    fn what_is_given_is_read() {
        let list = parse::<List>("q=r%C3%A9d+shoe&limit=5&in_stock=false&status=paid").unwrap();
        assert_eq!(list.q.as_deref(), Some("réd shoe"));
        assert_eq!((list.limit, list.in_stock, list.status), (Some(5), Some(false), Some(OrderStatus::Paid)));
        assert_eq!(parse::<List>("").unwrap().q, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, field) in [
            ("limit=x", "limit"),
            ("limit=", "limit"),
            ("limit=1.5", "limit"),
            ("limit=99999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("in_stock=yes", "in_stock"),
            ("status=PAID", "status"),
            ("status=", "status"),
            ("page=1", "page"),
            ("q=%ff", "query"),
            ("q=%", "query"),
            ("q=%zz", "query"),
        ] {
            let problem = parse::<List>(query).unwrap_err();
            assert_eq!(problem.errors()[0].field, field, "{query}");
        }
    }
}
