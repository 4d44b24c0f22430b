//! The rules of stock: who gets what when several ask at once, and what a hold may become. Knows neither the
//! database nor the wire.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::product::Fault;

/// What can be bought of a product: 0..10^9 when an admin says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock(i64);

impl Stock {
    pub const HIGHEST: i64 = 1_000_000_000;

    pub fn parse(stock: i64) -> Result<Self, Fault> {
        if (0..=Self::HIGHEST).contains(&stock) { Ok(Self(stock)) } else { Err("must be 0 to 10^9") }
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

/// By how much an admin corrects a stock; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(i64);

impl Delta {
    pub fn parse(delta: i64) -> Result<Self, Fault> {
        if delta != 0 && (-Stock::HIGHEST..=Stock::HIGHEST).contains(&delta) {
            Ok(Self(delta))
        } else {
            Err("must be -10^9 to 10^9 and not 0")
        }
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// The stock after the correction.
    pub fn apply(self, available: i64) -> Result<Stock, AdjustError> {
        match available.saturating_add(self.0) {
            ..0 => Err(AdjustError::BelowZero),
            stock @ 0..=Stock::HIGHEST => Ok(Stock(stock)),
            _ => Err(AdjustError::TooMuch),
        }
    }
}

/// Why a stock cannot be corrected so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustError {
    BelowZero,
    TooMuch,
}

/// Why a correction was made, for the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    const LONGEST: usize = 500;

    pub fn parse(reason: String) -> Result<Self, Fault> {
        crate::product::line(reason, Self::LONGEST)
            .map(Self)
            .ok_or("must be one line of 1 to 500 characters, not blank")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a row of the ledger was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Supply,
    Hold,
    Release,
    Sale,
    Return,
    Adjustment,
}

impl Kind {
    /// As it is stored.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Supply => "supply",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Sale => "sale",
            Self::Return => "return",
            Self::Adjustment => "adjustment",
        }
    }
}

/// One product of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub product_id: i64,
    pub quantity: i64,
}

/// What an order wants: each product once, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basket(Vec<Line>);

impl Basket {
    /// Lines of one order.
    pub const MOST: usize = 100;
    /// Of one product.
    pub const HIGHEST: i64 = 1000;

    /// The lines in order; what is wrong with them by field.
    pub fn parse(mut lines: Vec<Line>) -> Result<Self, (String, Fault)> {
        if !(1..=Self::MOST).contains(&lines.len()) {
            return Err(("lines".to_owned(), "must be 1 to 100"));
        }
        if let Some(at) = lines.iter().position(|line| !(1..=Self::HIGHEST).contains(&line.quantity)) {
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

/// A product on the shelf, while several orders reach for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    pub sku: String,
    pub name: String,
    pub price: i64,
    pub on_sale: bool,
    pub available: i64,
}

/// One product of a hold, as the catalogue had it when the hold was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLine {
    pub product_id: i64,
    pub sku: String,
    pub name: String,
    pub unit_price: i64,
    pub quantity: i64,
    /// The quantity left on the shelf, where it was looked at.
    pub available: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Held,
    Committed,
    Released,
    Expired,
}

impl State {
    /// As it is stored.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }

    /// The state of a stored word.
    pub fn of(word: &str) -> Self {
        match word {
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
    pub state: State,
    pub expires_at: OffsetDateTime,
    /// The highest fence of the calls that were about its time.
    pub fence: i64,
    /// In the order of product ids.
    pub lines: Vec<HeldLine>,
}

impl Hold {
    /// Whether the goods are still the order's.
    pub fn lives(&self, now: OffsetDateTime) -> bool {
        match self.state {
            State::Held => self.expires_at > now,
            State::Committed => true,
            State::Released | State::Expired => false,
        }
    }

    fn is_of(&self, basket: &Basket) -> bool {
        let held = self.lines.iter().map(|line| (line.product_id, line.quantity));
        held.eq(basket.lines().iter().map(|line| (line.product_id, line.quantity)))
    }
}

/// The reason why an order's goods go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    /// Sold goods go back too.
    OrderCancelled,
    /// Only a hold goes back: the release of an order that was never placed may arrive late.
    CheckoutAbandoned,
}

/// What an order asks for.
#[derive(Clone, Debug)]
pub struct Want {
    pub order_id: Uuid,
    /// `None` only prolongs the hold that exists.
    pub basket: Option<Basket>,
    /// The time until which the hold should live at least, or at most where it is to be shortened.
    pub until: OffsetDateTime,
    /// Orders calls that change a hold's time: one below the hold's changes nothing.
    pub fence: i64,
    pub shorten: bool,
}

/// A line that an order cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub product_id: i64,
    /// `None` where no product has the id.
    pub sku: Option<String>,
    pub requested: i64,
    /// What can be bought now.
    pub available: i64,
}

/// Why an order gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// These products are unknown or archived.
    Unavailable(Vec<Shortage>),
    /// There is not enough of these products.
    OutOfStock(Vec<Shortage>),
    /// The hold was released or ran out.
    Over,
    /// The order holds something else.
    Different,
    /// There is no hold to prolong.
    Unknown,
}

