//! The rules of stock: the allocation among concurrent orders, and the states of a hold. This module depends
//! on neither the database nor gRPC.

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::validation::{ValidationError, single_line};

/// The available quantity of a product: 0..10^9 if an admin sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock(i64);

impl Stock {
    pub const MAX: i64 = 1_000_000_000;

    pub fn parse(stock: i64) -> Result<Self, ValidationError> {
        if (0..=Self::MAX).contains(&stock) { Ok(Self(stock)) } else { Err("must be 0 to 10^9") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A correction of a stock by an admin; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(i64);

impl Delta {
    pub fn parse(delta: i64) -> Result<Self, ValidationError> {
        if delta != 0 && (-Stock::MAX..=Stock::MAX).contains(&delta) {
            Ok(Self(delta))
        } else {
            Err("must be -10^9 to 10^9 and not 0")
        }
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// Returns the stock after the correction.
    pub fn apply(self, available: i64) -> Result<Stock, AdjustError> {
        match available.saturating_add(self.0) {
            ..0 => Err(AdjustError::BelowZero),
            stock @ 0..=Stock::MAX => Ok(Stock(stock)),
            _ => Err(AdjustError::TooMuch),
        }
    }
}

/// The reason why a correction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustError {
    BelowZero,
    TooMuch,
}

/// The reason of a correction, as the ledger records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    const MAX_LEN: usize = 500;

    pub fn parse(reason: String) -> Result<Self, ValidationError> {
        single_line(reason, Self::MAX_LEN)
            .map(Self)
            .ok_or("must be one line of 1 to 500 characters, not blank")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The kind of a stock movement in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovementKind {
    Supply,
    Hold,
    Release,
    Sale,
    Return,
    Adjustment,
}

impl MovementKind {
    /// Returns the stored form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Supply => "supply",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Sale => "sale",
            Self::Return => "return",
            Self::Adjustment => "adjustment",
        }
    }

    /// Parses the stored form.
    pub fn from_stored(kind: &str) -> Self {
        match kind {
            "supply" => Self::Supply,
            "hold" => Self::Hold,
            "release" => Self::Release,
            "sale" => Self::Sale,
            "return" => Self::Return,
            _ => Self::Adjustment,
        }
    }

    /// Returns the units that a change of `quantity` adds to the available stock: a sale takes held units alone.
    pub fn available_units(self, quantity: i64) -> i64 {
        match self {
            Self::Sale => 0,
            Self::Supply | Self::Hold | Self::Release | Self::Return | Self::Adjustment => quantity,
        }
    }
}

/// One product of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub product_id: i64,
    pub quantity: i64,
}

/// The lines of a hold: each product once, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldLines(Vec<Line>);

impl HoldLines {
    /// The maximum number of lines of one order.
    pub const MAX_LINES: usize = 100;
    /// The maximum quantity of one product.
    pub const MAX_QUANTITY: i64 = 1000;

    /// Sorts and checks the lines. An error names the field.
    pub fn parse(mut lines: Vec<Line>) -> Result<Self, (String, ValidationError)> {
        if !(1..=Self::MAX_LINES).contains(&lines.len()) {
            return Err(("lines".to_owned(), "must be 1 to 100"));
        }
        if let Some(at) = lines.iter().position(|line| !(1..=Self::MAX_QUANTITY).contains(&line.quantity)) {
            return Err((format!("lines[{at}].quantity"), "must be 1 to 1000"));
        }
        lines.sort_unstable_by_key(|line| line.product_id);
        if lines.windows(2).any(|pair| pair[0].product_id == pair[1].product_id) {
            return Err(("lines".to_owned(), "must name each product once"));
        }
        Ok(Self(lines))
    }

    pub fn lines(&self) -> &[Line] {
        &self.0
    }
}

/// The stock level of a product, from which concurrent orders are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockLevel {
    pub sku: String,
    pub name: String,
    pub price: i64,
    pub active: bool,
    /// The version of the product.
    pub version: i64,
    pub available: i64,
    /// The revision of the stock, which every movement increments.
    pub revision: i64,
}

