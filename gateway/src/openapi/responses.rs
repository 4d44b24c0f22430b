//! The responses of operations: success with its headers, and problems.

use std::collections::BTreeMap;

use super::{
    examples::{DEVICE_TOKEN, REQUEST_ID},
    json::{Json, Object, list, object},
    schemas::reference,
};
use crate::error::Code;

/// The errors of a missing or invalid token.
pub const AUTH_ERRORS: [Code; 3] = [Code::Unauthenticated, Code::TokenExpired, Code::SessionRevoked];

/// Returns the response headers, by their names in `components`.
pub fn headers() -> Object {
    let text = |description: &'static str, example: &'static str| {
        object! { "description": description, "schema": object! { "type": "string" }, "example": example }
    };
    let mut request_id = text(
        "The client's own id where it sent a sane one (1..128 of A-Z a-z 0-9 . _ -), else a new one.",
        REQUEST_ID,
    );
    request_id.set("required", true);
    let seconds = object! {
        "description": "Seconds after which to try again.",
        "schema": object! { "type": "integer", "minimum": 1 },
        "example": 1,
    };
    let replayed = object! {
        "description": "`true` where this answer was given before, under the same `Idempotency-Key`.",
        "schema": object! { "type": "string", "enum": list(["true"]) },
        "example": "true",
    };
    object! {
        "x-request-id": request_id,
        "RateLimit": text("What is left of each limit (`r`), and the seconds until it is whole again (`t`).",
                          "\"user\";r=39;t=1"),
        "RateLimit-Policy": text("The limits that hold: so many requests (`q`) in so many seconds (`w`).",
                                 "\"user\";q=40;w=2"),
        "Retry-After": seconds,
        "WWW-Authenticate": text("The authentication scheme (RFC 6750).", "Bearer realm=\"shoppee\""),
        "ETag": text("Identifies the version of the product, for `If-None-Match` and `If-Match`.",
                     "\"7-9f86d081884c7d65\""),
        "Cache-Control": text("The lifetime in caches.", "public, no-cache"),
        "Location": text("The path of the new resource.", "/api/v1/products/42"),
        "idempotent-replayed": replayed,
        "device-token": text("Identifies this device at the next sign-in, in the header of the same name. It is no \
                              credential.", DEVICE_TOKEN),
        "Set-Cookie": text("The same for browsers, as the cookie `shoppee_device`.",
                           "shoppee_device=…; Path=/api/v1/auth; HttpOnly; SameSite=Strict"),
    }
}

