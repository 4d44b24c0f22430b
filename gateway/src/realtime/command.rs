//! The commands that a client sends on a socket, as `docs/API.md` describes them.

use serde::Deserialize;

/// A command of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientCommand {
    Ping,
    Auth { access_token: String },
}

impl ClientCommand {
    /// Parses a text message; `None` if it is no command. Ignores unknown members, which a newer client may send.
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
    fn ping_and_auth_are_parsed() {
        assert_eq!(ClientCommand::parse(r#"{"type":"ping"}"#), Some(ClientCommand::Ping));
        assert_eq!(
            ClientCommand::parse(r#"{"content":{"access_token":"a.b.c"},"type":"auth"}"#),
            Some(ClientCommand::Auth { access_token: "a.b.c".to_owned() })
        );
    }

    #[test]
    fn the_examples_of_the_asyncapi_document_are_parsed() {
        let document = crate::openapi::asyncapi::document().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        for kind in ["ping", "auth"] {
            let example = &document["components"]["messages"][kind]["examples"][0]["payload"];
            assert!(ClientCommand::parse(&example.to_string()).is_some(), "{example}");
        }
    }

    #[test]
    fn any_other_text_is_rejected() {
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
            assert_eq!(ClientCommand::parse(odd), None, "{odd}");
        }
    }
}
