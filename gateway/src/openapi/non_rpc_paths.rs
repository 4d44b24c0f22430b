//! The paths without a gRPC method: the socket, the keys, the operational endpoints, the documentation itself.

use super::{
    descriptors::ApiDescriptors,
    examples::TOKEN,
    json::{Json, Object, list, object},
    paths::token,
    responses::{AUTH_ERRORS, header_references, problems, success},
    schemas::{Schemas, reference},
};
use crate::error::Code;

pub fn write(paths: &mut Object, api: &ApiDescriptors, schemas: &mut Schemas<'_>) {
    paths.entry("/ws").set("get", socket());
    paths.entry("/oauth/token").set("post", token_endpoint());
    paths.entry("/.well-known/jwks.json").set("get", jwks(api, schemas));
    paths.entry("/").set("get", root());
    paths.entry("/openapi.json").set("get", document());
    paths.entry("/asyncapi.json").set("get", async_document());
    paths.entry("/docs").set("get", docs());
    paths.entry("/docs/{file}").set("get", file_of_docs());
    paths.entry("/problems").set("get", problem_pages());
    paths.entry("/problems/{code}").set("get", problem_page());
    paths.entry("/healthz").set("get", health());
    paths.entry("/readyz").set("get", ready());
    paths.entry("/metrics").set("get", metrics());
}

/// The errors of every route with rate limits.
pub const COMMON_ERRORS: [Code; 4] =
    [Code::InvalidRequest, Code::RateLimited, Code::Internal, Code::Unavailable];

fn socket() -> Object {
    let headers = header_references(&["x-request-id", "RateLimit", "RateLimit-Policy"]);
    let mut responses = object! {
        "101": object! {
            "description": "The connection is a WebSocket. Its first frame is `ready`.", "headers": headers,
        },
    };
    let codes: Vec<_> = AUTH_ERRORS.into_iter().chain([Code::Forbidden]).chain(COMMON_ERRORS).collect();
    for (status, problem) in problems(&codes, true) {
        responses.set(status.to_string(), problem);
    }
    let header = |name: &'static str, description: &'static str, schema: Object| {
        object! { "name": name, "in": "header", "description": description, "required": false, "schema": schema }
    };
    object! {
        "tags": list(["events"]),
        "operationId": "openSocket",
        "summary": "Open a socket for my events",
        "description": SOCKET,
        "security": list([token(), object! { "wsTicket": Json::List(Vec::new()) }]),
        "parameters": list([
            object! {
                "name": "after", "in": "query", "required": false,
                "description": "The last `seq` that the client has. The socket begins with a replay of the later events.",
                "schema": object! { "type": "integer", "format": "int64", "minimum": 0 },
            },
            header("Upgrade", "`websocket`, as in every handshake.", object! { "type": "string" }),
            header("Sec-WebSocket-Protocol", "From a browser: `shoppee.v1, ticket.<ticket>`. The response has \
                                              `shoppee.v1`.",
                   object! { "type": "string" }),
            header("Origin", "The origin of a web page, which the shop must allow.", object! { "type": "string" }),
        ]),
        "responses": responses,
        "x-frames": object! { "server": reference("ServerFrame"), "client": reference("ClientFrame") },
    }
}

pub const SOCKET: &str = "\
A WebSocket (RFC 6455) over HTTP/1.1. Every socket of a caller, on every gateway, \
receives each transition of the caller's orders, in order and without a gap.

Sign in with `Authorization: Bearer …`, or from a browser, which cannot set headers, with a ticket of \
`POST /api/v1/auth/ws-ticket` as a subprotocol: `new WebSocket(url, [\"shoppee.v1\", \"ticket.\" + \
ticket])`. A ticket is valid for 30 seconds and opens one socket. A browser reports a refused handshake as \
closing code 1006, without the reason.

**Frames from the server** are `{\"type\",\"content\",\"user_id\",\"time\",\"seq\"?}`, with `time` in Unix \
seconds:

