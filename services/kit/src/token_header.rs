//! A strict parser of the JOSE header of a token (RFC 7515 §4), stricter than that of the library.

use std::{collections::BTreeSet, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

/// Unsupported parameters that change the meaning of a token: `crit` (RFC 7515 §4.1.11), `b64` (RFC 7797), and those of
/// encryption (RFC 7516).
const UNSUPPORTED: [&str; 4] = ["crit", "b64", "enc", "zip"];

#[derive(Debug, PartialEq, Eq)]
pub struct TokenHeader {
    pub typ: String,
    pub kid: String,
}

impl TokenHeader {
    /// Parses the header of a token. Returns `None` if it is malformed, repeats a parameter, or has one of
    /// [`UNSUPPORTED`].
    pub fn parse(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()
    }
}

impl<'de> Deserialize<'de> for TokenHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Parameters)
    }
}

struct Parameters;

impl<'de> Visitor<'de> for Parameters {
    type Value = TokenHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the header of a token")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenHeader, A::Error> {
        let (mut names, mut typ, mut kid) = (BTreeSet::new(), None, None);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "typ" => typ = Some(map.next_value()?),
                "kid" => kid = Some(map.next_value()?),
                name if UNSUPPORTED.contains(&name) => return Err(Error::custom("not understood")),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            if !names.insert(name) {
                return Err(Error::custom("named twice"));
            }
        }
        match (typ, kid) {
            (Some(typ), Some(kid)) => Ok(TokenHeader { typ, kid }),
            (None, _) => Err(Error::missing_field("typ")),
            (_, None) => Err(Error::missing_field("kid")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str) -> Option<TokenHeader> {
        TokenHeader::parse(&format!("{}.claims.signature", URL_SAFE_NO_PAD.encode(header)))
    }

    #[test]
    fn a_header_with_a_repeated_or_unsupported_parameter_is_rejected() {
        let header = TokenHeader { typ: "at+jwt".to_owned(), kid: "k".to_owned() };
        assert_eq!(parse(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k"}"#), Some(header));
        assert!(parse(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k","x5t":"unknown and harmless"}"#).is_some());
        for rejected in [
            r#"{"alg":"EdDSA","typ":"at+jwt"}"#,
            r#"{"alg":"EdDSA","kid":"k"}"#,
            r#"{"typ":"at+jwt","kid":"k","crit":["exp"]}"#,
            r#"{"typ":"at+jwt","kid":"k","crit":[]}"#,
            r#"{"typ":"at+jwt","kid":"k","crit":null}"#,
            r#"{"typ":"at+jwt","kid":"k","b64":true}"#,
            r#"{"typ":"at+jwt","kid":"k","b64":false,"crit":["b64"]}"#,
            r#"{"typ":"at+jwt","kid":"k","zip":"DEF"}"#,
            r#"{"typ":"at+jwt","kid":"k","kid":"k"}"#,
            r#"{"typ":"ws-ticket+jwt","kid":"k","typ":"at+jwt"}"#,
            r#"{"typ":"at+jwt","kid":"k","jku":1,"jku":2}"#,
            r#"{"typ":"at+jwt","kid":["k"]}"#,
            r#"{"typ":"at+jwt","kid":null}"#,
            r#"["at+jwt","k"]"#,
            "",
        ] {
            assert_eq!(parse(rejected), None, "{rejected}");
        }
        assert_eq!(TokenHeader::parse("no-dots"), None);
    }
}
