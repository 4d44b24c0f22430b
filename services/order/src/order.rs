//! The rules of an order: the state machine, and the valid values of lines, addresses and texts. This file depends on
//! no database and no protocol. To add a transition, add a row to [`TRANSITIONS`] and a variant to [`Transition`].

use std::{str::FromStr, time::Duration};

use shoppee_kit::status::Violations;

use crate::country;

/// The time by which a hold outlives the payment deadline, so that an open order always has its stock.
pub const HOLD_MARGIN: Duration = Duration::from_mins(1);
/// Bounds the lines of a cart and of an order.
pub const MAX_LINES: usize = 100;
const MAX_REASON_CHARS: usize = 500;
const MAX_SHIPMENT_FIELD_CHARS: usize = 100;

/// The error for a stored name without a variant, such as one that a newer version wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownName;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Pending,
    Paid,
    Shipped,
    Completed,
    Cancelled,
}

impl Status {
    pub const ALL: [Self; 5] = [Self::Pending, Self::Paid, Self::Shipped, Self::Completed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for Status {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or(UnknownName)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Pay,
    Ship,
    Complete,
    Cancel,
    /// The payment deadline has passed.
    Expire,
}

impl Transition {
    /// Returns the name, which is also the last segment of the REST route.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Ship => "ship",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }
}

/// The role in which a transition is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Customer,
    Admin,
    /// A service account.
    Service,
    System,
}

impl Actor {
    pub const ALL: [Self; 4] = [Self::Customer, Self::Admin, Self::Service, Self::System];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Admin => "admin",
            Self::Service => "service",
            Self::System => "system",
        }
    }
}

impl FromStr for Actor {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|actor| actor.as_str() == name).ok_or(UnknownName)
    }
}

/// The relation of a caller to an order. An owner may be an admin too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    pub is_owner: bool,
    pub is_admin: bool,
    pub is_service: bool,
}

impl Requester {
    pub const SYSTEM: Self = Self { is_owner: false, is_admin: false, is_service: false };
    pub const OWNER: Self = Self { is_owner: true, ..Self::SYSTEM };

    fn can_act_as(self, actor: Actor) -> bool {
        match actor {
            Actor::Customer => self.is_owner,
            Actor::Admin => self.is_admin,
            Actor::Service => self.is_service,
            Actor::System => self == Self::SYSTEM,
        }
    }
}

/// The state machine: transition, source status, target status and role. Every other combination is rejected.
const TRANSITIONS: [(Transition, Status, Status, Actor); 11] = [
    (Transition::Pay, Status::Pending, Status::Paid, Actor::Customer),
    (Transition::Ship, Status::Paid, Status::Shipped, Actor::Admin),
    (Transition::Ship, Status::Paid, Status::Shipped, Actor::Service),
    (Transition::Complete, Status::Shipped, Status::Completed, Actor::Customer),
    (Transition::Complete, Status::Shipped, Status::Completed, Actor::Admin),
    (Transition::Cancel, Status::Pending, Status::Cancelled, Actor::Customer),
    (Transition::Cancel, Status::Pending, Status::Cancelled, Actor::Admin),
    (Transition::Cancel, Status::Pending, Status::Cancelled, Actor::Service),
    (Transition::Cancel, Status::Paid, Status::Cancelled, Actor::Admin),
    (Transition::Cancel, Status::Paid, Status::Cancelled, Actor::Service),
    (Transition::Expire, Status::Pending, Status::Cancelled, Actor::System),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransitionError {
    /// The requester's role never allows this transition.
    Forbidden,
    /// The current status does not allow this transition, or not to this requester.
    InvalidState,
}

/// Returns the target status of `transition` from `from`, and the role in which `requester` makes it.
pub fn next_status(
    transition: Transition,
    from: Status,
    requester: Requester,
) -> Result<(Status, Actor), TransitionError> {
    let permitted = || TRANSITIONS.iter().filter(|rule| rule.0 == transition && requester.can_act_as(rule.3));
    if permitted().next().is_none() {
        return Err(TransitionError::Forbidden);
    }
    permitted().find(|rule| rule.1 == from).map(|rule| (rule.2, rule.3)).ok_or(TransitionError::InvalidState)
}

/// Returns the transitions that `requester` can make from `from`, each once.
pub fn allowed_transitions(from: Status, requester: Requester) -> Vec<Transition> {
    let rules = TRANSITIONS.iter().filter(|rule| rule.1 == from && requester.can_act_as(rule.3));
    let mut transitions: Vec<Transition> = rules.map(|rule| rule.0).collect();
    transitions.dedup();
    transitions
}

/// The quantity of a product in a line: 1..1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i64);

impl Quantity {
    pub const MAX: i64 = 1000;

    pub fn new(number: i64) -> Result<Self, &'static str> {
        if (1..=Self::MAX).contains(&number) { Ok(Self(number)) } else { Err("must be 1 to 1000") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A product and its quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub product_id: i64,
    pub quantity: Quantity,
}

impl Line {
    pub fn new(product_id: i64, quantity: i64) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        violations.require(product_id > 0, "product_id", "must be positive");
        let quantity = violations.collect("quantity", Quantity::new(quantity));
        violations.finish()?;
        // Without a violation the quantity is present.
        quantity.map(|quantity| Self { product_id, quantity }).ok_or_else(Violations::default)
    }
}

/// The lines of an order: 1..100, each product once, ordered by product id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Merges lines with the same product into one.
    pub fn merge(lines: &[(i64, i64)]) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let mut merged = std::collections::BTreeMap::<i64, i64>::new();
        violations.require(!lines.is_empty(), "items", "must not be empty");
        for (index, (product_id, quantity)) in lines.iter().enumerate() {
            if let Err(line_violations) = Line::new(*product_id, *quantity) {
                for (field, message) in line_violations.iter() {
                    violations.require(false, format!("items[{index}].{field}"), message);
                }
                continue;
            }
            let sum = merged.entry(*product_id).or_default();
            *sum = sum.saturating_add(*quantity);
            violations.require(
                *sum <= Quantity::MAX,
                format!("items[{index}].quantity"),
                "must be 1 to 1000 in all",
            );
        }
        violations.require(merged.len() <= MAX_LINES, "items", "must be at most 100 products");
        violations.finish()?;
        Ok(Self(
            merged
                .into_iter()
                .map(|(product_id, quantity)| Line { product_id, quantity: Quantity(quantity) })
                .collect(),
        ))
    }

    pub fn as_slice(&self) -> &[Line] {
        &self.0
    }
}

