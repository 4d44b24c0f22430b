//! The OpenAPI document agrees with the protobuf annotations and with the responses of the gateway.

use std::collections::BTreeSet;

use http::Method;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Map, Value, json};
use shoppee_kit::testing::eventually;

use crate::shop::{ApiResponse, Person, TestShop, send, text};

/// The operations that end a service account or the caller's session.
const LAST: [&str; 3] = ["revokeServiceAccount", "logout", "logoutAll"];

struct Document(Value);

struct Operation<'a> {
    id: &'a str,
    method: Method,
    path: &'a str,
    it: &'a Value,
}

impl Document {
    async fn fetch(shop: &TestShop) -> Self {
        Self(shop.guest().get("//openapi.json").await.expect(200).body)
    }

    /// Returns all operations; those of [`LAST`] come last.
    fn operations(&self) -> Vec<Operation<'_>> {
        let paths = self.0["paths"].as_object().expect("paths").iter();
        let mut all: Vec<_> = paths
            .flat_map(|(path, item)| {
                item.as_object().expect("a path item").iter().map(move |one| (path, one))
            })
            .map(|(path, (method, it))| Operation {
                id: text(&it["operationId"]),
                method: method.to_uppercase().parse().expect("a method"),
                path,
                it,
            })
            .collect();
        all.sort_by_key(|operation| LAST.iter().position(|last| *last == operation.id));
        all
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref") {
            Some(at) => {
                self.0.pointer(text(at).trim_start_matches('#')).expect("a reference that leads somewhere")
            }
            None => value,
        }
    }

    /// Validates `value` against `schema`. An undocumented field is an error, like a missing one.
    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = self.resolve(schema);
        if let Some(any) = schema["anyOf"].as_array() {
            let tried: Vec<_> = any.iter().map(|one| self.validate(one, value)).collect();
            return if tried.iter().any(Result::is_ok) { Ok(()) } else { Err(format!("{tried:?}")) };
        }
        let kinds = schema["type"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| schema.get("type").cloned().into_iter().collect());
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_i64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if !kinds.is_empty() && !kinds.iter().any(|name| name == kind) {
            return Err(format!("{value} is not {}", schema["type"]));
        }
        if schema.get("const").is_some_and(|only| only != value) {
            return Err(format!("{value} is not {}", schema["const"]));
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return Err(format!("{value} is not of {}", schema["enum"]));
        }
        let (least, most) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
        let within =
            |number| least.is_none_or(|least| least <= number) && most.is_none_or(|most| number <= most);
        if !value.as_i64().is_none_or(within) {
            return Err(format!("{value} is out of range"));
        }
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            self.validate(&schema["items"], item).map_err(|wrong| format!("[{at}]: {wrong}"))?;
        }
        let none = Map::new();
        let fields = schema["properties"].as_object().unwrap_or(&none);
        if let Some(value) =
            value.as_object().filter(|_| schema["additionalProperties"] != true && !fields.is_empty())
        {
            for name in schema["required"].as_array().into_iter().flatten() {
                value.get(text(name)).ok_or(format!("{name} lacks"))?;
            }
            for (name, inner) in value {
                let field_schema = fields.get(name).ok_or(format!("{name} is undocumented"))?;
                self.validate(field_schema, inner).map_err(|wrong| format!("{name}: {wrong}"))?;
            }
        }
        Ok(())
    }

    /// Validates a response against the document.
    fn validate_response(&self, operation: &Operation<'_>, answer: &ApiResponse) -> Result<(), String> {
        let response = operation.it["responses"].get(answer.status.to_string());
        let response = self.resolve(response.ok_or(format!("{} is undocumented", answer.status))?);
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            if self.resolve(header)["required"] == true && answer.header(name).is_empty() {
                return Err(format!("no {name}"));
            }
        }
        let kind = answer.header("content-type").split(';').next().unwrap_or_default();
        match response.get("content") {
            None if answer.text.is_empty() => Ok(()),
            None => Err(format!("has a body: {}", answer.text)),
            Some(content) => {
                let content = content.get(kind).ok_or(format!("{kind:?} is undocumented"))?;
                let codes = response["x-problem-codes"].as_array();
                if codes.is_some_and(|codes| !codes.contains(&answer.body["code"])) {
                    return Err(format!("{} is undocumented", answer.body["code"]));
                }
                if kind.ends_with("json") { self.validate(&content["schema"], &answer.body) } else { Ok(()) }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_matches_the_document() {
    let shop = TestShop::start().await;
    let document = Document::fetch(&shop).await;
    let (ann, admin) = (shop.customer("ann").await, shop.admin().await);
    let tee = shop.product(&admin, 1999, 100).await;
    let category = admin.post("/categories", &json!({"slug": "tops", "name": "Tops"})).await.expect(201).body;
    let new = json!({"name": "warehouse", "scopes": ["orders:read"]});
    let service_account = admin.post("/admin/service-accounts", &new).await.expect(201).body;
    let service_account = text(&service_account["id"]).to_owned();
    // The search returns 503 until the index is built.
    eventually("searches are answered", || async { admin.get("/products/search?q=tee").await.status == 200 })
        .await;

    let mut succeeded = BTreeSet::new();
    for caller in [&shop.guest(), &ann, &admin] {
        // Ann's session has ended before the admin's operations.
        let buyer = if caller.id == admin.id { &admin } else { &ann };
        // A stream has no end.
        for operation in document.operations().into_iter().filter(|one| !one.id.starts_with("stream")) {
            let id = match operation.path.split('/').nth(3).unwrap_or_default() {
                "orders" => order_for(operation.id, buyer, &admin, &tee).await,
                "categories" => category["id"].to_string(),
                "admin" if operation.path.contains("service-accounts") => service_account.clone(),
                "admin" if operation.path.contains("products") => tee["id"].to_string(),
                "admin" => ann.id.to_string(),
                "auth" => "019bc0e0-6c11-7b52-b1f4-7a3e9d2c4f10".to_owned(),
                _ if operation.path.starts_with("/docs/") => "docs.css".to_owned(),
                _ if operation.path.starts_with("/problems/") => "not_found".to_owned(),
                _ => tee["id"].to_string(),
            };
            let answer = send_example(caller, &operation, &id).await;
            let (it, status) = (operation.id, answer.status);
            document
                .validate_response(&operation, &answer)
                .unwrap_or_else(|wrong| panic!("{it}: {wrong}: {}", answer.text));
            let well_formed = ![400, 405, 413, 415].contains(&status) || it == "openSocket";
            assert!(well_formed, "the example of {it} is none: {}", answer.text);
            assert!(status < 500, "{it}: {}", answer.text);
            // Without a storefront, the root is a redirect.
            if status < 400 {
                succeeded.insert(it.to_owned());
            }
        }
    }
    // Most operations must have succeeded, except those that need a secret, a handshake or another order of calls.
    let refused = document.operations().into_iter().map(|one| one.id.to_owned());
    let refused: BTreeSet<_> = refused.filter(|id| !succeeded.contains(id)).collect();
    let expected = [
        "addCartItem",
        "createOrder",
        "createProduct",
        "deleteCategory",
        "issueToken",
        "logoutAll",
        "openSocket",
        "refresh",
        "revokeSession",
        "streamAllEvents",
        "streamEvents",
    ];
    assert_eq!(refused, expected.map(str::to_owned).into());
}

/// Creates an order in the state that the operation needs.
async fn order_for(operation: &str, buyer: &Person, admin: &Person, tee: &Value) -> String {
    let order = buyer.orders(tee, 1).await.expect(201).body;
    let id = text(&order["id"]).to_owned();
    if matches!(operation, "shipOrder" | "completeOrder") {
        buyer.pays(&order).await.expect(200);
    }
    if operation == "completeOrder" {
        let parcel = json!({"carrier": "PostNL", "tracking_number": "1"});
        admin.post(&format!("/orders/{id}/ship"), &parcel).await.expect(200);
    }
    id
}

/// Sends the example of an operation. A path has at most one parameter.
async fn send_example(caller: &Person, operation: &Operation<'_>, id: &str) -> ApiResponse {
    let parts = operation.path.split('/').map(|part| if part.starts_with('{') { id } else { part });
    let path: Vec<_> = parts.collect();
    let parameters = operation.it["parameters"].as_array().into_iter().flatten();
    // The only required query parameter is that of the search.
    let mut required = parameters.filter(|one| one["in"] == "query" && one["required"] == true);
    let query = if required.next().is_some() { "?q=shirt" } else { "" };
    let mut request = caller.request(operation.method.clone(), &format!("/{}{query}", path.join("/")));
    if let Some(form) =
        operation.it.pointer("/requestBody/content/application~1x-www-form-urlencoded/example")
    {
        let content_type = "application/x-www-form-urlencoded";
        request = request.header("content-type", content_type).body(form_encode(form));
    }
    if let Some(body) = operation.it.pointer("/requestBody/content/application~1json/example") {
        request = request.json(body);
    }
    send(request).await
}

/// Encodes an object of texts as a form. The examples need no escapes.
fn form_encode(form: &Value) -> String {
    let pairs = form.as_object().expect("an object").iter();
    pairs.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join("&")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_json_body_has_a_valid_example() {
    let shop = TestShop::start().await;
    let document = Document::fetch(&shop).await;
    for operation in document.operations() {
        let id = operation.id;
        let body = operation.it.pointer("/requestBody/content/application~1json");
        let responses = operation.it["responses"].as_object().expect("responses").values();
        let answers = responses.filter_map(|response| document.resolve(response)["content"].as_object());
        let json = answers.flatten().filter(|(kind, _)| kind.ends_with("json")).map(|(_, content)| content);
        for content in body
            .into_iter()
            .chain(json)
            .filter(|_| !matches!(id, "getOpenApi" | "getAsyncApi") || body.is_some())
        {
            let named = content["examples"].as_object().into_iter().flatten();
            let examples: Vec<_> =
                content.get("example").into_iter().chain(named.map(|(_, one)| &one["value"])).collect();
            assert!(!examples.is_empty(), "{id}: {content}");
            for example in examples {
                let fits = document.validate(&content["schema"], example);
                fits.unwrap_or_else(|wrong| panic!("the example of {id}: {wrong}: {example}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_has_the_annotated_routes() {
    let shop = TestShop::start().await;
    let document = Document::fetch(&shop).await;
    let documented: BTreeSet<_> = document
        .operations()
        .iter()
        // The streams over HTTP, and the status, which the gateway gathers, have no gRPC method with the same response.
        .filter(|operation| {
            operation.path.starts_with("/api/v1/")
                && !operation.path.contains("/orders/stream")
                && operation.path != "/api/v1/admin/status"
        })
        .map(|operation| (operation.method.to_string(), operation.path.to_owned()))
        .collect();
    assert_eq!(annotated_routes(), documented);
}

/// Returns every `google.api.http` annotation as method and path.
fn annotated_routes() -> BTreeSet<(String, String)> {
    let pool = DescriptorPool::decode(shoppee_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let http = pool.get_extension_by_name("google.api.http").expect("the annotation");
    let mut routes = BTreeSet::new();
    for service in pool.services() {
        for method in service.methods().filter(|method| method.options().has_extension(&http)) {
            let options = method.options();
            let rule = options.get_extension(&http);
            let rule = rule.as_message().expect("a rule");
            routes.extend(route(rule));
            let more = rule.get_field_by_name("additional_bindings").expect("a field");
            let more = more.as_list().expect("a list").iter();
            routes.extend(more.filter_map(|rule| route(rule.as_message()?)));
        }
    }
    routes
}

fn route(rule: &DynamicMessage) -> Option<(String, String)> {
    ["get", "put", "post", "delete", "patch"].into_iter().find_map(|verb| {
        let path = rule.get_field_by_name(verb)?.as_str()?.to_owned();
        (!path.is_empty()).then(|| (verb.to_uppercase(), path))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_a_documented_path_is_documented() {
    let shop = TestShop::start().await;
    let document = Document::fetch(&shop).await;
    let operations = document.operations();
    let admin = shop.admin().await;
    for path in operations.iter().map(|operation| operation.path).collect::<BTreeSet<_>>() {
        let documented: BTreeSet<_> =
            operations.iter().filter(|one| one.path == path).map(|one| one.method.to_string()).collect();
        let concrete = path.replace("{code}", "not_found");
        let concrete =
            concrete.replace("{file}", "docs.css").replace("{id}", "1").replace("{product_id}", "1");
        let answer = send(admin.request(Method::TRACE, &format!("/{concrete}"))).await;
        let answer = answer.problem(405, "method_not_allowed");
        let allowed: BTreeSet<_> = answer
            .header("allow")
            .split(',')
            .map(|method| method.trim().to_owned())
            .filter(|method| method != "HEAD")
            .collect();
        assert_eq!(allowed, documented, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_serves_the_page_and_the_document() {
    let shop = TestShop::start().await;
    let guest = shop.guest();
    let page = guest.get("//docs").await.expect(200);
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("http"));
    let mut files = 0;
    for place in page.text.split(['"']).filter(|place| place.starts_with('/')) {
        let file = guest.get(&format!("/{place}")).await.expect(200);
        assert!(file.header("content-type").contains('/') && !file.text.is_empty(), "{place}");
        files += 1;
    }
    assert!(files >= 4, "{files} files");
    guest.get("//docs/passwd").await.problem(404, "not_found");

    for path in ["//openapi.json", "//docs", "//docs/scalar.js"] {
        let first = guest.get(path).await.expect(200);
        assert_eq!(first.header("cache-control"), "public, no-cache", "{path}");
        let again = guest.request(Method::GET, path).header("if-none-match", first.header("etag"));
        let again = send(again).await.expect(304);
        assert_eq!((again.header("etag"), again.text.as_str()), (first.header("etag"), ""), "{path}");
    }
    let scalar = guest.request(Method::GET, "//docs/scalar.js").header("accept-encoding", "gzip");
    let scalar = scalar.send().await.expect("an answer");
    assert_eq!(scalar.headers()["content-encoding"], "gzip");
    assert!(scalar.bytes().await.expect("a body").starts_with(&[0x1f, 0x8b]));
    // A client that accepts no gzip gets the vendored file.
    let scalar = guest.get("//docs/scalar.js").await.expect(200);
    assert!(scalar.text == include_str!("../../vendor/scalar/standalone.js"), "{} bytes", scalar.text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_every_problem_opens_a_page_with_cause_and_remedy() {
    let shop = TestShop::start().await;
    let guest = shop.guest();
    let document = Document::fetch(&shop).await;
    let codes = document.0["components"]["schemas"]["ProblemCode"]["enum"].clone();
    let codes: Vec<_> = codes.as_array().expect("codes").iter().map(text).map(str::to_owned).collect();
    assert!(codes.len() > 30, "{codes:?}");
    let all = guest.get("//problems").await.expect(200);
    for code in codes {
        let path = format!("/problems/{code}");
        assert!(all.text.contains(&format!("href=\"{path}\"")), "{path}");
        let page = guest.get(&format!("/{path}")).await.expect(200);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        for part in [&code, "<h2>Cause</h2>", "<h2>Remedy</h2>"] {
            assert!(page.text.contains(part), "{code}: {part}");
        }
    }
    let problem = guest.get("/nowhere").await.problem(404, "not_found").body;
    guest.get(&format!("/{}", text(&problem["type"]))).await.expect(200);
    guest.get("//problems/no_such_code").await.problem(404, "not_found");
}
