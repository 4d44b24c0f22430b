//! Batch updates: the rules of a row and its outcome. [`crate::batches`] executes a batch.

use serde_json::{Map, Value};
use shoppee_kit::audit_log;

use crate::{
    product::{Description, Name, Price, Sku, Status},
    stock::{AdjustError, Delta, Stock},
    validation::ValidationError,
};

/// The maximum number of rows of a batch.
pub const MAX_ROWS: usize = 10_000;

/// The reference of a row to its product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Id(i64),
    Sku(Sku),
}

/// A parsed row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Present even if the rest of the row is invalid: a later row with the same product is a duplicate.
    pub target: Option<Target>,
    pub change: Result<Change, RowError>,
}

/// The changes of a row; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub price: Option<Price>,
    pub stock: Option<StockChange>,
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The inner `None` removes the product from its category.
    pub category_id: Option<Option<i64>>,
    pub status: Option<Status>,
    /// The version that the product must have.
    pub version: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockChange {
    To(Stock),
    By(Delta),
}

/// The reason why a row was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowError {
    NotFound,
    Invalid {
        field: &'static str,
        message: ValidationError,
    },
    VersionMismatch {
        current: i64,
    },
    OutOfStock {
        available: i64,
    },
    /// The database was unavailable and the row was not applied; other rows may have been.
    Unavailable,
    /// The connection to the database was lost during the commit.
    OutcomeUnknown,
}

/// The outcome of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The row was applied. The product has this version, and at least this revision.
    Updated {
        version: i64,
        revision: i64,
    },
    /// The row changed nothing. The product has this version.
    Unchanged(i64),
    Failed(RowError),
    /// The row was not applied because another row failed.
    Skipped,
}

impl Outcome {
    /// Reports whether a repeat could not change the outcome.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Failed(RowError::Unavailable | RowError::OutcomeUnknown))
    }
}

/// The outcome of a row, with its product if there is one.
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

/// The state of a product before its row is applied.
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

/// The effective changes of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub name: Option<String>,
    pub description: Option<String>,
    pub price: Option<i64>,
    pub category_id: Option<Option<i64>>,
    pub status: Option<Status>,
    /// The units added to the stock.
    pub correction: i64,
}

impl Update {
    /// Returns the fields of the audit record.
    pub fn to_change(&self, current: &Current) -> audit_log::Change {
        let (mut before, mut after) = (Map::new(), Map::new());
        let mut add = |name: &str, from: Value, to: Option<Value>| {
            if let Some(to) = to {
                before.insert(name.to_owned(), from);
                after.insert(name.to_owned(), to);
            }
        };
        add("name", current.name.clone().into(), self.name.clone().map(Value::from));
        add("description", current.description.clone().into(), self.description.clone().map(Value::from));
        add("price", current.price.into(), self.price.map(Value::from));
        add("category_id", current.category_id.into(), self.category_id.map(Value::from));
        add("status", current.status.as_str().into(), self.status.map(|status| status.as_str().into()));
        let stock = current.available + self.correction;
        add("stock", current.available.into(), (self.correction != 0).then(|| stock.into()));
        audit_log::Change::between(before.into(), after.into())
    }

    /// Reports whether the name, the description or the category is written.
    pub fn changes_details(&self) -> bool {
        self.name.is_some() || self.description.is_some() || self.category_id.is_some()
    }
}

impl Change {
    /// Returns the effective changes; `None` if nothing differs.
    pub fn decide(&self, current: &Current) -> Result<Option<Update>, RowError> {
        if self.version.is_some_and(|version| version != current.version) {
            return Err(RowError::VersionMismatch { current: current.version });
        }
        let correction = match self.stock {
            None => 0,
            Some(StockChange::To(stock)) => stock.get() - current.available,
            Some(StockChange::By(delta)) => {
                let stock = delta.apply(current.available).map_err(|error| match error {
                    AdjustError::BelowZero => RowError::OutOfStock { available: current.available },
                    AdjustError::TooMuch => RowError::Invalid {
                        field: "stock_delta",
                        message: "would make the stock more than 10^9",
                    },
                })?;
                stock.get() - current.available
            }
        };
        let update = Update {
            name: if_changed(self.name.as_ref().map(|name| name.as_str().to_owned()), &current.name),
            description: if_changed(
                self.description.as_ref().map(|description| description.as_str().to_owned()),
                &current.description,
            ),
            price: if_changed(self.price.map(Price::get), &current.price),
            category_id: if_changed(self.category_id, &current.category_id),
            status: if_changed(self.status, &current.status),
            correction,
        };
        Ok((update != Update::default()).then_some(update))
    }
}

/// Returns a new value if it differs from the current one.
fn if_changed<T: PartialEq>(new: Option<T>, current: &T) -> Option<T> {
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
    fn a_row_with_the_current_values_changes_nothing() {
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
    fn a_row_updates_only_the_fields_that_differ() {
        let change = Change {
            price: Some(Price::parse(99).unwrap()),
            name: Some(Name::parse("Lamp".to_owned()).unwrap()),
            ..by(-5)
        };
        let update = Update { price: Some(99), correction: -5, ..Update::default() };
        assert_eq!(change.decide(&current()), Ok(Some(update)));
    }

    #[test]
    fn an_invalid_row_fails_with_its_reason() {
        assert_eq!(by(-6).decide(&current()), Err(RowError::OutOfStock { available: current().available }));
        let many = by(Stock::MAX).decide(&current());
        assert!(matches!(many, Err(RowError::Invalid { field: "stock_delta", .. })));
        let old = Change { version: Some(2), ..by(-6) };
        assert_eq!(old.decide(&current()), Err(RowError::VersionMismatch { current: current().version }));
    }
}
