//! The comparison of the shop with the model: sends each step as a request, and compares the responses.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::Context as _;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    sequence::{ADMIN, ExpectedTotal, PRODUCTS, Sequence, Step, USERS},
    state::{Expected, Model, Outcome},
};
use crate::{
    chaos::customers::{sign_in, text_field, with_key},
    demo::address,
    rest::{Request, Rest, is_transient},
    secrets::SignIn,
};

const PRICE: i64 = 450;
const STOCK: i64 = 12;
/// Bounds the wait for effects after a response: stock that returns, and refunds.
const CONSISTENCY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds the retries of a request that a busy shop refuses.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
/// The count of replayed responses.
pub const REPLAY: &str = "replay";
/// An order id that does not exist.
const UNKNOWN_ORDER: &str = "01890000-0000-7000-8000-000000000000";

/// A client of all users.
pub struct ShopClient<'a> {
    pub rest: &'a Rest,
    pub users: Vec<SignIn>,
    /// The access token of each user.
    pub tokens: Vec<String>,
    /// Counts the successes of each kind of request, and the refusals of each code.
    pub counts: BTreeMap<&'static str, u64>,
}

/// The first step whose response differs from the model; the number of steps if a later check differs.
#[derive(Debug)]
pub struct Difference {
    pub step: usize,
    pub description: String,
}

/// The error of a request whose effect is unknown, as the shop is busy. The sequence proves nothing.
#[derive(Debug)]
pub struct OutcomeUnknown(String);

impl fmt::Display for OutcomeUnknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for OutcomeUnknown {}

/// The shop's ids of what the model numbers.
struct Ids {
    /// The prefix of the idempotency keys.
    run: String,
    products: Vec<i64>,
    orders: Vec<String>,
}

impl Ids {
    fn order(&self, number: usize) -> &str {
        self.orders.get(number).map_or(UNKNOWN_ORDER, String::as_str)
    }

    fn product_number(&self, id: &Value) -> usize {
        self.products.iter().position(|product| Some(*product) == id.as_i64()).unwrap_or(usize::MAX)
    }
}

impl<'a> ShopClient<'a> {
    /// Runs a sequence with products of its own. Returns the first difference from the model.
    pub async fn run(&mut self, sequence: &Sequence) -> anyhow::Result<Option<Difference>> {
        self.clear().await?;
        let mut ids = self.create_products().await?;
        let mut model = Model::new(PRICE, STOCK);
        for (number, step) in sequence.0.iter().enumerate() {
            if let Some(difference) = self.check(&mut model, &mut ids, step).await? {
                return Ok(Some(Difference { step: number, description: format!("{step:?}: {difference}") }));
            }
        }
        let difference = self.compare_payments_and_histories(&model, &ids).await?;
        Ok(difference.map(|description| Difference { step: sequence.0.len(), description }))
    }

    /// Empties the carts, and cancels the unpaid orders of earlier sequences.
    async fn clear(&self) -> anyhow::Result<()> {
        for token in &self.tokens[..USERS] {
            self.send(self.rest.delete("/cart").bearer(token)).await?;
            let (_, page) =
                self.send(self.rest.get("/orders?status=pending&limit=100").bearer(token)).await?;
            for order in page["items"].as_array().context("a page without items")? {
                let cancel = format!("/orders/{}/cancel", text_field(order, "id")?);
                self.send(self.rest.post(&cancel).bearer(token).body(json!({}))).await?;
            }
        }
        Ok(())
    }

    async fn create_products(&self) -> anyhow::Result<Ids> {
        let mut ids =
            Ids { run: format!("{:016x}", rand::random::<u64>()), products: Vec::new(), orders: Vec::new() };
        for number in 0..PRODUCTS {
            let sku = format!("M-{}-{number}", ids.run);
            let product = json!({"sku": sku, "name": sku, "price": PRICE, "stock": STOCK});
            let create = self.rest.post("/products").bearer(&self.tokens[ADMIN]).idempotency_key(&sku);
            let (_, created) = self.send(create.body(product)).await?;
            ids.products.push(created["id"].as_i64().context("a product without an id")?);
        }
        Ok(ids)
    }

