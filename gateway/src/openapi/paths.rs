//! Builds path items from the routes and the table of operations.

use shoppee_proto::access::v1::AccessRule;

use super::{
    descriptors::{ApiDescriptors, Field, Route},
    examples,
    json::{Json, Object, list, object},
    operations::{OPERATIONS, Operation},
    responses::{AUTH_ERRORS, problems, success},
    schemas::{EMPTY, Schemas, is_public, short_name},
};
use crate::error::Code;

/// The prefix of the paths for admins. Their methods may admit more callers.
const ADMIN_PREFIX: &str = "/api/v1/admin/";

/// The list of the caller's own orders, of the method that also lists those of all users.
const OWN_ORDERS: &str = "/api/v1/orders";

/// The authentication that a route requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auth {
    /// No token; one makes no difference.
    Public,
    /// No token; with one, a caller may be shown more.
    Optional,
    User,
    Admin,
}

impl Auth {
    fn new(route: &Route) -> Self {
        if route.path.starts_with(ADMIN_PREFIX) {
            return Self::Admin;
        }
        match route.rule {
            AccessRule { open: true, .. } => Self::Public,
            AccessRule { anonymous: true, .. } => Self::Optional,
            AccessRule { user: true, .. } => Self::User,
            _ => Self::Admin,
        }
    }
}

/// Links from a response to later operations: operation, the response field with the id, target operations.
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

/// Adds every operation of a method to `paths`.
pub fn write(paths: &mut Object, api: &ApiDescriptors, schemas: &mut Schemas<'_>) {
    for operation in OPERATIONS {
        if let Some(route) = route(api, operation) {
            paths.entry(&route.path).set(route.method, build_operation(operation, route, api, schemas));
        }
    }
}

/// Returns the route of an operation.
pub fn route<'a>(api: &'a ApiDescriptors, operation: &Operation) -> Option<&'a Route> {
    api.routes.iter().filter(|route| route.rpc == operation.rpc).nth(operation.binding)
}

fn build_operation(
    operation: &Operation,
    route: &Route,
    api: &ApiDescriptors,
    schemas: &mut Schemas<'_>,
) -> Object {
    let mut item = object! {
        "tags": list([tag(&route.path)]),
        "operationId": operation.id(),
        "summary": operation.summary,
        "description": description(operation, route),
    };
    item.set("security", security(route));
    let path_params = path_parameters(&route.path);
    let parameters = parameters(operation, route, &path_params, schemas);
    if !parameters.is_empty() {
        item.set("parameters", list(parameters));
    }
    if route.has_body {
        let content = object! { "schema": schemas.request_body(&route.request, &path_params) }
            .with_some("example", examples::request_body(&operation.id()));
        item.set(
            "requestBody",
            object! {
                "required": !operation.is_body_optional,
                "content": object! { "application/json": content },
            },
        );
    }
    item.set("responses", responses(operation, route, &path_params, api, schemas));
    item
}

/// Returns the tag of a path: its first segment.
fn tag(path: &str) -> String {
    path.trim_start_matches("/api/v1/").split('/').next().unwrap_or_default().to_owned()
}

/// Returns the description, which names the callers: security requirements have roles only for OAuth 2.
fn description(operation: &Operation, route: &Route) -> String {
    let scope = &route.rule.scope;
    let callers = match (Auth::new(route), scope.is_empty()) {
        (Auth::Admin, true) => "For admins.".to_owned(),
        (Auth::Admin, false) => format!("For admins, and for services with the scope `{scope}`."),
        (Auth::User, false) if admits_services(route) => {
            format!("Also for services with the scope `{scope}`, as for an admin.")
        }
        (Auth::Public | Auth::Optional | Auth::User, _) => String::new(),
    };
    [callers.as_str(), operation.description].map(str::trim).join(" ").trim().to_owned()
}

/// Reports whether services may use a route. They have no own orders to list.
fn admits_services(route: &Route) -> bool {
    !route.rule.scope.is_empty() && route.path != OWN_ORDERS
}

fn security(route: &Route) -> Json {
    let mut requirements = match Auth::new(route) {
        Auth::Public => Vec::new(),
        Auth::Optional => vec![token(), Object::default()],
        Auth::User | Auth::Admin => vec![token()],
    };
    if admits_services(route) {
        requirements.push(object! { "serviceToken": list([route.rule.scope.clone()]) });
    }
    list(requirements)
}

/// Returns the security requirement of an access token.
pub fn token() -> Object {
    object! { "accessToken": Json::List(Vec::new()) }
}

fn path_parameters(path: &str) -> Vec<&str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect()
}

