//! Changing many products in one call: the rules of a row, and what becomes of each. [`apply`] is what
//! happens then.

mod apply;

use crate::{
    product::{Description, Fault, Name, Price, Sku, Status},
    stock::{AdjustError, Delta, Stock},
};
pub use apply::Batches;

/// Rows of one batch.
pub const MOST_ROWS: usize = 10_000;

/// How a row names its product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Id(i64),
    Sku(Sku),
}

/// What a row says.
#[derive(Clone, Debug)]
pub struct Row {
    /// Known also where the rest of the row breaks a rule: a later row with the same product is one too many.
    pub target: Option<Target>,
    pub change: Result<Change, RowFault>,
}

/// What a row changes; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub price: Option<Price>,
    pub stock: Option<StockChange>,
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The inner `None` takes the product out of its category.
    pub category_id: Option<Option<i64>>,
    pub status: Option<Status>,
    /// Which version the product must have.
    pub version: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockChange {
    To(Stock),
    By(Delta),
}

/// Why a row was not applied, or only because others were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFault {
    NotFound,
    Invalid {
        field: &'static str,
        fault: Fault,
    },
    VersionMismatch,
    OutOfStock,
    /// The database did not answer, and it was not done; other rows may have been.
    Unavailable,
    /// The database went away while it was being done.
    Uncertain,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the new version; nothing older than this revision shows it.
    Updated {
        version: i64,
        revision: i64,
    },
    /// With the version it has.
    Unchanged(i64),
    Failed(RowFault),
    /// Nothing was applied, as another row failed.
    Skipped,
}

impl Outcome {
    /// Reports whether a repeat could do no more for the row.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Failed(RowFault::Unavailable | RowFault::Uncertain))
    }
}

/// The outcome of a row, with its product where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowResult {
    pub id: Option<i64>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    Continue,
    Abort,
}

/// A product as it is before its row is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    pub version: i64,
    pub revision: i64,
    pub sku: String,
    pub name: String,
    pub description: String,
    pub price: i64,
    pub category_id: Option<i64>,
    pub status: Status,
    pub available: i64,
}

/// What a row really changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub name: Option<String>,
    pub description: Option<String>,
    pub price: Option<i64>,
    pub category_id: Option<Option<i64>>,
    pub status: Option<Status>,
    /// What is added to the stock.
    pub correction: i64,
}

impl Update {
    /// Whether the name, the description or the category is written.
    pub fn describes(&self) -> bool {
        self.name.is_some() || self.description.is_some() || self.category_id.is_some()
    }
}

impl Change {
    /// What it makes of a product; `None` where that is the same as before.
    pub fn decide(&self, current: &Current) -> Result<Option<Update>, RowFault> {
        if self.version.is_some_and(|version| version != current.version) {
            return Err(RowFault::VersionMismatch);
        }
        let correction = match self.stock {
            None => 0,
            Some(StockChange::To(stock)) => stock.get() - current.available,
            Some(StockChange::By(delta)) => {
                let stock = delta.apply(current.available).map_err(|error| match error {
                    AdjustError::BelowZero => RowFault::OutOfStock,
                    AdjustError::TooMuch => RowFault::Invalid {
                        field: "stock_delta",
                        fault: "would make the stock more than 10^9",
                    },
                })?;
                stock.get() - current.available
            }
        };
        let update = Update {
            name: differs(self.name.as_ref().map(|name| name.as_str().to_owned()), &current.name),
            description: differs(
                self.description.as_ref().map(|description| description.as_str().to_owned()),
                &current.description,
            ),
            price: differs(self.price.map(Price::get), &current.price),
            category_id: differs(self.category_id, &current.category_id),
            status: differs(self.status, &current.status),
            correction,
        };
        Ok((update != Update::default()).then_some(update))
    }
}

/// A new value, where it is one.
fn differs<T: PartialEq>(new: Option<T>, current: &T) -> Option<T> {
    new.filter(|new| new != current)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> Current {
        Current {
            version: 3,
            revision: 5,
            sku: "lamp".to_owned(),
            name: "Lamp".to_owned(),
            description: String::new(),
            price: 100,
            category_id: Some(1),
            status: Status::Active,
            available: 5,
        }
    }

    fn by(delta: i64) -> Change {
        let stock = Some(StockChange::By(Delta::parse(delta).unwrap()));
        Change { stock, ..Change::default() }
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let same = Change {
            price: Some(Price::parse(100).unwrap()),
            stock: Some(StockChange::To(Stock::parse(5).unwrap())),
            name: Some(Name::parse("Lamp".to_owned()).unwrap()),
            category_id: Some(Some(1)),
            status: Some(Status::Active),
            version: Some(3),
            ..Change::default()
        };
        assert_eq!(same.decide(&current()), Ok(None));
        assert_eq!(Change::default().decide(&current()), Ok(None));
    }

    #[test]
    fn only_what_differs_is_written() {
        let change = Change {
            price: Some(Price::parse(99).unwrap()),
            name: Some(Name::parse("Lamp".to_owned()).unwrap()),
            ..by(-5)
        };
        let update = Update { price: Some(99), correction: -5, ..Update::default() };
        assert_eq!(change.decide(&current()), Ok(Some(update)));
    }

    #[test]
    fn a_row_fails_for_its_reason() {
        assert_eq!(by(-6).decide(&current()), Err(RowFault::OutOfStock));
        let many = by(Stock::HIGHEST).decide(&current());
        assert!(matches!(many, Err(RowFault::Invalid { field: "stock_delta", .. })));
        let old = Change { version: Some(2), ..by(-6) };
        assert_eq!(old.decide(&current()), Err(RowFault::VersionMismatch));
    }
}