    /// Sends one step, and compares the response.
    async fn check(
        &mut self,
        model: &mut Model,
        ids: &mut Ids,
        step: &Step,
    ) -> anyhow::Result<Option<String>> {
        let request = self.request(model, ids, step);
        let expected = model.apply(step);
        let (status, mut body) = self.send(request).await?;
        if let Some(problem) = body.as_object_mut() {
            // Each response has an id of its own.
            problem.remove("request_id");
        }
        let code = body["code"].as_str().unwrap_or_default();
        if (status.as_u16(), code) != (expected.status, expected.code) {
            let Expected { status: expected_status, code: expected_code, .. } = expected;
            return Ok(Some(format!("{status} {body}, not {expected_status} {expected_code}")));
        }
        let kind = if matches!(expected.outcome, Outcome::Replay(_)) {
            REPLAY
        } else if expected.code.is_empty() {
            step.name()
        } else {
            expected.code
        };
        *self.counts.entry(kind).or_default() += 1;
        if let Some(entry) = expected.stored {
            model.store(entry, &body);
        }
        Ok(match expected.outcome {
            Outcome::Empty => None,
            Outcome::Refused | Outcome::Products => self.compare_products(model, ids).await?,
            Outcome::Replay(stored) => (stored != body).then(|| format!("{body} is not the stored {stored}")),
            Outcome::Cart(user) => difference("the cart", &model.cart(user), &cart_of(&body, ids)),
            Outcome::NewOrder(order) => {
                ids.orders.push(text_field(&body, "id")?);
                self.compare_order(model, ids, order, &body).await?
            }
            Outcome::Order(order) => self.compare_order(model, ids, order, &body).await?,
            Outcome::Orders(user) => {
                difference("the list of orders", &model.orders(user), &orders_of(&body, ids))
            }
            Outcome::SignedOut(user) => self.sign_in_again(user).await?,
        })
    }

