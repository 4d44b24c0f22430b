//! From the contract's routes and the table of operations to path items.

use super::{
    contract::{Contract, Field, Route},
    examples,
    json::{Json, Object, list, object},
    operations::{OPERATIONS, Operation, Who},
    responses::{NOT_SIGNED_IN, problems, success},
    schemas::{EMPTY, Schemas, for_clients, short},
};
use crate::error::Code;

/// From an answer to what can be done with it next: operation, which field of the answer names the thing, and
/// where to.
const LINKS: [(&str, &str, &[&str]); 4] = [
    ("createProduct", "id", &["getProduct", "updateProduct", "adjustStock", "archiveProduct"]),
    ("createCategory", "id", &["updateCategory", "deleteCategory"]),
    (
        "createOrder",
        "id",
        &["getOrder", "listOrderEvents", "payOrder", "cancelOrder", "shipOrder", "completeOrder"],
    ),
    ("payOrder", "id", &["shipOrder", "completeOrder", "cancelOrder"]),
];

/// Adds every operation of the contract to `paths`.
pub fn write(paths: &mut Object, contract: &Contract, schemas: &mut Schemas<'_>) {
    for operation in OPERATIONS {
        if let Some(route) = route(contract, operation) {
            paths.entry(&route.path).set(route.method, describe(operation, route, contract, schemas));
        }
    }
}

/// The route of an operation.
pub fn route<'a>(contract: &'a Contract, operation: &Operation) -> Option<&'a Route> {
    contract.routes.iter().filter(|route| route.rpc == operation.rpc).nth(operation.binding)
}

fn describe(operation: &Operation, route: &Route, contract: &Contract, schemas: &mut Schemas<'_>) -> Object {
    let mut described = object! {
        "tags": list([tag(&route.path)]),
        "operationId": operation.id(),
        "summary": operation.summary,
        "description": about(operation),
    };
    described.set("security", security(operation.who));
    let taken = path_parameters(&route.path);
    let parameters = parameters(operation, route, &taken, schemas);
    if !parameters.is_empty() {
        described.set("parameters", list(parameters));
    }
    if route.has_body {
        let content = object! { "schema": schemas.body(&route.request, &taken) }
            .with_some("example", examples::body(&operation.id()));
        described.set(
            "requestBody",
            object! {
                "required": !operation.body_may_be_absent,
                "content": object! { "application/json": content },
            },
        );
    }
    described.set("responses", responses(operation, route, &taken, contract, schemas));
    described
}

/// The part of the shop that a path belongs to.
fn tag(path: &str) -> String {
    path.trim_start_matches("/api/v1/").split('/').next().unwrap_or_default().to_owned()
}

/// The description, which says where only admins may call: a security requirement names roles for OAuth 2 alone.
fn about(operation: &Operation) -> String {
    match operation.who {
        Who::Admin if operation.about.is_empty() => "For admins.".to_owned(),
        Who::Admin => format!("For admins. {}", operation.about),
        Who::Nobody | Who::Anybody | Who::User => operation.about.to_owned(),
    }
}

fn security(who: Who) -> Json {
    match who {
        Who::Nobody => Json::List(Vec::new()),
        Who::Anybody => list([token(), Object::default()]),
        Who::User | Who::Admin => list([token()]),
    }
}

/// The requirement of an access token.
pub fn token() -> Object {
    object! { "accessToken": Json::List(Vec::new()) }
}

fn path_parameters(path: &str) -> Vec<&str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect()
}

fn parameters(
    operation: &Operation,
    route: &Route,
    taken: &[&str],
    schemas: &mut Schemas<'_>,
) -> Vec<Object> {
    let Some(request) = schemas.message(&route.request) else { return Vec::new() };
    let id = operation.id();
    let mut parameters = Vec::new();
    for field in &request.fields {
        let example = examples::parameter(&id, &field.name);
        if taken.contains(&field.name.as_str()) {
            let parameter = parameter("path", field, schemas.parameter(&route.request, field));
            parameters.push(parameter.with("required", true).with_some("example", example));
        } else if route.method == "get"
            && for_clients(&route.request, &field.name)
            // Whose orders: only an admin chooses.
            && (field.name != "user_id" || operation.who == Who::Admin)
        {
            let schema = schemas.parameter(&route.request, field);
            let required = !field.optional && schema.get("default").is_none();
            let parameter = parameter("query", field, schema).with("required", required);
            parameters.push(parameter.with_some("example", example));
        }
    }
    let header = |name: &str| object! { "$ref": format!("#/components/parameters/{name}") };
    if route.answer.ends_with(".Product") && route.method == "get" {
        parameters.push(header("If-None-Match"));
    }
    for (field, name) in [
        ("expected_version", "If-Match"),
        ("expected_version", "If-None-Match-of-a-change"),
        ("idempotency_key", "Idempotency-Key"),
        ("device_token", "device-token"),
    ] {
        if request.fields.iter().any(|known| known.name == field) {
            parameters.push(header(name));
        }
    }
    parameters
}

