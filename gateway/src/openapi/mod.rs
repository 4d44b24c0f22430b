//! Generates the OpenAPI document, once. Paths, bodies and descriptions come from the protobuf [`descriptors`], problems
//! from the table of codes, and the rest from two tables, [`operations`] and [`constraints`].

pub mod asyncapi;
mod constraints;
mod descriptors;
mod event_streams;
mod examples;
mod frames;
mod json;
mod non_rpc_paths;
mod operations;
mod paths;
mod responses;
mod schemas;
mod status;

use anyhow::Context as _;
use shoppee_kit::access::SCOPES;

use self::{
    descriptors::ApiDescriptors,
    json::{Json, Object, list, object},
    schemas::Schemas,
};

/// Returns the document as JSON.
pub fn document() -> anyhow::Result<Vec<u8>> {
    let api = ApiDescriptors::read().context("protobuf descriptors")?;
    let mut schemas = Schemas::new(&api);
    let mut paths = Object::default();
    paths::write(&mut paths, &api, &mut schemas);
    non_rpc_paths::write(&mut paths, &api, &mut schemas);
    event_streams::write(&mut paths);
    status::write(&mut paths, &mut schemas);
    frames::write(&mut schemas);
    let document = object! {
        "openapi": "3.1.0",
        "info": info(),
        "servers": list([object! { "url": "/", "description": "The shop that this document came from." }]),
        "tags": tags(),
        "paths": paths,
        "components": object! {
            "schemas": schemas.finish(),
            "responses": responses::shared(),
            "parameters": paths::header_parameters(),
            "headers": responses::headers(),
            "securitySchemes": security_schemes(),
        },
    };
    Ok(serde_json::to_vec(&Json::from(document))?)
}

fn info() -> Object {
    object! {
        "title": "Shoppee",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "The backend of an online shop: accounts, catalogue, cart, orders, and live events.",
        "description": DESCRIPTION,
        "contact": object! { "name": "Shoppee" },
        "license": object! { "name": "Apache 2.0", "identifier": "Apache-2.0" },
    }
}

const DESCRIPTION: &str = "\
Customers register, search products, fill a cart, order, pay, and follow their orders in real time on every \
device.

**A first order**: `POST /api/v1/auth/register`, then `POST /api/v1/auth/login`; use the `access_token` as \
`Authorization: Bearer …` (here: *Authentication*). `GET /api/v1/products` lists the products; add \
one to the cart with `POST /api/v1/cart/items`, place the order with `POST /api/v1/orders`, pay it with \
`POST /api/v1/orders/{id}/pay` and `{\"payment_token\": \"tok_ok\"}`.

**Conventions**

- Bodies are JSON in UTF-8, at most 64 KiB (a batch: 8 MiB). The syntax of a request is checked first: 400 \
`invalid_request` for invalid JSON, for missing, unknown or repeated fields, for wrong \
types and invalid query parameters. Then the rules: 422 `validation_failed` for length, format, sign and \
range. Both name each invalid field. An invalid id in the path is 404.
- Money is an integer in minor units (`1999` is 19.99) beside an ISO 4217 `currency`. Times are RFC 3339 \
in UTC.
- Lists are `{\"items\": […], \"next_cursor\": \"…\"}`; the same request with `cursor` gets the next page, \
and `null` means that there is none.
- A resource of another user is 404, like one that does not exist.
- Every response has `x-request-id`, and every error is `application/problem+json` (RFC 9457) with a \
`code`.
- `Idempotency-Key` makes a write that is not idempotent by itself safe to try again: orders and their steps, payments, \
carts, stocks, products, categories and batches. A step that an order has taken already, with the same content, is \
answered with the order.
- `RateLimit` and `RateLimit-Policy` state the limits of a caller. Above a limit the response is 429, and `Retry-After` \
states the delay. Requests with 503 and 504 may be repeated too.";

fn tags() -> Json {
    list(
        [
            ("auth", "Accounts, sessions, tokens."),
            ("products", "The catalogue, and its changes by the staff of the shop."),
            ("categories", "The tree of categories of the products."),
            ("cart", "The cart of a customer."),
            ("orders", "Orders and their states: `pending` → `paid` → `shipped` → `completed`."),
            ("events", "The transitions of orders, in real time."),
            ("admin", "Users, orders and events of the whole shop, and service accounts."),
            ("tokens", "For programs that use or verify access tokens."),
            ("documentation", "The documents of this API."),
            ("operation", "For the operators of the shop."),
        ]
        .map(|(name, description)| object! { "name": name, "description": description }),
    )
}

fn security_schemes() -> Object {
    object! {
        "accessToken": object! {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "The `access_token` of `POST /api/v1/auth/login` or `/refresh`.",
        },
        "serviceToken": object! {
            "type": "oauth2",
            "description": "The token of a service account, for programs.",
            "flows": object! {
                "clientCredentials": object! {
                    "tokenUrl": "/oauth/token",
                    "scopes": SCOPES.map(|scope| (scope, scope_description(scope))).into_iter().collect::<Object>(),
                },
            },
        },
        "wsTicket": object! {
            "type": "apiKey", "in": "header", "name": "Sec-WebSocket-Protocol",
            "description": "`shoppee.v1, ticket.<ticket>`, with a ticket of `POST /api/v1/auth/ws-ticket`; \
                            only for `/ws`.",
        },
    }
}

fn scope_description(scope: &str) -> &'static str {
    match scope {
        "catalogue:write" => "Change products and categories.",
        "events:watch" => "Follow the events of all orders; by gRPC only.",
        "orders:cancel" => "Cancel orders.",
        "orders:read" => "Read the orders of all users.",
        "orders:ship" => "Ship orders.",
        "stock:adjust" => "Correct stocks.",
        "stock:hold" => "Hold stock for orders; by gRPC only.",
        "users:read" => "Read the accounts of users.",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::app::{WITH_QUERY, WITHOUT_QUERY};

    #[test]
    fn the_document_has_every_route_of_the_router_and_no_other() {
        let document: Value = serde_json::from_slice(&document().unwrap()).unwrap();
        let documented: BTreeSet<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
            })
            .collect();
        // Routes of `shoppee_kit::ops`, which every process serves.
        let operational = [("get", "/healthz"), ("get", "/readyz"), ("get", "/metrics")];
        let routed: BTreeSet<_> = WITH_QUERY
            .iter()
            .chain(WITHOUT_QUERY)
            .chain(&operational)
            .map(|(method, path)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn every_scope_is_described() {
        for scope in SCOPES {
            assert!(!scope_description(scope).is_empty(), "{scope}");
        }
    }

    #[test]
    fn the_table_of_operations_has_every_route_of_a_method() {
        let api = ApiDescriptors::read().unwrap();
        for operation in operations::OPERATIONS {
            assert!(paths::route(&api, operation).is_some(), "{} has no such route", operation.rpc);
        }
        assert_eq!(api.routes.len(), operations::OPERATIONS.len());
    }
}