/// The units that the holds of a batch take from a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    pub product_id: i64,
    pub units: i64,
    /// The version of the product at the decision.
    pub version: i64,
    /// The revision of the stock at the decision, if a refusal depends on it. Otherwise the decisions are valid for
    /// every stock of at least `units`.
    pub revision: Option<i64>,
}

/// One product of a hold, as the catalogue had it when the hold was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLine {
    pub product_id: i64,
    pub sku: String,
    pub name: String,
    pub unit_price: i64,
    pub quantity: i64,
    /// The quantity that is still available, where it was read.
    pub available: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    Held,
    Committed,
    Released,
    Expired,
}

impl HoldState {
    /// Returns the stored form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }

    /// Parses the stored form.
    pub fn from_stored(state: &str) -> Self {
        match state {
            "held" => Self::Held,
            "committed" => Self::Committed,
            "released" => Self::Released,
            _ => Self::Expired,
        }
    }
}

/// The hold of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub state: HoldState,
    pub expires_at: OffsetDateTime,
    /// The highest fencing token of the calls that changed the expiry.
    pub fence: i64,
    /// The client that created the hold.
    pub caller: Option<String>,
    /// In the order of product ids.
    pub lines: Vec<HeldLine>,
}

impl Hold {
    /// Reports whether the order still has its units.
    pub fn is_active(&self, now: OffsetDateTime) -> bool {
        match self.state {
            HoldState::Held => self.expires_at > now,
            HoldState::Committed => true,
            HoldState::Released | HoldState::Expired => false,
        }
    }

    fn matches(&self, lines: &HoldLines) -> bool {
        let held_lines = self.lines.iter().map(|line| (line.product_id, line.quantity));
        held_lines.eq(lines.lines().iter().map(|line| (line.product_id, line.quantity)))
    }
}

/// The reason why the units of an order are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    /// Sold units are returned too.
    OrderCancelled,
    /// Only held units are returned: the release of an order that was never placed may arrive late.
    CheckoutAbandoned,
}

/// A request to hold stock for an order.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    pub order_id: Uuid,
    /// `None` only extends the existing hold.
    pub lines: Option<HoldLines>,
    /// The minimum expiry of the hold, or the maximum if `shorten` is set.
    pub expires_at: OffsetDateTime,
    /// A fencing token for changes of the expiry: a request below the hold's token changes nothing.
    pub fence: i64,
    pub shorten: bool,
    /// The client that makes the request.
    pub caller: Option<String>,
}

/// A line that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub product_id: i64,
    /// `None` if no product has the id.
    pub sku: Option<String>,
    pub requested: i64,
    /// The available quantity.
    pub available: i64,
}

/// The reason why a hold is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldError {
    /// These products are unknown or archived.
    ProductUnavailable(Vec<Shortage>),
    /// The stock of these products is insufficient.
    OutOfStock(Vec<Shortage>),
    /// The hold was released or has expired.
    Expired,
    /// The order has a hold with other lines.
    LinesMismatch,
    /// There is no hold to extend.
    NotFound,
}

/// A batch of hold requests, decided one after the other in memory.
#[derive(Debug)]
pub struct HoldBatch {
    now: OffsetDateTime,
    levels: BTreeMap<i64, StockLevel>,
    holds: BTreeMap<Uuid, Hold>,
    /// Products whose stock was insufficient for a request.
    short: BTreeSet<i64>,
    /// Holds that this batch has created.
    pub created: Vec<Uuid>,
    /// Existing holds with a changed expiry.
    pub extended: Vec<Uuid>,
}

impl HoldBatch {
    /// Creates a batch. `holds` are the existing holds of the orders.
    pub fn new(now: OffsetDateTime, levels: BTreeMap<i64, StockLevel>, holds: BTreeMap<Uuid, Hold>) -> Self {
        Self { now, levels, holds, short: BTreeSet::new(), created: Vec::new(), extended: Vec::new() }
    }