fn parameter(place: &'static str, field: &Field, schema: Object) -> Object {
    object! { "name": field.name.clone(), "in": place }
        .with_some("description", field.about.clone())
        .with("schema", schema)
}

/// The request headers that some operations know.
pub fn header_parameters() -> Object {
    let header = |name: &'static str, about: &'static str, schema: Object, example: &'static str| {
        object! {
            "name": name, "in": "header", "description": about, "required": false, "schema": schema,
            "example": example,
        }
    };
    let text = || object! { "type": "string" };
    object! {
        "If-None-Match": header(
            "If-None-Match",
            "The `ETag` of the product that the client has: 304 where it is still the same.",
            text(),
            "\"7-9f86d081884c7d65\"",
        ),
        "If-None-Match-of-a-change": header(
            "If-None-Match",
            "Tags of states of the product that are not to be changed: 412 where it is in one of them. Stock moves do \
             not make another state.",
            text(),
            "\"7-9f86d081884c7d65\"",
        ),
        "If-Match": header(
            "If-Match",
            "The `ETag` of the product that the change is meant for: 412 where somebody else was quicker. \
             Stock moves do not count as such.",
            text(),
            "\"7-9f86d081884c7d65\"",
        ),
        "Idempotency-Key": header(
            "Idempotency-Key",
            "A word of the client's own choice that makes it safe to try again: for 24 h, the same key \
             with the same body gets the same answer and has no further effect.",
            text().with("minLength", 1).with("maxLength", 255).with("pattern", "^[!-~]+$"),
            "checkout-8f14e45f",
        ),
        "device-token": header(
            "device-token",
            "The `device-token` of this device's last sign-in, from a client that keeps no cookies. One that \
             is not valid is ignored.",
            text(),
            examples::DEVICE_TOKEN,
        ),
    }
}

fn responses(
    operation: &Operation,
    route: &Route,
    taken: &[&str],
    contract: &Contract,
    schemas: &mut Schemas<'_>,
) -> Object {
    let answer = short(&route.answer);
    let mut headers = vec!["x-request-id", "RateLimit", "RateLimit-Policy"];
    if answer == "Product" {
        headers.push("ETag");
    }
    if operation.who == Who::Anybody {
        headers.push("Cache-Control");
    }
    if operation.status == 201 && matches!(answer, "Product" | "Order") {
        headers.push("Location");
    }
    if has_field(contract, &route.request, "idempotency_key") {
        headers.push("idempotent-replayed");
    }
    if has_field(contract, &route.request, "device_token") {
        headers.extend(["device-token", "Set-Cookie"]);
    }
    let description = match operation.status {
        201 => "Created.",
        204 => "Done; there is no body.",
        _ => "As asked for.",
    };
    let schema = (route.answer != EMPTY).then(|| schemas.answer(&route.answer));
    let mut succeeded = success(description, &headers, schema, examples::answer(&operation.id(), answer));
    if let Some(links) = links(operation, contract) {
        succeeded.set("links", links);
    }

    let mut responses = Object::default().with(operation.status.to_string(), succeeded);
    if route.method == "get" && answer == "Product" {
        responses.set("304", success("It is what the client has.", &headers, None, None));
    }
    for (status, problem) in problems(&codes(operation, route, taken), true) {
        responses.set(status.to_string(), problem);
    }
    responses
}

fn has_field(contract: &Contract, message: &str, field: &str) -> bool {
    contract.messages.get(message).is_some_and(|found| found.fields.iter().any(|known| known.name == field))
}

/// All that an operation may be refused with.
fn codes(operation: &Operation, route: &Route, taken: &[&str]) -> Vec<Code> {
    let mut codes = vec![Code::InvalidRequest];
    if operation.who != Who::Nobody {
        codes.extend(NOT_SIGNED_IN);
    }
    if matches!(operation.who, Who::User | Who::Admin) {
        codes.push(Code::Forbidden);
    }
    if !taken.is_empty() {
        codes.push(Code::NotFound);
    }
    if !matches!(route.method, "get" | "delete") {
        codes.extend([Code::RequestTimeout, Code::PayloadTooLarge, Code::UnsupportedMediaType]);
    }
    codes.extend(operation.codes);
    codes.extend([Code::RateLimited, Code::Internal, Code::Unavailable, Code::DeadlineExceeded]);
    codes
}

fn links(operation: &Operation, contract: &Contract) -> Option<Object> {
    let (_, field, next) = LINKS.iter().find(|(from, ..)| *from == operation.id())?;
    let link = |id: &&'static str| {
        let to = OPERATIONS.iter().find(|known| known.id() == *id)?;
        let path = &route(contract, to)?.path;
        let parameter = (*path_parameters(path).first()?).to_owned();
        let value = format!("$response.body#/{field}");
        Some((*id, object! { "operationId": *id, "parameters": object! {}.with(parameter, value) }))
    };
    Some(next.iter().filter_map(link).collect())
}