/// Caps on the units in the pending orders of one user, so that one account cannot reserve the whole stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpaidCaps {
    /// Units of all products.
    units: Option<i64>,
    /// Percent of one product.
    share: Option<i64>,
}

/// A new line, with the units of its product that the user's pending orders already reserve.
#[derive(Clone, Copy, Debug)]
pub struct UnpaidLine {
    pub quantity: i64,
    pub reserved: i64,
    /// The units that stay available after this line.
    pub available: i64,
}

impl UnpaidCaps {
    pub const NONE: Self = Self { units: None, share: None };
    /// The units in all up to which the share is not checked: one customer may buy the last ten of a product.
    const SHARE_FLOOR: i64 = 1000;

    /// Builds the caps; 0 disables a cap.
    pub fn new(units: u32, share: u8) -> Self {
        let cap = |cap: i64| (cap > 0).then_some(cap);
        Self { units: cap(i64::from(units)), share: cap(i64::from(share)) }
    }

    /// Reports whether the cap on units allows `ordered` units more. A single unit is always allowed.
    pub fn allow_units(self, reserved: i64, ordered: i64) -> bool {
        ordered == 1 || self.units.is_none_or(|max| reserved.saturating_add(ordered) <= max)
    }

    /// Reports whether a user whose pending orders reserve `reserved` units may order these lines too.
    pub fn allow(self, reserved: i64, lines: &[UnpaidLine]) -> bool {
        let ordered: i64 = lines.iter().map(|line| line.quantity).sum();
        if ordered == 1 || !self.allow_units(reserved, ordered) {
            return ordered == 1;
        }
        reserved.saturating_add(ordered) <= Self::SHARE_FLOOR
            || lines.iter().all(|line| {
                let own = line.reserved.saturating_add(line.quantity);
                let total = own.saturating_add(line.available);
                let is_within = |share: i64| own.saturating_mul(100) <= share.saturating_mul(total);
                line.quantity == 1 || self.share.is_none_or(is_within)
            })
    }
}

/// Sums unit price times quantity over lines, in minor units; `None` on overflow of 64 bits.
pub fn total(lines: impl IntoIterator<Item = (i64, i64)>) -> Option<i64> {
    lines
        .into_iter()
        .try_fold(0_i64, |sum, (unit_price, quantity)| sum.checked_add(unit_price.checked_mul(quantity)?))
}

/// A shipping address.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Address {
    pub recipient: String,
    pub line1: String,
    pub line2: Option<String>,
    pub city: String,
    pub region: Option<String>,
    pub postal_code: String,
    pub country: String,
    pub phone: Option<String>,
}

impl Address {
    /// Validates each field; violations name the fields as `shipping_address.…`.
    pub fn validate(self) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let mut text = |field: &str, value: Option<&str>, max_chars: usize| {
            if let Some(value) = value {
                violations.collect(format!("shipping_address.{field}"), check_text(value, max_chars));
            }
        };
        text("recipient", Some(&self.recipient), 200);
        text("line1", Some(&self.line1), 200);
        text("line2", self.line2.as_deref(), 200);
        text("city", Some(&self.city), 200);
        text("region", self.region.as_deref(), 200);
        text("postal_code", Some(&self.postal_code), 20);
        text("phone", self.phone.as_deref(), 40);
        violations.require(
            country::exists(&self.country),
            "shipping_address.country",
            "must be a country of ISO 3166-1 alpha-2",
        );
        violations.finish()?;
        Ok(self)
    }
}

/// A carrier and its tracking number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipment {
    pub carrier: String,
    pub tracking_number: String,
}

impl Shipment {
    pub fn new(carrier: String, tracking_number: String) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        violations.collect("carrier", check_text(&carrier, MAX_SHIPMENT_FIELD_CHARS));
        violations.collect("tracking_number", check_text(&tracking_number, MAX_SHIPMENT_FIELD_CHARS));
        violations.finish()?;
        Ok(Self { carrier, tracking_number })
    }
}

/// Validates the optional reason of a cancellation.
pub fn parse_reason(text: Option<String>) -> Result<Option<String>, Violations> {
    let mut violations = Violations::default();
    if let Some(text) = &text {
        violations.collect("reason", check_text(text, MAX_REASON_CHARS));
    }
    violations.finish()?;
    Ok(text)
}

/// Checks a single-line text of at most `max_chars` characters. Control characters are rejected: PostgreSQL cannot
/// store NUL.
fn check_text(text: &str, max_chars: usize) -> Result<(), String> {
    if text.trim().is_empty() {
        Err("must not be empty".to_owned())
    } else if text.chars().count() > max_chars {
        Err(format!("must be at most {max_chars} characters"))
    } else if text.chars().any(char::is_control) {
        Err("must not contain control characters".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
