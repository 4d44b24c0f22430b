//! Conditional requests (RFC 9110 §13). The entity tag of a product is `"<version>-<hash>"`: the hash is of
//! the body that is served, so that a cache sees every change; the version is what a write may depend on,
//! since stock moves all the time without anybody's edit being lost.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
    request::Parts,
};

use crate::state::AppState;

/// The tag of a body.
pub fn etag(version: i64, body: &[u8]) -> HeaderValue {
    // FNV-1a: tells bodies of one product apart, and is the same in every gateway.
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Digits, letters and quotes are a header value.
    HeaderValue::try_from(format!("\"{version}-{hash:016x}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// What a client has already.
#[derive(Clone, Debug)]
pub struct IfNoneMatch(Option<Tags>);

impl IfNoneMatch {
    /// Whether the client has this one; compared weakly.
    pub fn has(&self, etag: &HeaderValue) -> bool {
        match &self.0 {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::Of(tags)) => tags.iter().any(|tag| tag.opaque.as_bytes() == etag.as_bytes()),
        }
    }
}

impl FromRequestParts<AppState> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        Ok(Self(tags(&parts.headers, &IF_NONE_MATCH)))
    }
}

/// The versions that a write depends on: of `If-Match` and `If-None-Match` together.
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
    fn read(headers: &HeaderMap) -> Self {
        let refused = match tags(headers, &IF_NONE_MATCH) {
            None => Vec::new(),
            // Whatever is changed exists already (RFC 9110 §13.1.2).
            Some(Tags::Any) => return Self::OneOf(Vec::new()),
            // Compared weakly.
            Some(Tags::Of(tags)) => versions(tags.iter()),
        };
        match tags(headers, &IF_MATCH) {
            None | Some(Tags::Any) if refused.is_empty() => Self::Any,
            None | Some(Tags::Any) => Self::NoneOf(refused),
            Some(Tags::Of(tags)) => {
                let mut wanted = versions(tags.iter().filter(|tag| !tag.weak));
                wanted.retain(|version| !refused.contains(version));
                Self::OneOf(wanted)
            }
        }
    }
}

impl FromRequestParts<AppState> for WriteCondition {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        Ok(Self::read(&parts.headers))
    }
}

/// The versions in tags, each once.
fn versions<'a>(tags: impl Iterator<Item = &'a Tag>) -> Vec<i64> {
    let mut versions: Vec<i64> = tags.filter_map(|tag| version(&tag.opaque)).collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

/// The version in a tag that [`etag`] made.
fn version(opaque: &str) -> Option<i64> {
    let (version, hash) = opaque.trim_matches('"').split_once('-')?;
    let sound = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    version.parse().ok().filter(|version| sound && *version > 0)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    Of(Vec<Tag>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    /// With its quotes.
    opaque: String,
}

/// The tags in a header, in all its lines; what is none is left out, so that it matches nothing.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let mut tags = Vec::new();
    for line in lines.filter_map(|line: &HeaderValue| line.to_str().ok()) {
        if line.trim() == "*" {
            return Some(Tags::Any);
        }
        // Our tags have no comma inside.
        tags.extend(line.split(',').map(str::trim).filter_map(tag));
    }
    Some(Tags::Of(tags))
}

fn tag(text: &str) -> Option<Tag> {
    let (weak, opaque) = text.strip_prefix("W/").map_or((false, text), |opaque| (true, opaque));
    let quoted = opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"');
    quoted.then(|| Tag { weak, opaque: opaque.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(name: &HeaderName, lines: &[&str]) -> Option<Tags> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        tags(&headers, name)
    }

    #[test]
    fn a_cache_has_what_it_names() {
        let tag = etag(7, b"{}");
        let text = tag.to_str().unwrap();
        let has = |lines: &[&str]| IfNoneMatch(sent(&IF_NONE_MATCH, lines)).has(&tag);
        assert!(has(&[text]));
        assert!(has(&[&format!("W/{text}")]));
        assert!(has(&["\"other\"", &format!("\"x\", {text}")]));
        assert!(has(&["*"]));
        for lines in [&[][..], &["\"7\""], &["7"], &[""], &[text.trim_matches('"')]] {
            assert!(!has(lines), "{lines:?}");
        }
        assert_ne!(tag, etag(7, b"{ }"), "the tag follows the body");
    }

    #[test]
    fn a_write_goes_by_the_version() {
        let etag = etag(7, b"{}");
        assert_eq!(version(etag.to_str().unwrap()), Some(7));
        for odd in ["\"7\"", "\"-7-0123456789abcdef\"", "\"x-0123456789abcdef\"", "\"7-xyz\"", "nonsense"] {
            assert_eq!(version(odd), None, "{odd}");
        }
        assert_eq!(sent(&IF_MATCH, &[]), None);
        assert_eq!(sent(&IF_MATCH, &["nonsense"]), Some(Tags::Of(vec![])));
    }

    #[test]
    fn both_headers_make_one_condition() {
        let condition = |sent: &[(&HeaderName, &str)]| {
            let headers = sent.iter().map(|(name, value)| ((*name).clone(), value.parse().unwrap()));
            WriteCondition::read(&headers.collect())
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
