//! The schemas of the frames of `GET /ws`, for the OpenAPI and the AsyncAPI document. To add a frame, add it to
//! [`SERVER`] or [`CLIENT`] and to [`content`].

use super::{
    json::{Object, list, object},
    schemas::{Schemas, reference},
};

/// A frame: its `type`, the name of its schema, its description.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub kind: &'static str,
    pub schema: &'static str,
    pub description: &'static str,
}

/// The frames that the gateway sends.
pub const SERVER: [Frame; 4] = [
    Frame {
        kind: "ready",
        schema: "ReadyFrame",
        description: "The first frame: the position from which the socket goes on. With `recovered: false` the missed events \
                cannot be replayed completely: read the orders by REST, and continue from `seq`.",
    },
    Frame {
        kind: "order",
        schema: "OrderFrame",
        description: "A step of one of the user's orders. `seq` counts per user, from 1, without gaps. A copy of an event has \
                the same `seq`.",
    },
    Frame { kind: "pong", schema: "PongFrame", description: "The answer to a `ping`." },
    Frame {
        kind: "error",
        schema: "ErrorFrame",
        description: "The answer to a frame that is not understood, or whose access token is not valid. The tenth closes the \
                socket with 4509.",
    },
];

/// The frames that a client may send.
pub const CLIENT: [Frame; 2] = [
    Frame { kind: "ping", schema: "PingFrame", description: "Asks for a `pong`." },
    Frame {
        kind: "auth",
        schema: "AuthFrame",
        description: "Brings a newer access token of the same user, so that the socket goes on past the end of its first one.",
    },
];

/// Adds the schemas of all frames.
pub fn write(schemas: &mut Schemas<'_>) {
    for frame in SERVER {
        let is_order = frame.kind == "order";
        let mut properties = object! {
            "type": object! { "type": "string", "const": frame.kind },
            "content": content(frame.kind, schemas),
            "user_id": integer(1),
            "time": integer(0).with("description", "Unix seconds."),
        };
        let mut required = vec!["type", "content", "user_id", "time"];
        if is_order {
            properties.set("seq", integer(1));
            required.push("seq");
        }
        add(schemas, frame, properties, &required);
    }
    for frame in CLIENT {
        let kind = object! { "type": "string", "const": frame.kind };
        let (mut properties, mut required) = (object! { "type": kind }, vec!["type"]);
        if frame.kind == "auth" {
            properties.set("content", content(frame.kind, schemas));
            required.push("content");
        }
        add(schemas, frame, properties, &required);
    }
    schemas.add("ServerFrame", one_of(&SERVER, "A frame that the gateway sends on `GET /ws`."));
    schemas.add("ClientFrame", one_of(&CLIENT, "A frame that a client may send on `GET /ws`."));
}

fn add(schemas: &mut Schemas<'_>, frame: Frame, properties: Object, required: &[&'static str]) {
    let schema = object! {
        "type": "object",
        "description": frame.description,
        "properties": properties,
        "required": list(required.iter().copied()),
    };
    schemas
        .add(frame.schema, schema.with_some("examples", example(frame.kind).map(|example| list([example]))));
}

fn one_of(frames: &[Frame], description: &'static str) -> Object {
    let path = |frame: &Frame| format!("#/components/schemas/{}", frame.schema);
    let mapping: Object = frames.iter().map(|frame| (frame.kind, path(frame))).collect();
    object! {
        "description": description,
        "oneOf": list(frames.iter().map(|frame| reference(frame.schema))),
        "discriminator": object! { "propertyName": "type", "mapping": mapping },
    }
}

/// Returns the schema of the `content` of a frame.
fn content(kind: &str, schemas: &mut Schemas<'_>) -> Object {
    let text = || object! { "type": "string" };
    let (properties, required): (Object, &[&'static str]) = match kind {
        "ready" => {
            let properties = object! { "seq": integer(0), "recovered": object! { "type": "boolean" } };
            (properties, &["seq", "recovered"])
        }
        "order" => {
            schemas.enumeration("shoppee.order.v1.OrderStatus");
            let status = reference("OrderStatus");
            let previous = object! { "anyOf": list([status.clone(), object! { "type": "null" }]) };
            let properties = object! {
                "order_id": text().with("format", "uuid"),
                "status": status,
                "previous_status": previous.with("description", "Null for a new order."),
                "total": integer(0).with("description", "Minor units."),
                "currency": text().with("pattern", "^[A-Z]{3}$"),
                "version": integer(1).with("description", "The order's."),
            };
            (properties, &["order_id", "status", "previous_status", "total", "currency", "version"])
        }
        "error" => (object! { "code": reference("ProblemCode") }, &["code"]),
        "auth" => (object! { "access_token": text() }, &["access_token"]),
        _ => (Object::default(), &[]),
    };
    let schema = object! { "type": "object", "properties": properties };
    if required.is_empty() { schema } else { schema.with("required", list(required.iter().copied())) }
}

fn integer(minimum: i64) -> Object {
    object! { "type": "integer", "format": "int64", "minimum": minimum }
}

/// Returns an example of a frame.
pub fn example(kind: &str) -> Option<super::json::Json> {
    let text = match kind {
        "ready" => r#"{"type":"ready","content":{"seq":41,"recovered":true},"user_id":7,"time":1768469400}"#,
        "order" => {
            r#"{"type":"order","content":{"order_id":"019bc0e1-7a40-7c3e-9f53-2d6a1c0b8e44","status":"paid",
                "previous_status":"pending","total":22800,"currency":"EUR","version":2},
                "user_id":7,"time":1768469580,"seq":42}"#
        }
        "pong" => r#"{"type":"pong","content":{},"user_id":7,"time":1768469400}"#,
        "error" => r#"{"type":"error","content":{"code":"invalid_request"},"user_id":7,"time":1768469400}"#,
        "ping" => r#"{"type":"ping"}"#,
        "auth" => {
            r#"{"type":"auth","content":{"access_token":"eyJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiI3In0.c2ln"}}"#
        }
        _ => return None,
    };
    serde_json::from_str(text).ok()
}