- `{\"type\":\"ready\",\"content\":{\"seq\":41,\"recovered\":true}}` is the first frame. `recovered: false` means \
that the missed events cannot be replayed completely: read the orders by REST, and continue from `seq`.
- \
`{\"type\":\"order\",\"content\":{\"order_id\",\"status\",\"previous_status\",\"total\",\"currency\",\
\"version\"},\
\"user_id\":7,\"time\":1768469400,\"seq\":42}`. \
`seq` counts per user, from 1, without gaps; copies have the same one.
- `{\"type\":\"pong\"}` answers a `ping`, and \
`{\"type\":\"error\",\"content\":{\"code\":\"invalid_request\"}}` an invalid frame.

**Frames from the client** are `{\"type\":\"ping\"}`, and \
`{\"type\":\"auth\",\"content\":{\"access_token\":\"…\"}}` to continue after the expiry of its token.

**Closing codes**: 1001 the server shuts down, 1009 a frame over 16 KiB. After 4000–4499 reconnect, with \
`after`: 4005 the token has expired, 4008 too slow, 4010 resync, 4012 no pong. After 4500–4999 do not: \
4501 the session has ended, 4504 more than 10 sockets of one user, 4509 misbehaviour (ten invalid frames, \
or more than 20 a second).";

/// Builds the token endpoint (RFC 6749), whose requests and errors have the form of the standard.
fn token_endpoint() -> Object {
    let text = |description: &'static str| object! { "type": "string", "description": description };
    let form = object! {
        "type": "object",
        "properties": object! {
            "grant_type": object! { "type": "string", "enum": list(["client_credentials"]) },
            "client_id": text("The `id` of the service account, unless HTTP Basic has it."),
            "client_secret": text("Unless HTTP Basic has it."),
            "scope": text("Some of the scopes of the client, separated by spaces. Absent: all."),
        },
        "required": list(["grant_type"]),
    };
    let form_example = object! { "grant_type": "client_credentials", "scope": "orders:ship" };
    let token = object! {
        "type": "object",
        "properties": object! {
            "access_token": text("A JWT."),
            "token_type": object! { "type": "string", "const": "Bearer" },
            "expires_in": object! { "type": "integer", "format": "int64", "minimum": 1 },
            "scope": text("The scopes of the token, separated by spaces."),
        },
        "required": list(["access_token", "token_type", "expires_in", "scope"]),
    };
    let example = object! {
        "access_token": TOKEN, "token_type": "Bearer", "expires_in": 900, "scope": "orders:ship",
    };
    let headers = ["x-request-id", "RateLimit", "RateLimit-Policy"];
    let error = |names: &[&'static str], headers: &[&'static str]| {
        let schema = object! {
            "type": "object",
            "properties": object! {
                "error": object! { "type": "string", "enum": list(names.iter().copied()) },
                "error_description": text("For people."),
            },
            "required": list(["error"]),
        };
        let example = object! { "error": names[0], "error_description": "…" };
        success("An error of RFC 6749 §5.2.", headers, Some(schema), Some(example.into()))
    };
    let mut responses = object! { "200": success("A token.", &headers, Some(token), Some(example.into())) };
    for (status, problem) in problems(&TOKEN_ERRORS, true) {
        responses.set(status.to_string(), problem);
    }
    let bad_request = ["invalid_request", "invalid_scope", "unsupported_grant_type"];
    responses.set("400", error(&bad_request, &headers));
    let headers = ["x-request-id", "RateLimit", "RateLimit-Policy", "WWW-Authenticate"];
    responses.set("401", error(&["invalid_client"], &headers));
    let content = object! { "schema": form, "example": form_example };
    public_operation(
        "tokens",
        "issueToken",
        "Issue a token to a service account",
        "The client credentials grant of OAuth 2 (RFC 6749 §4.4). The client authenticates with HTTP Basic or in the \
         body. Unlike other routes, this one takes a form, and has the errors of the \
         standard. A query parameter is 400 `invalid_request` as a problem.",
        responses,
    )
    .with(
        "requestBody",
        object! {
            "required": true,
            "content": object! { "application/x-www-form-urlencoded": content },
        },
    )
}

/// The errors of the token endpoint that are problems.
const TOKEN_ERRORS: [Code; 7] = [
    Code::RequestTimeout,
    Code::PayloadTooLarge,
    Code::RateLimited,
    Code::TooManyAttempts,
    Code::Internal,
    Code::Unavailable,
    Code::DeadlineExceeded,
];

