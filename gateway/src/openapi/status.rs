//! The path of the shop's status, which the gateway gathers from several gRPC methods.

use super::{
    examples,
    json::{Object, list, object},
    non_rpc_paths::COMMON_ERRORS,
    paths::token,
    responses::{AUTH_ERRORS, problems, success},
    schemas::{Schemas, or_null, reference},
};
use crate::error::Code;

const HEADERS: [&str; 4] = ["x-request-id", "RateLimit", "RateLimit-Policy", "Cache-Control"];

pub fn write(paths: &mut Object, schemas: &mut Schemas<'_>) {
    paths.entry("/api/v1/admin/status").set("get", get_status(schemas));
}

fn get_status(schemas: &mut Schemas<'_>) -> Object {
    let mut service = |message: &'static str| or_null(schemas.response(message));
    let properties = object! {
        "at": object! { "type": "string", "format": "date-time" },
        "gateway": reference("GatewayStatus"),
        "auth": service("shoppee.auth.v1.AuthServiceStatus"),
        "product": service("shoppee.product.v1.ProductServiceStatus"),
        "order": service("shoppee.order.v1.OrderServiceStatus"),
    };
    let status = object! {
        "type": "object",
        "description": "The status of the shop. A service that does not answer within a second is null.",
        "properties": properties,
        "required": list(["at", "gateway", "auth", "product", "order"]),
    };
    schemas.add("ShopStatus", status);
    schemas.add("GatewayStatus", gateway_status());
    let mut responses = object! {
        "200": success("The status of a moment of the last second.", &HEADERS, Some(reference("ShopStatus")), examples::shop_status()),
    };
    let codes: Vec<_> = AUTH_ERRORS.into_iter().chain([Code::Forbidden]).chain(COMMON_ERRORS).collect();
    for (status, problem) in problems(&codes, true) {
        responses.set(status.to_string(), problem);
    }
    object! {
        "tags": list(["admin"]), "operationId": "getStatus", "summary": "Show the status of the shop",
        "description": "For admins. Gathered from one process of each service, and from the gateway that answers.",
        "security": list([token()]), "responses": responses,
    }
}

fn gateway_status() -> Object {
    let count = |description: &'static str| {
        object! { "type": "integer", "format": "int64", "minimum": 0, "description": description }
    };
    let seconds = |description: &'static str| {
        object! { "type": list(["number", "null"]), "format": "double", "description": description }
    };
    let names = object! { "type": "array", "items": object! { "type": "string" } };
    object! {
        "type": "object",
        "description": "The status of the gateway that answers.",
        "properties": object! {
            "unavailable_dependencies": names.with(
                "description",
                "The names of the dependencies that do not answer this process.",
            ),
            "sockets": count("Open sockets, streams and long polls of users."),
            "admin_streams": count("Open streams of the events of all users."),
            "event_delivery": object! {
                "type": "object",
                "description": "The time from the commit of an event to its frame, since the start of the gateway.",
                "properties": object! {
                    "count": count("Frames with an event."),
                    "p50_seconds": seconds("The median; null without events."),
                    "p99_seconds": seconds("The time that 99 % do not exceed; null without events."),
                },
                "required": list(["count", "p50_seconds", "p99_seconds"]),
            },
        },
        "required": list(["unavailable_dependencies", "sockets", "admin_streams", "event_delivery"]),
    }
}
