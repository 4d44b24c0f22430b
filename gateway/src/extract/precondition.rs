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

use crate::state::State;

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

impl FromRequestParts<State> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Infallible> {
        Ok(Self(tags(&parts.headers, &IF_NONE_MATCH)))
    }
}

/// Which versions a client is ready to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// Whatever it is.
    Any,
    /// One of these; none where no tag can match.
    Versions(Vec<i64>),
}

impl FromRequestParts<State> for IfMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Infallible> {
        // Whatever is changed exists already (RFC 9110 §13.1.2).
        if tags(&parts.headers, &IF_NONE_MATCH) == Some(Tags::Any) {
            return Ok(Self::Versions(Vec::new()));
        }
        Ok(match tags(&parts.headers, &IF_MATCH) {
            None | Some(Tags::Any) => Self::Any,
            Some(Tags::Of(tags)) => {
                let mut versions: Vec<i64> =
                    tags.iter().filter(|tag| !tag.weak).filter_map(|tag| version(&tag.opaque)).collect();
                versions.sort_unstable();
                versions.dedup();
                Self::Versions(versions)
            }
        })
    }
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
}
