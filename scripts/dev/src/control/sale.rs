//! A flash sale: 300 buyers order the last 100 units of a product at once, over all gateways, and pay. Each buyer repeats a
//! request until its outcome is known.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Control,
    shop::Gateways,
    view::{LedgerView, MAX_SAMPLES, Phase, SaleView},
};
use crate::{demo::address, rest::Rest};

/// The beginning of the product's article number.
const SKU_PREFIX: &str = "FLASH-";
/// The stock of the product.
const UNITS: i64 = 100;
/// Minor units.
const PRICE: i64 = 2_500;
/// The interval of the points of the plot.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Bounds the time in which a buyer pays after the order. Milliseconds.
const MAX_PAY_DELAY_MS: u64 = 1_500;
/// Bounds the time until the ledger has all sales: the shop books them after the payments.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const SETTLE_INTERVAL: Duration = Duration::from_millis(200);
const LEDGER_PAGE_SIZE: usize = 100;

/// The outcome of a buyer's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Paid,
    Refused,
}

/// Starts a sale, and reports whether none was running.
pub fn start(control: &Control) -> bool {
    let has_started = control.0.view.send_if_modified(|view| {
        let is_idle = view.sale.as_ref().is_none_or(|sale| sale.phase.is_over());
        if is_idle {
            view.sale = Some(SaleView {
                phase: Phase::Running,
                product: String::new(),
                supplied: UNITS,
                buyers: 0,
                ordered: 0,
                refused: 0,
                paid: 0,
                left: UNITS,
                retries: 0,
                samples: Vec::new(),
                ledger: None,
                error: None,
            });
        }
        is_idle
    });
    if has_started {
        let sale = Sale { control: control.clone(), gateways: control.0.shop.connect() };
        tokio::spawn(async move {
            if let Err(error) = sale.run().await {
                sale.update(|view| (view.phase, view.error) = (Phase::Failed, Some(format!("{error:#}"))));
            }
        });
    }
    has_started
}

#[derive(Debug)]
struct Sale {
    control: Control,
    gateways: Gateways,
}

impl Sale {
    async fn run(&self) -> anyhow::Result<()> {
        let inner = &self.control.0;
        let admin = inner.accounts.admin().await?;
        let buyers = inner.accounts.buyers(&inner.view).await?;
        let product = self.create_product(&admin).await?;
        let id = product["id"].as_i64().context("a product without an id")?;
        self.update(|view| {
            product["name"].as_str().unwrap_or_default().clone_into(&mut view.product);
            view.buyers = buyers.len();
        });
        let started = Instant::now();
        let purchases = buyers.iter().enumerate().map(|(number, buyer)| self.purchase(number, buyer, id));
        let outcomes = tokio::select! {
            outcomes = try_join_all(purchases) => outcomes?,
            never = self.sample(started, id) => match never {},
        };
        let paid = outcomes.iter().filter(|outcome| **outcome == Outcome::Paid).count();
        self.update(|view| view.phase = Phase::Settling);
        let ledger = self.settle(&admin, id, i64::try_from(paid)?).await?;
        self.take_sample(started, ledger.available);
        self.update(|view| (view.phase, view.ledger) = (Phase::Done, Some(ledger)));
        Ok(())
    }

    /// Adds the product of the sale, and archives those of earlier sales.
    async fn create_product(&self, admin: &str) -> anyhow::Result<Value> {
        let page = format!("/products/search?limit={LEDGER_PAGE_SIZE}&q={SKU_PREFIX}");
        let earlier = self.gateways.expect(0, |rest| rest.get(&page).bearer(admin)).await?;
        let items = earlier["items"].as_array().into_iter().flatten();
        let is_earlier =
            |product: &&Value| product["sku"].as_str().is_some_and(|sku| sku.starts_with(SKU_PREFIX));
        for id in items.filter(is_earlier).filter_map(|product| product["id"].as_i64()) {
            let path = format!("/products/{id}");
            self.gateways.expect(0, |rest| rest.delete(&path).bearer(admin)).await?;
        }
        let number: u32 = rand::rng().random();
        let key = Uuid::new_v4().to_string();
        let body = json!({
            "sku": format!("{SKU_PREFIX}{number:08x}"),
            "name": "Alder Stoneware Mug, limited edition",
            "price": PRICE,
            "stock": UNITS,
            "attributes": {"brand": "Alder", "material": "Stoneware", "colour": "Mustard"},
        });
        let create =
            |rest| Rest::post(rest, "/products").bearer(admin).idempotency_key(&key).body(body.clone());
        self.gateways.expect(0, create).await
    }