/// Several orders decided one after the other, in memory, under the locks of all the products they name.
#[derive(Debug)]
pub struct Round {
    now: OffsetDateTime,
    shelves: BTreeMap<i64, Shelf>,
    holds: BTreeMap<Uuid, Hold>,
    /// Holds that began in this round.
    pub taken: Vec<Uuid>,
    /// Holds from before that live longer now.
    pub prolonged: Vec<Uuid>,
}

impl Round {
    /// `holds` are those the orders have already.
    pub fn new(now: OffsetDateTime, shelves: BTreeMap<i64, Shelf>, holds: BTreeMap<Uuid, Hold>) -> Self {
        Self { now, shelves, holds, taken: Vec::new(), prolonged: Vec::new() }
    }

    /// Gives an order all it wants, or nothing.
    pub fn decide(&mut self, want: &Want) -> Result<Hold, Refused> {
        if let Some(hold) = self.holds.get_mut(&want.order_id) {
            if !hold.lives(self.now) {
                return Err(Refused::Over);
            }
            if want.basket.as_ref().is_some_and(|basket| !hold.is_of(basket)) {
                return Err(Refused::Different);
            }
            let until =
                if want.shorten { hold.expires_at.min(want.until) } else { hold.expires_at.max(want.until) };
            let changes = hold.expires_at != until || hold.fence < want.fence;
            if hold.state == State::Held && hold.fence <= want.fence && changes {
                hold.expires_at = until;
                hold.fence = want.fence;
                if !self.taken.contains(&want.order_id) && !self.prolonged.contains(&want.order_id) {
                    self.prolonged.push(want.order_id);
                }
            }
            let hold = hold.clone();
            return Ok(self.with_available(hold));
        }
        let basket = want.basket.as_ref().ok_or(Refused::Unknown)?;
        let lines = self.take(basket)?;
        let hold = Hold { state: State::Held, expires_at: want.until, fence: want.fence, lines };
        self.holds.insert(want.order_id, hold.clone());
        self.taken.push(want.order_id);
        Ok(self.with_available(hold))
    }

    fn with_available(&self, mut hold: Hold) -> Hold {
        for line in &mut hold.lines {
            line.available = self.shelves.get(&line.product_id).map_or(0, |shelf| shelf.available);
        }
        hold
    }

    /// Of what is not on sale, nothing can be bought.
    fn shortage(&self, line: &Line) -> Shortage {
        let product = self.shelves.get(&line.product_id);
        Shortage {
            product_id: line.product_id,
            sku: product.map(|product| product.sku.clone()),
            requested: line.quantity,
            available: product.filter(|product| product.on_sale).map_or(0, |product| product.available),
        }
    }

    fn take(&mut self, basket: &Basket) -> Result<Vec<HeldLine>, Refused> {
        let lines_where = |is_refused: &dyn Fn(&Line) -> bool| -> Vec<Shortage> {
            let refused = basket.lines().iter().filter(|line| is_refused(line));
            refused.map(|line| self.shortage(line)).collect()
        };
        let unavailable =
            lines_where(&|line| self.shelves.get(&line.product_id).is_none_or(|shelf| !shelf.on_sale));
        if !unavailable.is_empty() {
            return Err(Refused::Unavailable(unavailable));
        }
        let short = lines_where(&|line| self.shelves[&line.product_id].available < line.quantity);
        if !short.is_empty() {
            return Err(Refused::OutOfStock(short));
        }
        let lines = basket.lines().iter().filter_map(|line| {
            let taken_from = self.shelves.get_mut(&line.product_id)?;
            taken_from.available -= line.quantity;
            Some(HeldLine {
                product_id: line.product_id,
                sku: taken_from.sku.clone(),
                name: taken_from.name.clone(),
                unit_price: taken_from.price,
                quantity: line.quantity,
                available: taken_from.available,
            })
        });
        Ok(lines.collect())
    }

    /// A hold that was decided on.
    pub fn hold(&self, order_id: &Uuid) -> Option<&Hold> {
        self.holds.get(order_id)
    }
}

#[cfg(test)]
mod tests;