    /// Decides a request: the order gets all its lines or none.
    pub fn decide(&mut self, request: &HoldRequest) -> Result<Hold, HoldError> {
        if let Some(hold) = self.holds.get_mut(&request.order_id) {
            if !hold.is_active(self.now) {
                return Err(HoldError::Expired);
            }
            if request.lines.as_ref().is_some_and(|lines| !hold.matches(lines)) {
                return Err(HoldError::LinesMismatch);
            }
            let expires_at = if request.shorten {
                hold.expires_at.min(request.expires_at)
            } else {
                hold.expires_at.max(request.expires_at)
            };
            let is_changed = hold.expires_at != expires_at || hold.fence < request.fence;
            if hold.state == HoldState::Held && hold.fence <= request.fence && is_changed {
                hold.expires_at = expires_at;
                hold.fence = request.fence;
                if !self.created.contains(&request.order_id) && !self.extended.contains(&request.order_id) {
                    self.extended.push(request.order_id);
                }
            }
            let hold = hold.clone();
            return Ok(self.with_available(hold));
        }
        let lines = request.lines.as_ref().ok_or(HoldError::NotFound)?;
        let lines = self.reserve(lines)?;
        let hold = Hold {
            state: HoldState::Held,
            expires_at: request.expires_at,
            fence: request.fence,
            caller: request.caller.clone(),
            lines,
        };
        self.holds.insert(request.order_id, hold.clone());
        self.created.push(request.order_id);
        Ok(self.with_available(hold))
    }

    fn with_available(&self, mut hold: Hold) -> Hold {
        for line in &mut hold.lines {
            line.available = self.levels.get(&line.product_id).map_or(0, |level| level.available);
        }
        hold
    }

    /// Describes a shortage. The available quantity of an archived product is 0.
    fn shortage(&self, line: &Line) -> Shortage {
        let product = self.levels.get(&line.product_id);
        Shortage {
            product_id: line.product_id,
            sku: product.map(|product| product.sku.clone()),
            requested: line.quantity,
            available: product.filter(|product| product.active).map_or(0, |product| product.available),
        }
    }

    fn reserve(&mut self, lines: &HoldLines) -> Result<Vec<HeldLine>, HoldError> {
        let lines_where = |is_refused: &dyn Fn(&Line) -> bool| -> Vec<Shortage> {
            let refused = lines.lines().iter().filter(|line| is_refused(line));
            refused.map(|line| self.shortage(line)).collect()
        };
        let unavailable =
            lines_where(&|line| self.levels.get(&line.product_id).is_none_or(|level| !level.active));
        if !unavailable.is_empty() {
            return Err(HoldError::ProductUnavailable(unavailable));
        }
        let short = lines_where(&|line| self.levels[&line.product_id].available < line.quantity);
        if !short.is_empty() {
            self.short.extend(short.iter().map(|shortage| shortage.product_id));
            return Err(HoldError::OutOfStock(short));
        }
        let held_lines = lines.lines().iter().filter_map(|line| {
            let level = self.levels.get_mut(&line.product_id)?;
            level.available -= line.quantity;
            Some(HeldLine {
                product_id: line.product_id,
                sku: level.sku.clone(),
                name: level.name.clone(),
                unit_price: level.price,
                quantity: line.quantity,
                available: level.available,
            })
        });
        Ok(held_lines.collect())
    }

    /// Returns these orders with their holds after the decisions.
    pub fn with_holds(&self, order_ids: &[Uuid]) -> Vec<(Uuid, Hold)> {
        order_ids.iter().filter_map(|id| Some((*id, self.holds.get(id)?.clone()))).collect()
    }

    /// Returns the units that the created holds take, in the order of product ids.
    pub fn withdrawals(&self) -> Vec<Withdrawal> {
        let created = self.created.iter().filter_map(|order_id| self.holds.get(order_id));
        let mut units = BTreeMap::<i64, i64>::new();
        for line in created.flat_map(|hold| &hold.lines) {
            *units.entry(line.product_id).or_default() += line.quantity;
        }
        let withdrawals = units.into_iter().filter_map(|(product_id, units)| {
            let level = self.levels.get(&product_id)?;
            let revision = self.short.contains(&product_id).then_some(level.revision);
            Some(Withdrawal { product_id, units, version: level.version, revision })
        });
        withdrawals.collect()
    }
}

#[cfg(test)]
mod tests;
