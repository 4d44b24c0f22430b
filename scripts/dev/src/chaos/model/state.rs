//! The model of the shop: carts, orders, stock and idempotency keys, as `docs/API.md` describes them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::sequence::{ADMIN, ExpectedTotal, PRODUCTS, Step, USERS};

/// The maximum number of a user's unpaid orders: few, so that sequences reach it.
pub const MAX_UNPAID_ORDERS: usize = 3;
const MAX_QUANTITY: i64 = 1000;

/// The scope of a key: the user, the operation, its object, and the key.
type KeyScope = (usize, &'static str, usize, u8);

/// The response that the model predicts.
#[derive(Debug)]
pub struct Expected {
    pub status: u16,
    /// The code of a problem, or an empty text.
    pub code: &'static str,
    pub outcome: Outcome,
    /// The key under which the shop stores the response, with the content of the request.
    pub stored: Option<(KeyScope, String)>,
}

/// The content of a response that the model predicts.
#[derive(Debug)]
pub enum Outcome {
    /// The response has no content.
    Empty,
    /// The request changed nothing.
    Refused,
    Replay(Value),
    Cart(usize),
    NewOrder(usize),
    Order(usize),
    Products,
    Orders(usize),
    SignedOut(usize),
}

#[derive(Clone, Debug)]
struct Product {
    price: i64,
    stock: i64,
    is_archived: bool,
}

#[derive(Clone, Debug)]
struct Order {
    user: usize,
    /// Quantity and price by product.
    lines: BTreeMap<usize, (i64, i64)>,
    history: Vec<&'static str>,
    cancel_reason: Option<&'static str>,
    tracking_number: Option<&'static str>,
    is_refunded: bool,
}

impl Order {
    fn status(&self) -> &'static str {
        self.history.last().copied().unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    products: Vec<Product>,
    carts: Vec<BTreeMap<usize, i64>>,
    orders: Vec<Order>,
    /// The content of the request and the response of each key.
    keys: BTreeMap<KeyScope, (String, u16, Value)>,
}

/// A refusal: status and code.
type Refusal = (u16, &'static str);

const NOT_FOUND: Refusal = (404, "not_found");
const FORBIDDEN: Refusal = (403, "forbidden");
const INVALID_TRANSITION: Refusal = (409, "invalid_transition");
const VALIDATION_FAILED: Refusal = (422, "validation_failed");
const UNAVAILABLE_PRODUCT: Refusal = (409, "product_unavailable");
const OUT_OF_STOCK: Refusal = (409, "out_of_stock");

impl Model {
    pub fn new(price: i64, stock: i64) -> Self {
        Self {
            products: (0..PRODUCTS).map(|_| Product { price, stock, is_archived: false }).collect(),
            carts: vec![BTreeMap::new(); USERS],
            orders: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Applies a step, and returns the response that the shop must give.
    pub fn apply(&mut self, step: &Step) -> Expected {
        let keyed = self.key_of(step);
        if let Some((scope, content)) = &keyed
            && let Some((first, status, response)) = self.keys.get(scope)
        {
            let (status, code, outcome) = if first == content {
                let code = if *status == 402 { "payment_declined" } else { "" };
                (*status, code, Outcome::Replay(response.clone()))
            } else {
                (422, "idempotency_key_reused", Outcome::Refused)
            };
            return Expected { status, code, outcome, stored: None };
        }
        match self.run(step) {
            Ok((status, outcome)) => Expected { status, code: "", outcome, stored: keyed },
            Err((status, code)) => {
                // A refusal without an effect is not stored; a decline is.
                let stored = keyed.filter(|_| status == 402);
                Expected { status, code, outcome: Outcome::Refused, stored }
            }
        }
    }

    /// Stores a response under its key.
    pub fn store(&mut self, (scope, content): (KeyScope, String), response: &Value) {
        let status = match (scope.1, response["code"].as_str()) {
            ("order", _) => 201,
            (_, Some(_)) => 402,
            _ => 200,
        };
        self.keys.insert(scope, (content, status, response.clone()));
    }

    /// Returns the scope of the key that counts for a step, and the content of the request. A step of an order that the
    /// user may not see has none: it is refused before.
    fn key_of(&self, step: &Step) -> Option<(KeyScope, String)> {
        let (user, operation, object, key, content) = match step {
            Step::AddToCart { user, product, quantity, key } => {
                (*user, "cart", 0, *key, format!("{product} {quantity}"))
            }
            Step::PlaceOrder { user, items, total, key } => {
                let lines = items.as_ref().map(|items| merge(items));
                if lines.as_ref().is_some_and(|lines| lines.values().any(|quantity| *quantity > MAX_QUANTITY))
                {
                    return None;
                }
                let total = match total {
                    ExpectedTotal::None => None,
                    ExpectedTotal::Right => Some(self.total(*user, items.as_deref())),
                    ExpectedTotal::Wrong => Some(self.total(*user, items.as_deref()) + 1),
                };
                (*user, "order", 0, *key, format!("{lines:?} {total:?}"))
            }
            Step::Pay { user, order, token, key } => {
                self.orders.get(*order).filter(|order| order.user == *user)?;
                (*user, "pay", *order, *key, (*token).to_owned())
            }
            Step::Cancel { user, order, reason, key } => {
                self.visible(*user, *order).ok()?;
                (*user, "cancel", *order, *key, format!("{reason:?}"))
            }
            Step::Ship { user, order, number, key } => {
                self.visible(*user, *order).ok().filter(|()| *user == ADMIN)?;
                (*user, "ship", *order, *key, (*number).to_owned())
            }
            Step::Complete { user, order, key } => {
                self.visible(*user, *order).ok()?;
                (*user, "complete", *order, *key, String::new())
            }
            Step::AdjustStock { product, delta, key } if *delta != 0 => {
                (ADMIN, "stock", 0, *key, format!("{product} {delta}"))
            }
            Step::AdjustStock { .. }
            | Step::SetCartLine { .. }
            | Step::ClearCart { .. }
            | Step::ReadCart { .. }
            | Step::ReadOrder { .. }
            | Step::ListOrders { .. }
            | Step::SignInAgain { .. }
            | Step::SetPrice { .. }
            | Step::Archive { .. }
            | Step::ReadProduct { .. } => return None,
        };
        Some(((user, operation, object, key?), content))
    }

    fn run(&mut self, step: &Step) -> Result<(u16, Outcome), Refusal> {
        match step {
            Step::AddToCart { user, product, quantity, .. } => {
                self.change_cart(*user, *product, |before| before + quantity)
            }
            Step::SetCartLine { user, product, quantity } => self.change_cart(*user, *product, |_| *quantity),
            Step::ClearCart { user } => {
                self.carts[*user].clear();
                Ok((204, Outcome::Empty))
            }
            Step::ReadCart { user } => Ok((200, Outcome::Cart(*user))),
            Step::PlaceOrder { user, items, total, .. } => self.place(*user, items.as_deref(), *total),
            Step::Pay { user, order, token, .. } => self.pay(*user, *order, token),
            Step::Cancel { user, order, reason, .. } => self.cancel(*user, *order, *reason),
            Step::Ship { user, order, number, .. } => self.ship(*user, *order, number),
            Step::Complete { user, order, .. } => {
                self.visible(*user, *order)?;
                match self.orders[*order].status() {
                    "completed" => {}
                    "shipped" => self.orders[*order].history.push("completed"),
                    _ => return Err(INVALID_TRANSITION),
                }
                Ok((200, Outcome::Order(*order)))
            }
            Step::ReadOrder { user, order } => {
                self.visible(*user, *order)?;
                Ok((200, Outcome::Order(*order)))
            }
            Step::ListOrders { user } => Ok((200, Outcome::Orders(*user))),
            Step::SignInAgain { user } => Ok((204, Outcome::SignedOut(*user))),
            Step::AdjustStock { product, delta, .. } => {
                if *delta == 0 {
                    return Err(VALIDATION_FAILED);
                }
                let stock = self.products[*product].stock + delta;
                if stock < 0 {
                    return Err(OUT_OF_STOCK);
                }
                self.products[*product].stock = stock;
                Ok((200, Outcome::Products))
            }
            Step::SetPrice { product, price } => {
                self.products[*product].price = *price;
                Ok((200, Outcome::Products))
            }
            Step::Archive { product } => {
                self.products[*product].is_archived = true;
                Ok((204, Outcome::Products))
            }
            Step::ReadProduct { product } if self.products[*product].is_archived => Err(NOT_FOUND),
            Step::ReadProduct { .. } => Ok((200, Outcome::Products)),
        }
    }

    fn change_cart(
        &mut self,
        user: usize,
        product: usize,
        change: impl FnOnce(i64) -> i64,
    ) -> Result<(u16, Outcome), Refusal> {
        let before = self.carts[user].get(&product).copied().unwrap_or_default();
        let after = change(before);
        if after > 0 && self.products[product].is_archived {
            return Err(UNAVAILABLE_PRODUCT);
        }
        if after > MAX_QUANTITY {
            return Err(VALIDATION_FAILED);
        }
        if after == 0 {
            self.carts[user].remove(&product)
        } else {
            self.carts[user].insert(product, after)
        };
        Ok((200, Outcome::Cart(user)))
    }

    fn place(
        &mut self,
        user: usize,
        items: Option<&[(usize, i64)]>,
        total: ExpectedTotal,
    ) -> Result<(u16, Outcome), Refusal> {
        let lines = items.map_or_else(|| self.carts[user].clone(), merge);
        if lines.is_empty() {
            return Err((409, "cart_empty"));
        }
        if lines.values().any(|quantity| *quantity > MAX_QUANTITY) {
            return Err(VALIDATION_FAILED);
        }
        let is_unpaid = |order: &&Order| order.user == user && order.status() == "pending";
        if self.orders.iter().filter(is_unpaid).count() == MAX_UNPAID_ORDERS {
            return Err((409, "too_many_unpaid_orders"));
        }
        if lines.keys().any(|product| self.products[*product].is_archived) {
            return Err(UNAVAILABLE_PRODUCT);
        }
        if lines.iter().any(|(product, quantity)| self.products[*product].stock < *quantity) {
            return Err(OUT_OF_STOCK);
        }
        if matches!(total, ExpectedTotal::Wrong) {
            return Err((409, "price_changed"));
        }
        for (product, quantity) in &lines {
            self.products[*product].stock -= quantity;
        }
        if items.is_none() {
            self.carts[user].clear();
        }
        let priced =
            |(product, quantity): (&usize, &i64)| (*product, (*quantity, self.products[*product].price));
        self.orders.push(Order {
            user,
            lines: lines.iter().map(priced).collect(),
            history: vec!["pending"],
            cancel_reason: None,
            tracking_number: None,
            is_refunded: false,
        });
        Ok((201, Outcome::NewOrder(self.orders.len() - 1)))
    }

    fn pay(&mut self, user: usize, number: usize, token: &str) -> Result<(u16, Outcome), Refusal> {
        self.visible(user, number)?;
        let order = &mut self.orders[number];
        if order.user != user {
            return Err(FORBIDDEN);
        }
        if order.status() != "pending" {
            return Err(INVALID_TRANSITION);
        }
        if token != "tok_ok" {
            return Err((402, "payment_declined"));
        }
        order.history.push("paid");
        Ok((200, Outcome::Order(number)))
    }

    fn cancel(
        &mut self,
        user: usize,
        number: usize,
        reason: Option<&'static str>,
    ) -> Result<(u16, Outcome), Refusal> {
        self.visible(user, number)?;
        let order = &mut self.orders[number];
        match order.status() {
            "cancelled" if order.cancel_reason == reason => return Ok((200, Outcome::Order(number))),
            "pending" => {}
            "paid" if user == ADMIN => order.is_refunded = true,
            _ => return Err(INVALID_TRANSITION),
        }
        order.history.push("cancelled");
        order.cancel_reason = reason;
        for (product, (quantity, _)) in &order.lines {
            self.products[*product].stock += quantity;
        }
        Ok((200, Outcome::Order(number)))
    }

    fn ship(
        &mut self,
        user: usize,
        number: usize,
        tracking: &'static str,
    ) -> Result<(u16, Outcome), Refusal> {
        if user != ADMIN {
            return Err(FORBIDDEN);
        }
        self.visible(user, number)?;
        let order = &mut self.orders[number];
        match order.status() {
            "shipped" | "completed" if order.tracking_number == Some(tracking) => {}
            "paid" => {
                order.history.push("shipped");
                order.tracking_number = Some(tracking);
            }
            _ => return Err(INVALID_TRANSITION),
        }
        Ok((200, Outcome::Order(number)))
    }

    /// Refuses an order that does not exist for the user.
    fn visible(&self, user: usize, order: usize) -> Result<(), Refusal> {
        let order = self.orders.get(order).filter(|order| user == ADMIN || order.user == user);
        order.map(|_| ()).ok_or(NOT_FOUND)
    }

    /// Returns the current total of lines, or of the cart.
    pub fn total(&self, user: usize, items: Option<&[(usize, i64)]>) -> i64 {
        let lines = items.map_or_else(|| self.carts[user].clone(), merge);
        lines.iter().map(|(product, quantity)| self.products[*product].price * quantity).sum()
    }

    /// Returns the lines and the total of a cart, at current prices.
    pub fn cart(&self, user: usize) -> Value {
        let line = |(product, quantity): (&usize, &i64)| (*product, *quantity, self.products[*product].price);
        let lines: Vec<_> = self.carts[user].iter().map(line).collect();
        json!({"lines": lines, "total": self.total(user, None)})
    }

    pub fn order(&self, number: usize) -> Value {
        let order = &self.orders[number];
        let lines: Vec<_> =
            order.lines.iter().map(|(product, (quantity, price))| (product, quantity, price)).collect();
        json!({
            "status": order.status(),
            "lines": lines,
            "total": order.lines.values().map(|(quantity, price)| quantity * price).sum::<i64>(),
            "cancel_reason": order.cancel_reason,
            "tracking_number": order.tracking_number,
        })
    }

    /// Returns number and status of each order of a user, newest first.
    pub fn orders(&self, user: usize) -> Value {
        let own = self.orders.iter().enumerate().rev().filter(|(_, order)| order.user == user);
        own.map(|(number, order)| json!([number, order.status()])).collect()
    }

    pub fn product(&self, number: usize) -> Value {
        let product = &self.products[number];
        let status = if product.is_archived { "archived" } else { "active" };
        json!({"price": product.price, "stock": product.stock, "status": status})
    }

    pub fn is_archived(&self, product: usize) -> bool {
        self.products[product].is_archived
    }

    pub fn history(&self, order: usize) -> &[&'static str] {
        &self.orders[order].history
    }

    /// Returns the final status of the payment of an order.
    pub fn payment(&self, order: usize) -> &'static str {
        let order = &self.orders[order];
        match (order.is_refunded, order.history.contains(&"paid")) {
            (true, _) => "refunded",
            (false, true) => "paid",
            (false, false) => "unpaid",
        }
    }
}

/// Merges lines of one product.
fn merge(items: &[(usize, i64)]) -> BTreeMap<usize, i64> {
    let mut lines = BTreeMap::new();
    for (product, quantity) in items {
        *lines.entry(*product).or_default() += quantity;
    }
    lines
}
