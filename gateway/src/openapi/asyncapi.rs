//! The AsyncAPI document: `GET /ws` with its frames, for tools that do not read WebSockets from OpenAPI. The schemas are
//! those of the OpenAPI document.

use super::{
    descriptors::ApiDescriptors,
    frames::{self, Frame},
    json::{Json, Object, list, object},
    non_rpc_paths::SOCKET,
    schemas::{Schemas, reference},
};
use crate::realtime::CloseReason;

/// Returns the document, as JSON.
pub fn document() -> anyhow::Result<Vec<u8>> {
    let api = ApiDescriptors::read()?;
    let mut schemas = Schemas::new(&api);
    frames::write(&mut schemas);
    let mut schemas = schemas.finish();
    // The errors of a socket are frames, and the messages of a channel are its alternatives.
    schemas.retain(|name| !matches!(name, "Problem" | "FieldError" | "ServerFrame" | "ClientFrame"));
    let document = object! {
        "asyncapi": "3.1.0",
        "info": object! {
            "title": "Shoppee events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every step of every order, live. The REST operations are in `/openapi.json`.",
            "contact": object! { "name": "Shoppee" },
            "license": object! { "name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": object! { "gateway": server() },
        "channels": object! { "socket": channel() },
        "operations": object! {
            "sendFrame": operation("send", "The gateway sends these frames.", &frames::SERVER),
            "receiveFrame": operation("receive", "A client may send these frames.", &frames::CLIENT),
        },
        "components": object! {
            "schemas": schemas,
            "messages": all().map(|frame| (frame.kind, message(frame))).collect::<Object>(),
            "securitySchemes": object! {
                "accessToken": object! {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "The `access_token` of `POST /api/v1/auth/login`.",
                },
                "wsTicket": object! {
                    "type": "httpApiKey", "in": "header", "name": "Sec-WebSocket-Protocol",
                    "description": "`shoppee.v1, ticket.<ticket>`, with a ticket of `POST /api/v1/auth/ws-ticket`.",
                },
            },
        },
    };
    Ok(serde_json::to_vec(&Json::from(document))?)
}

fn all() -> impl Iterator<Item = Frame> {
    frames::SERVER.into_iter().chain(frames::CLIENT)
}

fn server() -> Object {
    object! {
        "host": "{host}",
        "protocol": "ws",
        "description": "A gateway; behind TLS the protocol is `wss`.",
        "variables": object! {
            "host": object! { "default": "127.0.0.1:8080", "description": "The host that serves this document." },
        },
        "security": list(["accessToken", "wsTicket"].map(|name| {
            object! { "$ref": format!("#/components/securitySchemes/{name}") }
        })),
    }
}

fn channel() -> Object {
    let close_codes = CloseReason::ALL.iter().map(|reason| {
        object! {
            "code": i64::from(reason.code()),
            "reason": reason.as_str(),
            "reconnect": reason.allows_reconnect(),
        }
    });
    let after = object! {
        "type": "integer", "format": "int64", "minimum": 0,
        "description": "The last `seq` that the client has: everything after it is replayed first.",
    };
    object! {
        "address": "/ws",
        "title": "The socket of a user",
        "description": SOCKET,
        "messages": all().map(|frame| (frame.kind, message_reference("components/messages", frame))).collect::<Object>(),
        "bindings": object! {
            "ws": object! {
                "method": "GET",
                "query": object! { "type": "object", "properties": object! { "after": after } },
                "bindingVersion": "0.1.0",
            },
        },
        "x-closing-codes": list(close_codes),
    }
}

fn operation(action: &'static str, summary: &'static str, frames: &[Frame]) -> Object {
    let messages = frames.iter().map(|frame| message_reference("channels/socket/messages", *frame));
    object! {
        "action": action,
        "summary": summary,
        "channel": object! { "$ref": "#/channels/socket" },
        "messages": list(messages),
    }
}

fn message_reference(place: &str, frame: Frame) -> Object {
    object! { "$ref": format!("#/{place}/{}", frame.kind) }
}

fn message(frame: Frame) -> Object {
    let example = frames::example(frame.kind).map(|payload| object! { "payload": payload });
    object! {
        "name": frame.kind,
        "title": frame.schema,
        "summary": frame.description,
        "contentType": "application/json",
        "payload": reference(frame.schema),
    }
    .with_some("examples", example.map(|example| list([example])))
}