    /// Orders one unit, and pays for it.
    async fn purchase(&self, number: usize, buyer: &str, product: i64) -> anyhow::Result<Outcome> {
        let (order_key, pay_key) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let body = json!({"items": [{"product_id": product, "quantity": 1}], "shipping_address": address()});
        let order =
            |rest| Rest::post(rest, "/orders").bearer(buyer).idempotency_key(&order_key).body(body.clone());
        let (status, response) = self.gateways.send(number, order).await?;
        if response["code"] == "out_of_stock" {
            self.update(|view| view.refused += 1);
            return Ok(Outcome::Refused);
        }
        ensure!(status.is_success(), "an order: {status} {}", response["code"]);
        self.update(|view| view.ordered += 1);
        let pay_delay = Duration::from_millis(rand::rng().random_range(0..MAX_PAY_DELAY_MS));
        sleep(pay_delay).await;
        let path = format!("/orders/{}/pay", response["id"].as_str().context("an order without an id")?);
        let body = json!({"payment_token": "tok_ok"});
        let pay = |rest| Rest::post(rest, &path).bearer(buyer).idempotency_key(&pay_key).body(body.clone());
        self.gateways.expect(number + 1, pay).await?;
        self.update(|view| view.paid += 1);
        Ok(Outcome::Paid)
    }

    /// Takes a point of the plot at each interval, for ever. Each gateway in turn is asked for the stock.
    async fn sample(&self, started: Instant, product: i64) -> Infallible {
        let path = format!("/products/{product}");
        for gateway in 0.. {
            let product = self.gateways.expect(gateway, |rest| rest.get(&path)).await;
            if let Some(left) = product.ok().and_then(|product| product["stock"].as_i64()) {
                self.take_sample(started, left);
            }
            sleep(SAMPLE_INTERVAL).await;
        }
        std::future::pending().await
    }

    fn take_sample(&self, started: Instant, left: i64) {
        let at = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let retries = self.gateways.retries();
        self.update(|view| {
            (view.left, view.retries) = (left, retries);
            if view.samples.len() < MAX_SAMPLES {
                view.samples.push((at, view.ordered, view.refused, view.paid, left));
            }
        });
    }

    /// Reads the ledger until it has a sale for each payment, and returns its sums.
    async fn settle(&self, admin: &str, product: i64, paid: i64) -> anyhow::Result<LedgerView> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let ledger = self.read_ledger(admin, product).await?;
            if ledger.sold >= paid && ledger.held == 0 || Instant::now() > deadline {
                return Ok(ledger);
            }
            sleep(SETTLE_INTERVAL).await;
        }
    }

    async fn read_ledger(&self, admin: &str, product: i64) -> anyhow::Result<LedgerView> {
        let mut changes = Vec::new();
        let mut query = String::new();
        loop {
            let path = format!("/admin/products/{product}/stock-changes?limit={LEDGER_PAGE_SIZE}{query}");
            let page = self.gateways.expect(0, |rest| rest.get(&path).bearer(admin)).await?;
            changes.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["next_cursor"].as_str() {
                Some(cursor) => query = format!("&cursor={cursor}"),
                None => return Ok(sum_ledger(&changes)),
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut SaleView)) {
        self.control.0.view.send_modify(|view| {
            if let Some(sale) = &mut view.sale {
                change(sale);
            }
        });
    }
}

/// Sums the changes of a stock, the newest first.
fn sum_ledger(changes: &[Value]) -> LedgerView {
    let sum = |kind: &str| {
        let of_kind = changes.iter().filter(|change| change["kind"] == kind);
        of_kind.filter_map(|change| change["quantity"].as_i64()).sum::<i64>()
    };
    let orders: BTreeSet<&str> = changes.iter().filter_map(|change| change["order_id"].as_str()).collect();
    // Holds and sales are negative: a hold takes from the available units, a sale from the held ones.
    LedgerView {
        supplied: sum("supply") + sum("adjustment"),
        available: changes.first().and_then(|change| change["available"].as_i64()).unwrap_or_default(),
        held: sum("sale") - sum("hold") - sum("release"),
        sold: -sum("sale") - sum("return"),
        orders: orders.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_balances_for_held_sold_released_and_returned_units() {
        let change = |kind: &str, quantity: i64, available: i64, order: Option<&str>| json!({"kind": kind, "quantity": quantity, "available": available, "order_id": order});
        // The newest first: `a` was sold and returned, `b` sold, `c` released, `d` is held.
        let changes = [
            change("hold", -1, 8, Some("d")),
            change("return", 1, 9, Some("a")),
            change("release", 1, 8, Some("c")),
            change("sale", -1, 7, Some("b")),
            change("sale", -1, 7, Some("a")),
            change("hold", -1, 7, Some("c")),
            change("hold", -1, 8, Some("b")),
            change("hold", -1, 9, Some("a")),
            change("supply", 10, 10, None),
        ];
        let sums = sum_ledger(&changes);
        assert_eq!(sums, LedgerView { supplied: 10, available: 8, held: 1, sold: 1, orders: 4 });
        assert_eq!(sums.supplied, sums.available + sums.held + sums.sold);
    }
}