fn jwks(api: &ApiDescriptors, schemas: &mut Schemas<'_>) -> Object {
    let key = api.messages.keys().find(|name| name.ends_with(".auth.v1.Jwk")).cloned().unwrap_or_default();
    let keys = object! {
        "type": "object",
        "properties": object! { "keys": object! { "type": "array", "items": schemas.response(&key) } },
        "required": list(["keys"]),
    };
    let example = object! { "keys": list([object! {
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "Xk3p0sQ",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }]) };
    let headers = ["x-request-id", "RateLimit", "RateLimit-Policy", "Cache-Control"];
    let response = success("The keys.", &headers, Some(keys), Some(example.into()));
    public_operation(
        "tokens",
        "getJwks",
        "Get the keys of access tokens",
        "A JSON Web Key Set (RFC 7517), for programs that verify tokens: EdDSA, `typ` `at+jwt`, `iss` \
         `shoppee`, `aud` `shoppee-api`. During a rotation it has the previous key too.",
        with_problems(object! { "200": response }, &COMMON_ERRORS),
    )
}

fn root() -> Object {
    let headers = header_references(&["x-request-id", "RateLimit", "RateLimit-Policy"]);
    let shop = object! {
        "description": "The storefront, if it is enabled.",
        "headers": headers.clone(),
        "content": object! { "text/html": object! { "schema": object! { "type": "string" } } },
    };
    let response = object! {
        "description": "Redirects to `/docs` without a storefront.",
        "headers": headers.with("Location", object! {
            "description": "The documentation.", "required": true, "schema": object! { "type": "string" },
        }),
    };
    let responses = with_problems(object! { "200": shop, "307": response }, &COMMON_ERRORS);
    public_operation(
        "documentation",
        "getRoot",
        "Open the storefront or the documentation",
        "The storefront is enabled in development, and by `STOREFRONT=on`. Otherwise the response is a redirect.",
        responses,
    )
}

fn document() -> Object {
    document_of(
        "getOpenApi",
        "This document",
        "OpenAPI 3.1, generated from the code of the gateway.",
        "openapi",
    )
}

fn async_document() -> Object {
    document_of(
        "getAsyncApi",
        "The document of the events",
        "AsyncAPI 3.0, with the frames of `GET /ws`.",
        "asyncapi",
    )
}

fn document_of(
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    version: &'static str,
) -> Object {
    let headers = ["x-request-id", "RateLimit", "RateLimit-Policy", "ETag", "Cache-Control"];
    let schema = object! { "type": "object", "required": list([version, "info"]) };
    let response = success("The document.", &headers, Some(schema), None);
    let responses = with_problems(object! { "200": response, "304": not_modified() }, &COMMON_ERRORS);
    let mut item = public_operation("documentation", id, summary, description, responses);
    item.set("parameters", list([object! { "$ref": "#/components/parameters/If-None-Match" }]));
    item
}

fn docs() -> Object {
    let headers =
        header_references(&["x-request-id", "RateLimit", "RateLimit-Policy", "ETag", "Cache-Control"]);
    let response = object! {
        "description": "The page.", "headers": headers, "content": object! { "text/html": text() },
    };
    let mut item = public_operation(
        "documentation",
        "getDocs",
        "This page",
        "Shows the document, and sends requests.",
        with_problems(object! { "200": response, "304": not_modified() }, &COMMON_ERRORS),
    );
    item.set("parameters", list([object! { "$ref": "#/components/parameters/If-None-Match" }]));
    item
}

fn file_of_docs() -> Object {
    let headers =
        header_references(&["x-request-id", "RateLimit", "RateLimit-Policy", "ETag", "Cache-Control"]);
    let content = object! { "text/css": text(), "text/javascript": text() };
    let response = object! { "description": "The file.", "headers": headers, "content": content };
    let codes: Vec<_> = COMMON_ERRORS.into_iter().chain([Code::NotFound]).collect();
    let mut item = public_operation(
        "documentation",
        "getDocsFile",
        "A file of this page",
        "A script or a style sheet.",
        with_problems(object! { "200": response, "304": not_modified() }, &codes),
    );
    let names = list(["scalar.js", "docs.css", "docs.js"]);
    item.set(
        "parameters",
        list([
            object! {
                "name": "file", "in": "path", "required": true,
                "schema": object! { "type": "string", "enum": names }, "example": "docs.css",
            },
            object! { "$ref": "#/components/parameters/If-None-Match" },
        ]),
    );
    item
}

