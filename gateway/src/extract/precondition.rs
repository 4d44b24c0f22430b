//! Conditional requests (RFC 9110 §13). The entity tag of a product is `"<version>-<hash>"`. The hash of the served body
//! lets a cache detect every change. A write depends on the version alone, which movements of stock do not change.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
    request::Parts,
};

/// Returns the entity tag of a body.
pub fn etag(version: i64, body: &[u8]) -> HeaderValue {
    // FNV-1a: distinguishes bodies of one product, and is the same in every gateway.
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Digits, letters and quotes are a valid header value.
    HeaderValue::try_from(format!("\"{version}-{hash:016x}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The entity tags that a client has.
#[derive(Clone, Debug)]
pub struct IfNoneMatch(Option<EntityTags>);

impl IfNoneMatch {
    /// Reports whether the client has this one, by the weak comparison.
    pub fn matches(&self, etag: &HeaderValue) -> bool {
        match &self.0 {
            None => false,
            Some(EntityTags::Any) => true,
            Some(EntityTags::List(tags)) => tags.iter().any(|tag| tag.opaque.as_bytes() == etag.as_bytes()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parse_tags(&parts.headers, &IF_NONE_MATCH)))
    }
}

/// The product versions that a write requires, from `If-Match` and `If-None-Match` together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteCondition {
    /// Any version.
    Any,
    /// One of these; none where no tag can match.
    OneOf(Vec<i64>),
    /// Any version but these, of which there is at least one.
    NoneOf(Vec<i64>),
}

impl WriteCondition {
    fn from_headers(headers: &HeaderMap) -> Self {
        let excluded = match parse_tags(headers, &IF_NONE_MATCH) {
            None => Vec::new(),
            // The target of a write exists (RFC 9110 §13.1.2).
            Some(EntityTags::Any) => return Self::OneOf(Vec::new()),
            // The weak comparison.
            Some(EntityTags::List(tags)) => versions(tags.iter()),
        };
        match parse_tags(headers, &IF_MATCH) {
            None | Some(EntityTags::Any) if excluded.is_empty() => Self::Any,
            None | Some(EntityTags::Any) => Self::NoneOf(excluded),
            Some(EntityTags::List(tags)) => {
                let mut required = versions(tags.iter().filter(|tag| !tag.weak));
                required.retain(|version| !excluded.contains(version));
                Self::OneOf(required)
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WriteCondition {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_headers(&parts.headers))
    }
}

/// Returns the distinct versions in tags.
fn versions<'a>(tags: impl Iterator<Item = &'a EntityTag>) -> Vec<i64> {
    let mut versions: Vec<i64> = tags.filter_map(|tag| parse_version(&tag.opaque)).collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

/// Parses the version in a tag of [`etag`].
fn parse_version(opaque: &str) -> Option<i64> {
    let (version, hash) = opaque.trim_matches('"').split_once('-')?;
    let is_valid_hash = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    version.parse().ok().filter(|version| is_valid_hash && *version > 0)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum EntityTags {
    /// `*`
    Any,
    List(Vec<EntityTag>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct EntityTag {
    weak: bool,
    /// The opaque tag with its quotes.
    opaque: String,
}

/// Parses the tags in all lines of a header. Ignores invalid ones, which match nothing.
fn parse_tags(headers: &HeaderMap, name: &HeaderName) -> Option<EntityTags> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let mut tags = Vec::new();
    for line in lines.filter_map(|line: &HeaderValue| line.to_str().ok()) {
        if line.trim() == "*" {
            return Some(EntityTags::Any);
        }
        // Tags of the gateway contain no comma.
        tags.extend(line.split(',').map(str::trim).filter_map(parse_tag));
    }
    Some(EntityTags::List(tags))
}

fn parse_tag(text: &str) -> Option<EntityTag> {
    let (weak, opaque) = text.strip_prefix("W/").map_or((false, text), |opaque| (true, opaque));
    let quoted = opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"');
    quoted.then(|| EntityTag { weak, opaque: opaque.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &HeaderName, lines: &[&str]) -> Option<EntityTags> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        parse_tags(&headers, name)
    }

    #[test]
    fn if_none_match_compares_tags_weakly() {
        let tag = etag(7, b"{}");
        let text = tag.to_str().unwrap();
        let matches = |lines: &[&str]| IfNoneMatch(parse(&IF_NONE_MATCH, lines)).matches(&tag);
        assert!(matches(&[text]));
        assert!(matches(&[&format!("W/{text}")]));
        assert!(matches(&["\"other\"", &format!("\"x\", {text}")]));
        assert!(matches(&["*"]));
        for lines in [&[][..], &["\"7\""], &["7"], &[""], &[text.trim_matches('"')]] {
            assert!(!matches(lines), "{lines:?}");
        }
        assert_ne!(tag, etag(7, b"{ }"), "the tag follows the body");
    }

    #[test]
    fn the_version_of_a_tag_is_parsed() {
        let etag = etag(7, b"{}");
        assert_eq!(parse_version(etag.to_str().unwrap()), Some(7));
        for odd in ["\"7\"", "\"-7-0123456789abcdef\"", "\"x-0123456789abcdef\"", "\"7-xyz\"", "nonsense"] {
            assert_eq!(parse_version(odd), None, "{odd}");
        }
        assert_eq!(parse(&IF_MATCH, &[]), None);
        assert_eq!(parse(&IF_MATCH, &["nonsense"]), Some(EntityTags::List(vec![])));
    }

    #[test]
    fn if_match_and_if_none_match_are_combined() {
        let condition = |sent: &[(&HeaderName, &str)]| {
            let headers = sent.iter().map(|(name, value)| ((*name).clone(), value.parse().unwrap()));
            WriteCondition::from_headers(&headers.collect())
        };
        let (seven, eight) = ("\"7-0123456789abcdef\"", "\"8-0123456789abcdef\"");
        let both = format!("{eight}, W/{seven}");
        let (one_of, none_of) = (WriteCondition::OneOf, WriteCondition::NoneOf);
        for (sent, expected) in [
            (&[][..], WriteCondition::Any),
            (&[(&IF_MATCH, "*")], WriteCondition::Any),
            (&[(&IF_NONE_MATCH, "nonsense")], WriteCondition::Any),
            (&[(&IF_MATCH, "nonsense")], one_of(vec![])),
            (&[(&IF_NONE_MATCH, "*")], one_of(vec![])),
            (&[(&IF_MATCH, both.as_str())], one_of(vec![8])),
            (&[(&IF_NONE_MATCH, both.as_str())], none_of(vec![7, 8])),
            (&[(&IF_MATCH, "*"), (&IF_NONE_MATCH, seven)], none_of(vec![7])),
            (&[(&IF_MATCH, both.as_str()), (&IF_NONE_MATCH, seven)], one_of(vec![8])),
            (&[(&IF_MATCH, seven), (&IF_NONE_MATCH, both.as_str())], one_of(vec![])),
        ] {
            assert_eq!(condition(sent), expected, "{sent:?}");
        }
    }
}
