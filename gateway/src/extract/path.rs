//! Ids in the path. An invalid id names no resource: 404.

use std::{fmt, str::FromStr};

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use crate::error::Problem;

/// The id in a path.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

/// The id of a user, a product or a category: 1 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(i64);

impl From<Id> for i64 {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl FromStr for Id {
    type Err = ();

    /// Parses the canonical form: digits without a sign or leading zeros.
    fn from_str(text: &str) -> Result<Self, ()> {
        let canonical =
            text.starts_with(|c: char| matches!(c, '1'..='9')) && text.bytes().all(|b| b.is_ascii_digit());
        if canonical { text.parse().map(Self).map_err(|_| ()) } else { Err(()) }
    }
}

/// The id of an order or a session: lower case, with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(uuid::Uuid);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Uuid> for String {
    fn from(id: Uuid) -> Self {
        id.to_string()
    }
}

impl FromStr for Uuid {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let id: uuid::Uuid = text.parse().map_err(|_| ())?;
        if id.to_string() == text { Ok(Self(id)) } else { Err(()) }
    }
}

impl<T: FromStr, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params =
            RawPathParams::from_request_parts(parts, state).await.map_err(|_| Problem::not_found())?;
        let id = params.iter().next().and_then(|(_, text)| text.parse().ok());
        id.map(Self).ok_or_else(Problem::not_found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_of_an_id_is_parsed() {
        assert_eq!("9223372036854775807".parse(), Ok(Id(i64::MAX)));
        for odd in ["", "0", "-1", "+1", "01", "1.0", "9223372036854775808", "1 ", "1;drop", "٣", "abc"] {
            assert!(odd.parse::<Id>().is_err(), "{odd}");
        }
        assert!("0198c3b4-0000-7000-8000-000000000001".parse::<Uuid>().is_ok());
        for odd in [
            "",
            "1",
            "0198c3b400007000800000000000000112",
            "0198C3B4-0000-7000-8000-000000000001",
            "{0198c3b4-0000-7000-8000-00000000001}",
        ] {
            assert!(odd.parse::<Uuid>().is_err(), "{odd}");
        }
    }
}
