//! What a client says on a socket (contract §4).

use serde::Deserialize;

/// What a client may say.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Ping,
    Auth { access_token: String },
}

impl Said {
    /// `None` for what cannot be understood. What else stands in the object is for somebody newer than us.
    pub fn parse(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        #[derive(Deserialize)]
        struct Auth {
            content: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            access_token: String,
        }

        match serde_json::from_str::<Kind>(text).ok()?.kind.as_str() {
            "ping" => Some(Self::Ping),
            "auth" => {
                let Auth { content: Content { access_token } } = serde_json::from_str(text).ok()?;
                Some(Self::Auth { access_token })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_says_ping_and_auth() {
        assert_eq!(Said::parse(r#"{"type":"ping"}"#), Some(Said::Ping));
        assert_eq!(
            Said::parse(r#"{"content":{"access_token":"a.b.c"},"type":"auth"}"#),
            Some(Said::Auth { access_token: "a.b.c".to_owned() })
        );
    }

    #[test]
    fn the_examples_of_the_asyncapi_document_are_understood() {
        let document = crate::openapi::asyncapi::document().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        for kind in ["ping", "auth"] {
            let example = &document["components"]["messages"][kind]["examples"][0]["payload"];
            assert!(Said::parse(&example.to_string()).is_some(), "{example}");
        }
    }

    #[test]
    fn everything_else_is_not_understood() {
        let deep = "[".repeat(10_000);
        for odd in [
            "",
            "ping",
            "{}",
            "[]",
            "null",
            r#"{"type":"PING"}"#,
            r#"{"type":["ping"]}"#,
            r#"{"type":"ping","type":"auth"}"#,
            r#"{"type":"auth"}"#,
            r#"{"type":"auth","content":null}"#,
            r#"{"type":"auth","content":{"access_token":7}}"#,
            r#"{"type":"order","content":{}}"#,
            r#"{"type":"ping"} {}"#,
            &deep,
        ] {
            assert_eq!(Said::parse(odd), None, "{odd}");
        }
    }
}
