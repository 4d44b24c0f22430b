//! What can go wrong with an order, by meaning, and how callers are told.

use shoppee_kit::{
    idempotency::{self, REPLAYED},
    pg,
    status::{self, Refusal, Violations},
};
use tonic::{Code, Status, metadata::MetadataValue};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("rules are broken: {0:?}")]
    Invalid(Violations),
    #[error("not well-formed: {0:?}")]
    Malformed(Violations),
    #[error("no such thing")]
    NotFound,
    #[error("the role is not enough")]
    Forbidden,
    #[error("the order's state does not allow this step")]
    InvalidTransition,
    #[error("the order ran out")]
    OrderExpired,
    #[error("the cart is empty")]
    CartEmpty,
    #[error("product {0} cannot be bought")]
    ProductUnavailable(String),
    #[error("not enough stock: {0}")]
    OutOfStock(String),
    #[error("the order would cost {0}")]
    PriceChanged(i64),
    #[error("too many unpaid orders")]
    TooManyUnpaid,
    #[error("too many units in unpaid orders")]
    TooManyUnpaidUnits,
    #[error("the payment was declined: {why}")]
    PaymentDeclined { why: &'static str, replayed: bool },
    #[error("the key was used with another body")]
    KeyReused,
    #[error("a request of the same kind is running")]
    InProgress,
    /// A dependency does not answer; the log has said which.
    #[error("unavailable")]
    Unavailable,
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// What cannot be, was.
    #[error("broken: {0}")]
    Broken(&'static str),
}

impl From<Violations> for Error {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let replayed = matches!(error, Error::PaymentDeclined { replayed: true, .. });
        let refusal = match error {
            Error::Invalid(violations) => Refusal::invalid(violations),
            Error::Malformed(violations) => Refusal::malformed(violations),
            Error::NotFound => Refusal::new(Code::NotFound, "NOT_FOUND", "there is no such thing"),
            Error::Forbidden => {
                Refusal::new(Code::PermissionDenied, "FORBIDDEN", "your role does not allow this")
            }
            Error::InvalidTransition => Refusal::new(
                Code::FailedPrecondition,
                "INVALID_TRANSITION",
                "the order is not in a state for this step",
            ),
            Error::OrderExpired => Refusal::new(
                Code::FailedPrecondition,
                "ORDER_EXPIRED",
                "the time to pay this order ran out; place a new one",
            ),
            Error::CartEmpty => Refusal::new(Code::FailedPrecondition, "CART_EMPTY", "the cart is empty"),
            Error::ProductUnavailable(detail) => {
                Refusal::new(Code::FailedPrecondition, "PRODUCT_UNAVAILABLE", detail)
            }
            Error::OutOfStock(detail) => Refusal::new(Code::FailedPrecondition, "OUT_OF_STOCK", detail),
            Error::PriceChanged(total) => Refusal::new(
                Code::FailedPrecondition,
                "PRICE_CHANGED",
                format!("the order costs {total} now, in minor units"),
            ),
            Error::TooManyUnpaid => Refusal::new(
                Code::FailedPrecondition,
                "TOO_MANY_UNPAID_ORDERS",
                "pay or cancel an order before you place another",
            ),
            Error::TooManyUnpaidUnits => Refusal::new(
                Code::FailedPrecondition,
                "TOO_MANY_UNPAID_UNITS",
                "your unpaid orders hold too much; pay or cancel one, or order less",
            ),
            Error::PaymentDeclined { why, .. } => {
                Refusal::new(Code::FailedPrecondition, "PAYMENT_DECLINED", why)
            }
            Error::KeyReused => idempotency::KeyReused.into(),
            Error::InProgress => idempotency::in_progress(),
            Error::Unavailable => status::unavailable(),
            Error::Database(error) if pg::is_unavailable(&error) => status::unavailable(),
            Error::Database(error) => {
                tracing::error!(%error, "query failed");
                status::internal()
            }
            Error::Broken(what) => {
                tracing::error!(what, "broken");
                status::internal()
            }
        };
        let mut status = Self::from(refusal);
        if replayed {
            status.metadata_mut().insert(REPLAYED, MetadataValue::from_static("true"));
        }
        status
    }
}