fn parameters(
    operation: &Operation,
    route: &Route,
    path_params: &[&str],
    schemas: &mut Schemas<'_>,
) -> Vec<Object> {
    let Some(request) = schemas.message(&route.request) else { return Vec::new() };
    let id = operation.id();
    let mut parameters = Vec::new();
    for field in &request.fields {
        let example = examples::parameter(&id, &field.name);
        if path_params.contains(&field.name.as_str()) {
            let parameter = parameter("path", field, schemas.parameter(&route.request, field));
            parameters.push(parameter.with("required", true).with_some("example", example));
        } else if route.method == "get"
            && is_public(&route.request, &field.name)
            // Only an admin selects a user.
            && (field.name != "user_id" || Auth::new(route) == Auth::Admin)
        {
            let schema = schemas.parameter(&route.request, field);
            let required = !field.may_be_absent() && schema.get("default").is_none();
            let parameter = parameter("query", field, schema).with("required", required);
            parameters.push(parameter.with_some("example", example));
        }
    }
    let header = |name: &str| object! { "$ref": format!("#/components/parameters/{name}") };
    if route.response.ends_with(".Product") && route.method == "get" {
        parameters.push(header("If-None-Match"));
    }
    for (field, name) in [
        ("expected_version", "If-Match"),
        ("expected_version", "If-None-Match-of-a-change"),
        ("idempotency_key", "Idempotency-Key"),
        ("device_token", "device-token"),
    ] {
        if request.fields.iter().any(|candidate| candidate.name == field) {
            parameters.push(header(name));
        }
    }
    parameters
}

fn parameter(place: &'static str, field: &Field, schema: Object) -> Object {
    object! { "name": field.name.clone(), "in": place }
        .with_some("description", field.description.clone())
        .with("schema", schema)
}

/// Returns the request headers of operations.
pub fn header_parameters() -> Object {
    let header = |name: &'static str, description: &'static str, schema: Object, example: &'static str| {
        object! {
            "name": name, "in": "header", "description": description, "required": false, "schema": schema,
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
            "`ETag`s of versions of the product that must not be changed: 412 if one of them is current. Stock \
             movements create no version.",
            text(),
            "\"7-9f86d081884c7d65\"",
        ),
        "If-Match": header(
            "If-Match",
            "The `ETag` of the version to change: 412 if another change came first. Stock movements create no \
             version.",
            text(),
            "\"7-9f86d081884c7d65\"",
        ),
        "Idempotency-Key": header(
            "Idempotency-Key",
            "A value of the client's choice that makes the request safe to repeat: for 24 h, the same key with the same \
             body gets the same response and has no further effect.",
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
    path_params: &[&str],
    api: &ApiDescriptors,
    schemas: &mut Schemas<'_>,
) -> Object {
    let response = short_name(&route.response);
    let mut headers = vec!["x-request-id", "RateLimit", "RateLimit-Policy"];
    if response == "Product" {
        headers.push("ETag");
    }
    if Auth::new(route) == Auth::Optional {
        headers.push("Cache-Control");
    }
    if operation.status == 201 && matches!(response, "Product" | "Order") {
        headers.push("Location");
    }
    if has_field(api, &route.request, "idempotency_key") {
        headers.push("idempotent-replayed");
    }
    if has_field(api, &route.request, "device_token") {
        headers.extend(["device-token", "Set-Cookie"]);
    }
    let description = match operation.status {
        201 => "Created.",
        204 => "Done; there is no body.",
        _ => "As asked for.",
    };
    let schema = (route.response != EMPTY).then(|| schemas.response(&route.response));
    let mut success_response =
        success(description, &headers, schema, examples::response(&operation.id(), response));
    if let Some(links) = links(operation, api) {
        success_response.set("links", links);
    }

    let mut responses = Object::default().with(operation.status.to_string(), success_response);
    if route.method == "get" && response == "Product" {
        responses.set("304", success("It is what the client has.", &headers, None, None));
    }
    for (status, problem) in problems(&codes(operation, route, path_params), true) {
        responses.set(status.to_string(), problem);
    }
    responses
}

fn has_field(api: &ApiDescriptors, message: &str, field: &str) -> bool {
    api.messages
        .get(message)
        .is_some_and(|message| message.fields.iter().any(|candidate| candidate.name == field))
}

/// Returns all errors of an operation.
fn codes(operation: &Operation, route: &Route, path_params: &[&str]) -> Vec<Code> {
    let (auth, mut codes) = (Auth::new(route), vec![Code::InvalidRequest]);
    if auth != Auth::Public {
        codes.extend(AUTH_ERRORS);
    }
    if matches!(auth, Auth::User | Auth::Admin) {
        codes.push(Code::Forbidden);
    }
    if !path_params.is_empty() {
        codes.push(Code::NotFound);
    }
    if !matches!(route.method, "get" | "delete") {
        codes.extend([Code::RequestTimeout, Code::PayloadTooLarge, Code::UnsupportedMediaType]);
    }
    codes.extend(operation.errors);
    codes.extend([Code::RateLimited, Code::Internal, Code::Unavailable, Code::DeadlineExceeded]);
    codes
}

fn links(operation: &Operation, api: &ApiDescriptors) -> Option<Object> {
    let (_, field, next) = LINKS.iter().find(|(from, ..)| *from == operation.id())?;
    let link = |id: &&'static str| {
        let to = OPERATIONS.iter().find(|operation| operation.id() == *id)?;
        let path = &route(api, to)?.path;
        let parameter = (*path_parameters(path).first()?).to_owned();
        let value = format!("$response.body#/{field}");
        Some((*id, object! { "operationId": *id, "parameters": object! {}.with(parameter, value) }))
    };
    Some(next.iter().filter_map(link).collect())
}