/// Returns references to headers.
pub fn header_references(names: &[&'static str]) -> Object {
    names.iter().map(|name| (*name, object! { "$ref": format!("#/components/headers/{name}") })).collect()
}

/// Builds the response of success.
pub fn success(
    description: &'static str,
    headers: &[&'static str],
    schema: Option<Object>,
    example: Option<Json>,
) -> Object {
    let mut response = object! { "description": description, "headers": header_references(headers) };
    if let Some(schema) = schema {
        let content = object! { "schema": schema }.with_some("example", example);
        response.set("content", object! { "application/json": content });
    }
    response
}

/// Returns the problems of an operation, by status. Common ones are references to `components`.
pub fn problems(codes: &[Code], limited: bool) -> BTreeMap<u16, Object> {
    let mut by_status = BTreeMap::<u16, Vec<Code>>::new();
    for code in codes {
        let of_status = by_status.entry(code.status().as_u16()).or_default();
        if !of_status.contains(code) {
            of_status.push(*code);
        }
    }
    let response = |(status, codes): (u16, Vec<Code>)| {
        let shared = limited.then(|| shared_name(&codes)).flatten();
        let response = match shared {
            Some(name) => object! { "$ref": format!("#/components/responses/{name}") },
            None => problem(&codes, limited),
        };
        (status, response)
    };
    by_status.into_iter().map(response).collect()
}

/// Returns the shared problems, by name.
pub fn shared() -> Object {
    let single = Code::ALL.iter().map(|code| vec![*code]);
    let all = single.chain([AUTH_ERRORS.to_vec()]);
    let mut shared: Vec<_> =
        all.filter_map(|codes| Some((shared_name(&codes)?, problem(&codes, true)))).collect();
    shared.sort_by(|a, b| a.0.cmp(&b.0));
    shared.into_iter().collect()
}

/// Returns the component name of a problem that most operations have.
fn shared_name(codes: &[Code]) -> Option<String> {
    const SHARED: [Code; 11] = [
        Code::InvalidRequest,
        Code::Forbidden,
        Code::NotFound,
        Code::RequestTimeout,
        Code::PayloadTooLarge,
        Code::UnsupportedMediaType,
        Code::ValidationFailed,
        Code::RateLimited,
        Code::Internal,
        Code::Unavailable,
        Code::DeadlineExceeded,
    ];
    match codes {
        [code] if SHARED.contains(code) => Some(code.as_str().to_owned()),
        codes if codes == AUTH_ERRORS => Some("not_signed_in".to_owned()),
        _ => None,
    }
}

/// Builds the response for `codes`, which have one status. They are listed beside the schema, not in it, so that a
/// generated client has one type for all problems.
fn problem(codes: &[Code], limited: bool) -> Object {
    let descriptions: Vec<_> =
        codes.iter().map(|code| format!("`{}`: {}.", code.as_str(), code.title())).collect();
    let mut headers = vec!["x-request-id"];
    if limited {
        headers.extend(["RateLimit", "RateLimit-Policy"]);
    }
    match codes.first().map(|code| code.status().as_u16()) {
        Some(401) => headers.push("WWW-Authenticate"),
        Some(402) => headers.push("idempotent-replayed"),
        Some(429 | 503 | 504) => headers.push("Retry-After"),
        _ => {}
    }
    let examples: Object =
        codes.iter().map(|code| (code.as_str(), object! { "value": example(*code) })).collect();
    let content = object! {
        "schema": reference("Problem"),
        "examples": examples,
    };
    object! {
        "description": descriptions.join("\n\n"),
        "x-problem-codes": list(codes.iter().map(|code| code.as_str())),
        "headers": header_references(&headers),
        "content": object! { "application/problem+json": content },
    }
}

/// Builds an example of a problem.
fn example(code: Code) -> Object {
    let mut example = object! {
        "type": code.type_uri(),
        "title": code.title(),
        "status": i64::from(code.status().as_u16()),
        "detail": code.title(),
        "code": code.as_str(),
        "request_id": REQUEST_ID,
    };
    for (name, value) in facts(code) {
        example.set(name, value);
    }
    let field_error = if code == Code::InvalidRequest {
        Some(("quantity", "must be an integer of 64 bits"))
    } else if code == Code::ValidationFailed {
        Some(("quantity", "must be 1 to 1000"))
    } else {
        None
    };
    if let Some((field, message)) = field_error {
        example.set("errors", list([object! { "field": field, "message": message }]));
    }
    example
}

/// Returns the machine-readable members of a problem.
fn facts(code: Code) -> Vec<(&'static str, Json)> {
    let line = object! { "product_id": 42, "sku": "MUG-RED", "requested": 3, "available": 1 };
    if code == Code::OutOfStock {
        vec![("lines", list([line]))]
    } else if code == Code::ProductUnavailable {
        vec![("lines", list([line.with("available", 0)]))]
    } else if code == Code::PriceChanged {
        vec![("current_total", 5997.into()), ("lines", list([line.with("unit_price", 1999)]))]
    } else if code == Code::InvalidTransition {
        vec![("current_status", "shipped".into()), ("allowed", list(["complete"]))]
    } else if code == Code::PaymentDeclined {
        vec![("decline_code", "insufficient_funds".into())]
    } else if code == Code::RateLimited {
        vec![("limit", "user".into())]
    } else if code == Code::TooManyAttempts {
        vec![("limit", "login".into())]
    } else {
        Vec::new()
    }
}