/// Builds the operation of an HTML page.
fn page(id: &'static str, summary: &'static str, description: &'static str, codes: &[Code]) -> Object {
    let headers = header_references(&["x-request-id", "RateLimit", "RateLimit-Policy", "Cache-Control"]);
    let response = object! {
        "description": "The page.", "headers": headers, "content": object! { "text/html": text() },
    };
    public_operation(
        "documentation",
        id,
        summary,
        description,
        with_problems(object! { "200": response }, codes),
    )
}

fn problem_pages() -> Object {
    page(
        "listProblems",
        "All codes of problems",
        "Each code with its status and its meaning.",
        &COMMON_ERRORS,
    )
}

fn problem_page() -> Object {
    let codes: Vec<_> = COMMON_ERRORS.into_iter().chain([Code::NotFound]).collect();
    let description = "The `type` of a problem is the address of this page.";
    let mut item = page("getProblem", "Cause and remedy of a problem", description, &codes);
    let names = list(Code::ALL.iter().map(|code| code.as_str()));
    item.set(
        "parameters",
        list([object! {
            "name": "code", "in": "path", "required": true,
            "schema": object! { "type": "string", "enum": names }, "example": "out_of_stock",
        }]),
    );
    item
}

/// Builds the 304 response of the documentation.
fn not_modified() -> Object {
    let headers = ["x-request-id", "RateLimit", "RateLimit-Policy", "ETag", "Cache-Control"];
    success("The copy of the client is current.", &headers, None, None)
}

fn health() -> Object {
    ops_operation(
        "getHealth",
        "Get the liveness",
        "For the liveness probe of a container. It checks no dependency.",
        object! { "200": plain("The process runs.", "ok\n") },
    )
}

fn ready() -> Object {
    let responses = object! {
        "200": plain("All dependencies respond.", "ready\n"),
        "503": plain("A dependency does not respond, or the process is about to stop.", "not ready: redis (limits, tickets: connection refused)\n"),
    };
    let mut item = ops_operation(
        "getReadiness",
        "Get the readiness",
        "For operators and alerts. A load balancer sends `need=vital`: without Redis the gateway is slower, \
         and still serves.",
        responses,
    );
    item.set(
        "parameters",
        list([object! {
            "name": "need", "in": "query", "required": false,
            "description": "`vital`: only the dependencies that every request needs. Any other value: all dependencies.",
            "schema": object! { "type": "string", "examples": list(["vital"]) },
        }]),
    );
    item
}

fn metrics() -> Object {
    ops_operation(
        "getMetrics",
        "Get the metrics",
        "In the text format of Prometheus.",
        object! { "200": plain("The metrics.", "ws_connections 3\n") },
    )
}

fn public_operation(
    tag: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    responses: Object,
) -> Object {
    object! {
        "tags": list([tag]), "operationId": id, "summary": summary, "description": description,
        "security": Json::List(Vec::new()), "responses": responses,
    }
}

fn ops_operation(
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    mut responses: Object,
) -> Object {
    for (status, problem) in problems(&[Code::InvalidRequest], false) {
        responses.set(status.to_string(), problem);
    }
    public_operation("operation", id, summary, description, responses)
}

fn with_problems(mut responses: Object, codes: &[Code]) -> Object {
    for (status, problem) in problems(codes, true) {
        responses.set(status.to_string(), problem);
    }
    responses
}

fn text() -> Object {
    object! { "schema": object! { "type": "string" } }
}

fn plain(description: &'static str, example: &'static str) -> Object {
    object! {
        "description": description,
        "headers": header_references(&["x-request-id"]),
        "content": object! { "text/plain": text().with("example", example) },
    }
}
