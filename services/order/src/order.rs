//! The rules of an order: its states, who may take which step, what a line and an address may be. Knows no database
//! and no wire. To add a step, add a row to [`RULES`] and a variant to [`Step`].

use shoppee_kit::status::Violations;

use crate::country;

/// Lines in a cart and in an order.
pub const MOST_LINES: usize = 100;
const LONGEST_REASON: usize = 500;
const LONGEST_SHIPMENT_FIELD: usize = 100;

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

    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Pay,
    Ship,
    Complete,
    Cancel,
    /// The time to pay ran out.
    Expire,
}

impl Step {
    /// The last part of its route, and how it is called elsewhere.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Ship => "ship",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }
}

/// In whose right a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Customer,
    Admin,
    System,
}

impl Actor {
    pub const ALL: [Self; 3] = [Self::Customer, Self::Admin, Self::System];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Admin => "admin",
            Self::System => "system",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|actor| actor.word() == word)
    }
}

/// Who is asking, as far as it matters here. The owner may be an admin too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub owner: bool,
    pub admin: bool,
}

impl Asker {
    pub const SYSTEM: Self = Self { owner: false, admin: false };

    fn acts_as(self, actor: Actor) -> bool {
        match actor {
            Actor::Customer => self.owner,
            Actor::Admin => self.admin,
            Actor::System => self == Self::SYSTEM,
        }
    }
}

/// From, to, and in whose right; every other step is refused.
const RULES: [(Step, Status, Status, Actor); 8] = [
    (Step::Pay, Status::Pending, Status::Paid, Actor::Customer),
    (Step::Ship, Status::Paid, Status::Shipped, Actor::Admin),
    (Step::Complete, Status::Shipped, Status::Completed, Actor::Customer),
    (Step::Complete, Status::Shipped, Status::Completed, Actor::Admin),
    (Step::Cancel, Status::Pending, Status::Cancelled, Actor::Customer),
    (Step::Cancel, Status::Pending, Status::Cancelled, Actor::Admin),
    (Step::Cancel, Status::Paid, Status::Cancelled, Actor::Admin),
    (Step::Expire, Status::Pending, Status::Cancelled, Actor::System),
];

/// Why a step is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody of the asker's kind may ever take it.
    Forbidden,
    /// Not from this state, or not by this asker from this state.
    Illegal,
}

/// Where `step` leads from `from`, and in whose right `asker` takes it.
pub fn step(step: Step, from: Status, asker: Asker) -> Result<(Status, Actor), Refused> {
    let mine = || RULES.iter().filter(|rule| rule.0 == step && asker.acts_as(rule.3));
    if mine().next().is_none() {
        return Err(Refused::Forbidden);
    }
    mine().find(|rule| rule.1 == from).map(|rule| (rule.2, rule.3)).ok_or(Refused::Illegal)
}

/// The steps that `asker` can take from `from`, each once.
pub fn allowed(from: Status, asker: Asker) -> Vec<Step> {
    let mut steps: Vec<Step> =
        RULES.iter().filter(|rule| rule.1 == from && asker.acts_as(rule.3)).map(|rule| rule.0).collect();
    steps.dedup();
    steps
}

/// How many of a product: 1..1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i64);

impl Quantity {
    pub const MOST: i64 = 1000;

    pub fn new(number: i64) -> Result<Self, &'static str> {
        if (1..=Self::MOST).contains(&number) { Ok(Self(number)) } else { Err("must be 1 to 1000") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A product and how many of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub product_id: i64,
    pub quantity: Quantity,
}

impl Line {
    pub fn new(product_id: i64, quantity: i64) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        violations.check(product_id > 0, "product_id", "must be positive");
        let quantity = violations.take("quantity", Quantity::new(quantity));
        violations.finish()?;
        // There is a quantity, or there would have been a violation.
        quantity.map(|quantity| Self { product_id, quantity }).ok_or_else(Violations::default)
    }
}

/// The lines of an order: 1..100, each product once, in the order of product ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Lines with the same product become one.
    pub fn merge(lines: &[(i64, i64)]) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let mut merged = std::collections::BTreeMap::<i64, i64>::new();
        violations.check(!lines.is_empty(), "items", "must not be empty");
        for (index, (product_id, quantity)) in lines.iter().enumerate() {
            if let Err(wrong) = Line::new(*product_id, *quantity) {
                for (field, message) in wrong.iter() {
                    violations.check(false, format!("items[{index}].{field}"), message);
                }
                continue;
            }
            let sum = merged.entry(*product_id).or_default();
            *sum = sum.saturating_add(*quantity);
            violations.check(
                *sum <= Quantity::MOST,
                format!("items[{index}].quantity"),
                "must be 1 to 1000 in all",
            );
        }
        violations.check(merged.len() <= MOST_LINES, "items", "must be at most 100 products");
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

