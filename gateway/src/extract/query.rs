//! Query parameters. Each may occur once; a parameter that the route does not know, or that is not UTF-8, is an error.

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use shoppee_proto::{Timestamp, json::EnumName};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{deserialize, faults};
use crate::error::Problem;

/// All query parameters of a request.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// Rejects a query with parameters, for routes that know none.
pub fn reject_query(query: &str) -> Result<(), Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct None {}

    parse::<None>(query).map(|None {}| ())
}

/// Deserialises an enumeration from its name.
pub fn deserialize_enum<'de, W: EnumName, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<W>, D::Error> {
    let name = String::deserialize(deserializer)?;
    W::from_json_name(&name).map(Some).ok_or_else(|| serde::de::Error::custom("unknown word"))
}

/// Deserialises a time (RFC 3339).
pub fn deserialize_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time = OffsetDateTime::parse(&text, &Rfc3339);
    time.map(|time| Some(time.into())).map_err(|_| serde::de::Error::custom("not a time of RFC 3339"))
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    if !is_valid_encoding(query.as_bytes()) {
        return Err(Problem::malformed("query", "is not percent-encoded UTF-8"));
    }
    let pairs = form_urlencoded::parse(query.as_bytes());
    deserialize::from_deserializer(serde_urlencoded::Deserializer::new(pairs)).map_err(|error| {
        let pairs = pairs.into_owned().collect();
        faults::add_query_faults::<T>(pairs, error.into_fault("query").into_problem())
    })
}

/// Reports whether a query or a form is percent-encoded UTF-8. The decoder would replace invalid bytes.
pub(super) fn is_valid_encoding(query: &[u8]) -> bool {
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
        #[serde(default, deserialize_with = "deserialize_enum")]
        status: Option<OrderStatus>,
        #[serde(default, deserialize_with = "deserialize_time")]
        since: Option<Timestamp>,
    }

    #[test]
    fn valid_parameters_are_parsed() {
        let list = parse::<List>("q=r%C3%A9d+shoe&limit=5&in_stock=false&status=paid").unwrap();
        assert_eq!(list.q.as_deref(), Some("réd shoe"));
        assert_eq!((list.limit, list.in_stock, list.status), (Some(5), Some(false), Some(OrderStatus::Paid)));
        let list = parse::<List>("since=2026-01-15T10:30:00.5%2B01:00").unwrap();
        assert_eq!(list.since, Some(Timestamp { seconds: 1_768_469_400, nanos: 500_000_000 }));
        assert_eq!(parse::<List>("").unwrap().q, None);
    }

    #[test]
    fn an_invalid_parameter_is_named() {
        for (query, field) in [
            ("limit=x", "limit"),
            ("limit=", "limit"),
            ("limit=1.5", "limit"),
            ("limit=99999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("in_stock=yes", "in_stock"),
            ("status=PAID", "status"),
            ("status=", "status"),
            ("since=yesterday", "since"),
            ("since=2026-01-15", "since"),
            ("since=", "since"),
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