    fn request(&self, model: &Model, ids: &Ids, step: &Step) -> Request<'a> {
        let key = |request: Request<'a>, number: &Option<u8>| {
            with_key(request, number.map(|number| format!("{}-{number}", ids.run)).as_deref())
        };
        let rest = self.rest;
        let (user, request) = match step {
            Step::AddToCart { user, product, quantity, key: number } => {
                let line = json!({"product_id": ids.products[*product], "quantity": quantity});
                (user, key(rest.post("/cart/items").body(line), number))
            }
            Step::SetCartLine { user, product, quantity } => {
                let path = format!("/cart/items/{}", ids.products[*product]);
                (user, rest.put(&path).body(json!({"quantity": quantity})))
            }
            Step::ClearCart { user } => (user, rest.delete("/cart")),
            Step::ReadCart { user } => (user, rest.get("/cart")),
            Step::PlaceOrder { user, items, total, key: number } => {
                let mut order = json!({"shipping_address": address()});
                if let Some(items) = items {
                    let line = |(product, quantity): &(usize, i64)| json!({"product_id": ids.products[*product], "quantity": quantity});
                    order["items"] = items.iter().map(line).collect();
                }
                match total {
                    ExpectedTotal::None => {}
                    ExpectedTotal::Right => {
                        order["expected_total"] = model.total(*user, items.as_deref()).into();
                    }
                    ExpectedTotal::Wrong => {
                        order["expected_total"] = (model.total(*user, items.as_deref()) + 1).into();
                    }
                }
                (user, key(rest.post("/orders").body(order), number))
            }
            Step::Pay { user, order, token, key: number } => {
                let path = format!("/orders/{}/pay", ids.order(*order));
                (user, key(rest.post(&path).body(json!({"payment_token": token})), number))
            }
            Step::Cancel { user, order, reason, key: number } => {
                let path = format!("/orders/{}/cancel", ids.order(*order));
                let body = reason.map_or_else(|| json!({}), |reason| json!({"reason": reason}));
                (user, key(rest.post(&path).body(body), number))
            }
            Step::Ship { user, order, number: tracking_number, key: number } => {
                let path = format!("/orders/{}/ship", ids.order(*order));
                let shipment = json!({"carrier": "Post", "tracking_number": tracking_number});
                (user, key(rest.post(&path).body(shipment), number))
            }
            Step::Complete { user, order, key: number } => {
                (user, key(rest.post(&format!("/orders/{}/complete", ids.order(*order))), number))
            }
            Step::ReadOrder { user, order } => (user, rest.get(&format!("/orders/{}", ids.order(*order)))),
            Step::ListOrders { user } => (user, rest.get("/orders?limit=100")),
            Step::SignInAgain { user } => (user, rest.post("/auth/logout")),
            Step::AdjustStock { product, delta, key: number } => {
                let path = format!("/products/{}/stock", ids.products[*product]);
                (&ADMIN, key(rest.post(&path).body(json!({"delta": delta, "reason": "model"})), number))
            }
            Step::SetPrice { product, price } => {
                let path = format!("/products/{}", ids.products[*product]);
                (&ADMIN, rest.patch(&path).body(json!({"price": price})))
            }
            Step::Archive { product } => {
                (&ADMIN, rest.delete(&format!("/products/{}", ids.products[*product])))
            }
            Step::ReadProduct { product } => (&0, rest.get(&format!("/products/{}", ids.products[*product]))),
        };
        request.bearer(&self.tokens[*user])
    }

    /// Waits until the former token is refused, and signs in again.
    async fn sign_in_again(&mut self, user: usize) -> anyhow::Result<Option<String>> {
        let expected = json!("session_revoked");
        let refused =
            self.wait_for(user, "/cart", "the code", &expected, |body| body["code"].clone()).await?;
        let tokens = sign_in(self.rest, &self.users[user]).await?;
        self.tokens[user] = text_field(&tokens, "access_token")?;
        Ok(refused)
    }

    /// Compares an order, and the stock of all products, which a step may have changed.
    async fn compare_order(
        &self,
        model: &Model,
        ids: &Ids,
        order: usize,
        body: &Value,
    ) -> anyhow::Result<Option<String>> {
        match difference("the order", &model.order(order), &order_of(body, ids)) {
            None => self.compare_products(model, ids).await,
            difference => Ok(difference),
        }
    }

    /// Compares all products. Units return a moment after the response of a cancellation.
    async fn compare_products(&self, model: &Model, ids: &Ids) -> anyhow::Result<Option<String>> {
        let read =
            |body: &Value| json!({"price": body["price"], "stock": body["stock"], "status": body["status"]});
        for (number, id) in ids.products.iter().enumerate() {
            // Only admins see an archived product; customers read through the cache.
            let reader = if model.is_archived(number) { ADMIN } else { 0 };
            let (path, expected) = (format!("/products/{id}"), model.product(number));
            if let Some(difference) = self.wait_for(reader, &path, "the product", &expected, read).await? {
                return Ok(Some(difference));
            }
        }
        Ok(None)
    }

    /// Compares the payments and the histories of all orders.
    async fn compare_payments_and_histories(
        &self,
        model: &Model,
        ids: &Ids,
    ) -> anyhow::Result<Option<String>> {
        let payment = |body: &Value| body["payment"]["status"].clone();
        let history = |body: &Value| {
            let items = body["items"].as_array().into_iter().flatten();
            items.map(|event| event["status"].clone()).collect()
        };
        for (number, id) in ids.orders.iter().enumerate() {
            let (order, events) = (format!("/orders/{id}"), format!("/orders/{id}/events"));
            let (paid, steps) = (json!(model.payment(number)), json!(model.history(number)));
            if let Some(difference) = self.wait_for(ADMIN, &order, "the payment", &paid, payment).await? {
                return Ok(Some(format!("order {number}: {difference}")));
            }
            if let Some(difference) = self.wait_for(ADMIN, &events, "the history", &steps, history).await? {
                return Ok(Some(format!("order {number}: {difference}")));
            }
        }
        Ok(None)
    }

    /// Reads a resource as a user until it is as expected. Returns the last difference.
    async fn wait_for(
        &self,
        user: usize,
        path: &str,
        name: &str,
        expected: &Value,
        read: impl Fn(&Value) -> Value,
    ) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + CONSISTENCY_TIMEOUT;
        loop {
            let (_, body) = self.send(self.rest.get(path).bearer(&self.tokens[user])).await?;
            let difference = difference(name, expected, &read(&body));
            if difference.is_none() || Instant::now() > deadline {
                return Ok(difference);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a request, and retries it while the shop is busy.
    async fn send(&self, request: Request<'_>) -> anyhow::Result<(StatusCode, Value)> {
        let deadline = Instant::now() + RETRY_TIMEOUT;
        loop {
            let (status, body) = request.send_once().await?;
            if !is_transient(status, &body) {
                return Ok((status, body));
            }
            // Without a key, a request that a timeout ended may have had its effect.
            if !request.is_repeatable() || Instant::now() > deadline {
                return Err(OutcomeUnknown(format!("{}: {status} {body}", request.label())).into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Describes a difference between two values.
fn difference(name: &str, expected: &Value, actual: &Value) -> Option<String> {
    (expected != actual).then(|| format!("{name} is {actual}, not {expected}"))
}

/// Returns the quantities and the total of a cart.
fn cart_of(body: &Value, ids: &Ids) -> Value {
    json!({"lines": lines_of(body, ids), "total": body["total"]})
}

fn order_of(body: &Value, ids: &Ids) -> Value {
    json!({
        "status": body["status"],
        "lines": lines_of(body, ids),
        "total": body["total"],
        "cancel_reason": body["cancel_reason"],
        "tracking_number": body["shipment"]["tracking_number"],
    })
}

/// Returns number and status of the listed orders of this sequence.
fn orders_of(body: &Value, ids: &Ids) -> Value {
    let items = body["items"].as_array().into_iter().flatten();
    let number = |order: &Value| ids.orders.iter().position(|id| Some(id.as_str()) == order["id"].as_str());
    items.filter_map(|order| Some(json!([number(order)?, order["status"]]))).collect()
}

/// Returns product, quantity and price of each line, by product.
fn lines_of(body: &Value, ids: &Ids) -> Vec<(usize, i64, i64)> {
    let number = |value: &Value| value.as_i64().unwrap_or(-1);
    let items = body["items"].as_array().into_iter().flatten();
    let mut lines: Vec<_> = items
        .map(|line| {
            (ids.product_number(&line["product_id"]), number(&line["quantity"]), number(&line["unit_price"]))
        })
        .collect();
    lines.sort_unstable();
    lines
}
