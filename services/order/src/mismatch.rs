//! The rules of the audit: which states of an order, its hold and its payments agree.

use std::{str::FromStr, time::Duration};

use shoppee_proto::product::v1::HoldState;
use time::OffsetDateTime;

use crate::order::UnknownName;

/// The age up to which a hold may have no order: by then the sweep of orphan holds has looked at it twice.
pub const MAX_ORPHAN_AGE: Duration = Duration::from_mins(5);

/// The kinds of mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The hold or the stock ledger differs from the order.
    Stock,
    /// The order is paid, and its goods are not reserved or sold.
    PaidWithoutHold,
    /// Goods are held for an order that does not exist.
    HeldWithoutOrder,
    /// The order is paid and no payment was captured, or the reverse.
    Payment,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Stock, Self::PaidWithoutHold, Self::HeldWithoutOrder, Self::Payment];

    /// Returns the stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::PaidWithoutHold => "paid_without_hold",
            Self::HeldWithoutOrder => "held_without_order",
            Self::Payment => "payment",
        }
    }

    pub fn gauge(self) -> metrics::Gauge {
        match self {
            Self::Stock => metrics::gauge!("order_stock_mismatches"),
            Self::PaidWithoutHold => metrics::gauge!("paid_without_hold"),
            Self::HeldWithoutOrder => metrics::gauge!("held_without_order"),
            Self::Payment => metrics::gauge!("order_payment_mismatches"),
        }
    }
}

impl FromStr for Kind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(UnknownName)
    }
}

/// A mismatch, with a description for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub kind: Kind,
    pub detail: String,
}

/// An order as the audit compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub status: String,
    pub expires_at: OffsetDateTime,
    /// The product and the quantity of each line, sorted by product id.
    pub lines: Vec<(i64, i64)>,
    /// The number of captured payments that were not refunded.
    pub captured: i64,
    /// True if a stock task is pending.
    pub is_settling: bool,
}

/// A hold as the product service reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub state: HoldState,
    pub lines: Vec<(i64, i64)>,
    pub ledger_agrees: bool,
    pub created_at: OffsetDateTime,
}

/// Returns the mismatch of an order and its hold; `None` also for states that may be in progress.
pub fn find_mismatch(order: Option<&Order>, hold: Option<&Hold>, now: OffsetDateTime) -> Option<Mismatch> {
    let mismatch = |kind, detail: String| Some(Mismatch { kind, detail });
    let state = hold.map_or(HoldState::Unspecified, |hold| hold.state);
    let has_goods = matches!(state, HoldState::Held | HoldState::Committed);
    if let Some(hold) = hold
        && !hold.ledger_agrees
    {
        return mismatch(Kind::Stock, format!("the ledger has other movements than the hold, {state:?}"));
    }
    let Some(order) = order else {
        // The checkout runs, or the sweep of orphan holds is about to release the hold.
        let is_recent = hold.is_some_and(|hold| now < hold.created_at + MAX_ORPHAN_AGE);
        if !has_goods || (state == HoldState::Held && is_recent) {
            return None;
        }
        return mismatch(Kind::HeldWithoutOrder, format!("the goods are {state:?}"));
    };
    if order.is_settling {
        return None;
    }
    let is_paid = match order.status.as_str() {
        "pending" => false,
        "paid" | "shipped" | "completed" => true,
        "cancelled" => {
            if has_goods {
                return mismatch(Kind::Stock, format!("the order is cancelled, the goods are {state:?}"));
            }
            false
        }
        // The status of a newer version.
        _ => return None,
    };
    let is_open = order.status == "pending" && now < order.expires_at;
    let is_expected_state =
        if is_paid { state == HoldState::Committed } else { !is_open || state == HoldState::Held };
    if is_paid && !has_goods {
        return mismatch(
            Kind::PaidWithoutHold,
            format!("the order is {}, the goods are {state:?}", order.status),
        );
    }
    if !is_expected_state {
        return mismatch(Kind::Stock, format!("the order is {}, the goods are {state:?}", order.status));
    }
    if let Some(hold) = hold
        && has_goods
        && hold.lines != order.lines
    {
        return mismatch(Kind::Stock, "other lines are held than were ordered".to_owned());
    }
    if i64::from(is_paid) != order.captured {
        let detail = format!("the order is {}, {} payments are captured", order.status, order.captured);
        return mismatch(Kind::Payment, detail);
    }
    None
}

#[cfg(test)]
mod tests;