/// The most that the pending orders of one user may hold together, so that no account empties the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpaidCaps {
    /// Units of all products.
    units: Option<i64>,
    /// Percent of one product.
    share: Option<i64>,
}

/// A new line, beside what the user's pending orders hold of its product already.
#[derive(Clone, Copy, Debug)]
pub struct UnpaidLine {
    pub quantity: i64,
    pub held_before: i64,
    /// The quantity that can still be bought after this line.
    pub available: i64,
}

impl UnpaidCaps {
    pub const NONE: Self = Self { units: None, share: None };
    /// Up to this many units in all, a share is not looked at: the last ten of a product may be one customer's.
    const SHARE_FLOOR: i64 = 1000;

    /// 0 stands for no cap.
    pub fn new(units: u32, share: u8) -> Self {
        let cap = |cap: i64| (cap > 0).then_some(cap);
        Self { units: cap(i64::from(units)), share: cap(i64::from(share)) }
    }

    /// Reports whether a user whose pending orders hold `held` units may have these lines too.
    pub fn allow(self, held: i64, lines: &[UnpaidLine]) -> bool {
        let ordered: i64 = lines.iter().map(|line| line.quantity).sum();
        let units = held.saturating_add(ordered);
        if ordered == 1 || self.units.is_some_and(|most| units > most) {
            return ordered == 1;
        }
        units <= Self::SHARE_FLOOR
            || lines.iter().all(|line| {
                let own = line.held_before.saturating_add(line.quantity);
                let sold_from = own.saturating_add(line.available);
                let fits = |share: i64| own.saturating_mul(100) <= share.saturating_mul(sold_from);
                line.quantity == 1 || self.share.is_none_or(fits)
            })
    }
}

/// What a line costs, and a sum of them. Minor units; `None` beyond 64 bits.
pub fn total(lines: impl IntoIterator<Item = (i64, i64)>) -> Option<i64> {
    lines
        .into_iter()
        .try_fold(0_i64, |sum, (unit_price, quantity)| sum.checked_add(unit_price.checked_mul(quantity)?))
}

/// Where to send it.
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
    /// Checks each field; the violations name them as `shipping_address.…`.
    pub fn check(self) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let mut text = |field: &str, value: Option<&str>, most: usize| {
            if let Some(value) = value {
                violations.take(format!("shipping_address.{field}"), line_of_text(value, most));
            }
        };
        text("recipient", Some(&self.recipient), 200);
        text("line1", Some(&self.line1), 200);
        text("line2", self.line2.as_deref(), 200);
        text("city", Some(&self.city), 200);
        text("region", self.region.as_deref(), 200);
        text("postal_code", Some(&self.postal_code), 20);
        text("phone", self.phone.as_deref(), 40);
        violations.check(
            country::exists(&self.country),
            "shipping_address.country",
            "must be a country of ISO 3166-1 alpha-2",
        );
        violations.finish()?;
        Ok(self)
    }
}

/// A carrier and the number it gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipment {
    pub carrier: String,
    pub tracking_number: String,
}

impl Shipment {
    pub fn new(carrier: String, tracking_number: String) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        violations.take("carrier", line_of_text(&carrier, LONGEST_SHIPMENT_FIELD));
        violations.take("tracking_number", line_of_text(&tracking_number, LONGEST_SHIPMENT_FIELD));
        violations.finish()?;
        Ok(Self { carrier, tracking_number })
    }
}

/// A reason, where one is given.
pub fn reason(text: Option<String>) -> Result<Option<String>, Violations> {
    let mut violations = Violations::default();
    if let Some(text) = &text {
        violations.take("reason", line_of_text(text, LONGEST_REASON));
    }
    violations.finish()?;
    Ok(text)
}

/// Something to read in one line, at most `most` characters: no control characters, NUL among them, which PostgreSQL
/// could not keep.
fn line_of_text(text: &str, most: usize) -> Result<(), String> {
    if text.trim().is_empty() {
        Err("must not be empty".to_owned())
    } else if text.chars().count() > most {
        Err(format!("must be at most {most} characters"))
    } else if text.chars().any(char::is_control) {
        Err("must not contain control characters".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
