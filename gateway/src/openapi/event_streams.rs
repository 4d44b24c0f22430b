//! The paths of the events of orders over plain HTTP, which have no gRPC method with the same answer.

use super::{
    json::{Object, list, object},
    non_rpc_paths::COMMON_ERRORS,
    paths::token,
    responses::{AUTH_ERRORS, header_references, problems, success},
    schemas::reference,
};
use crate::error::Code;

const HEADERS: [&str; 4] = ["x-request-id", "RateLimit", "RateLimit-Policy", "Cache-Control"];

pub fn write(paths: &mut Object) {
    paths.entry("/api/v1/orders/stream").set("get", stream());
    paths.entry("/api/v1/orders/stream/events").set("get", poll());
    paths.entry("/api/v1/admin/orders/stream").set("get", stream_all());
}

fn stream() -> Object {
    let position = last_event_id(
        "The last `id` that the client has, a number. The stream begins with a replay of the later events.",
    );
    let summary = "Stream my events";
    operation(
        "orders",
        "streamEvents",
        summary,
        STREAM,
        vec![position],
        stream_response(),
        &[Code::Forbidden],
    )
}

const STREAM: &str = "\
Server-Sent Events for clients without WebSockets: the frames of `GET /ws`, each as the one line of `data` of an \
event whose `id` is its `seq`. The first one is `ready`; `recovered: false` means that the missed events cannot be \
replayed completely. The last event before the gateway ends the stream is \
`{\"type\":\"close\",\"content\":{\"code\":4005,\"reason\":\"token expired\"},\"user_id\":7,\"time\":1768469400}`, without \
an `id`, with the closing codes of `GET /ws`. The gateway sends a comment every 15 seconds. The token is in `Authorization`: \
use `fetch`, because the `EventSource` of browsers sends no such header. Sockets, streams and long polls of a user count together.";

fn poll() -> Object {
    let query = |name: &'static str, description: &'static str, schema: Object| {
        object! { "name": name, "in": "query", "description": description, "required": false, "schema": schema }
    };
    let seq = || object! { "type": "integer", "format": "int64", "minimum": 0 };
    let parameters = vec![
        query(
            "after",
            "The last `seq` that the client has. Without it, the response has the current position.",
            seq(),
        ),
        query(
            "wait",
            "The time to wait for an event, in seconds.",
            object! { "type": "integer", "format": "int64", "minimum": 0, "maximum": 25, "default": 0 },
        ),
    ];
    let schema = object! {
        "type": "object",
        "properties": object! {
            "items": object! { "type": "array", "items": reference("OrderFrame"), "maxItems": 500 },
            "seq": seq().with("description", "The next `after`."),
            "recovered": object! {
                "type": "boolean",
                "description": "False if the missed events cannot be replayed completely: read the orders, and continue from `seq`.",
            },
        },
        "required": list(["items", "seq", "recovered"]),
    };
    let example = object! { "items": list(super::frames::example("order")), "seq": 42, "recovered": true };
    let response = success(
        "The events after `after`; an empty list if none arrives in time.",
        &HEADERS,
        Some(schema),
        Some(example.into()),
    );
    let description = "Responds at once if the client lacks events, else with the next event, or without one after \
                       `wait`.";
    operation(
        "orders",
        "pollEvents",
        "Wait for my events",
        description,
        parameters,
        response,
        &[Code::Forbidden],
    )
}

fn stream_all() -> Object {
    let position = last_event_id(
        "The last `id` that the client has. Without it, the stream starts with the next event.",
    );
    let status = object! {
        "name": "status", "in": "query", "required": false, "description": "Only events with this status.",
        "schema": reference("OrderStatus"),
    };
    let description = "For admins. Server-Sent Events as in `GET /api/v1/orders/stream`, of all users and without `ready`. \
                       The `id` is opaque, and stays valid after restarts. The events of a user are in order. An `id` \
                       without `data` advances the position.";
    let codes = [Code::Forbidden, Code::CursorOutOfRange, Code::DeadlineExceeded];
    let parameters = vec![position, status];
    operation(
        "admin",
        "streamAllEvents",
        "Stream the events of all users",
        description,
        parameters,
        stream_response(),
        &codes,
    )
}

fn last_event_id(description: &'static str) -> Object {
    object! {
        "name": "Last-Event-ID", "in": "header", "required": false, "description": description,
        "schema": object! { "type": "string" },
    }
}

fn stream_response() -> Object {
    let schema = object! { "type": "string" };
    object! {
        "description": "The stream, until either side ends it.",
        "headers": header_references(&HEADERS),
        "content": object! { "text/event-stream": object! { "schema": schema } },
    }
}

fn operation(
    tag: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    parameters: Vec<Object>,
    response: Object,
    errors: &[Code],
) -> Object {
    let mut responses = object! { "200": response };
    let codes: Vec<_> = AUTH_ERRORS.into_iter().chain(errors.iter().copied()).chain(COMMON_ERRORS).collect();
    for (status, problem) in problems(&codes, true) {
        responses.set(status.to_string(), problem);
    }
    object! {
        "tags": list([tag]), "operationId": id, "summary": summary, "description": description,
        "security": list([token()]), "parameters": list(parameters), "responses": responses,
    }
}
