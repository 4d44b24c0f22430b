//! What can go wrong with an order, by meaning, and how callers are told.

use shoppee_kit::{
    idempotency::{self, REPLAYED},
    pg,
    status::{self, Refusal, Violations},
};
use shoppee_proto::product::v1::RefusedLine;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    order::{Status as OrderStatus, Step},
    provider::Decline,
};

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
    InvalidTransition {
        current: OrderStatus,
        /// The steps that the caller can take instead.
        allowed: Vec<Step>,
    },
    #[error("the order ran out")]
    OrderExpired,
    #[error("the cart is empty")]
    CartEmpty,
    #[error("products cannot be bought")]
    ProductUnavailable(Vec<RefusedLine>),
    #[error("not enough stock")]
    OutOfStock(Vec<RefusedLine>),
    #[error("the order would cost {current_total}")]
    PriceChanged { current_total: i64, lines: Vec<RefusedLine> },
    #[error("too many unpaid orders")]
    TooManyUnpaid,
    #[error("too many units in unpaid orders")]
    TooManyUnpaidUnits,
    #[error("the payment was declined")]
    PaymentDeclined { decline: Decline, replayed: bool },
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

/// The steps as a list in JSON.
fn words(steps: &[Step]) -> String {
    let words: Vec<String> = steps.iter().map(|step| format!("\"{}\"", step.word())).collect();
    format!("[{}]", words.join(","))
}

/// The products of lines by what people call them.
fn names(lines: &[RefusedLine]) -> String {
    let name =
        |line: &RefusedLine| line.sku.clone().unwrap_or_else(|| format!("product {}", line.product_id));
    lines.iter().map(name).collect::<Vec<_>>().join(", ")
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
            Error::InvalidTransition { current, allowed } => Refusal::new(
                Code::FailedPrecondition,
                "INVALID_TRANSITION",
                format!("the order is {}, and not in a state for this step", current.word()),
            )
            .with_fact("current_status", current.word())
            .with_fact("allowed", words(&allowed)),
            Error::OrderExpired => Refusal::new(
                Code::FailedPrecondition,
                "ORDER_EXPIRED",
                "the time to pay this order ran out; place a new one",
            ),
            Error::CartEmpty => Refusal::new(Code::FailedPrecondition, "CART_EMPTY", "the cart is empty"),
            Error::ProductUnavailable(lines) => Refusal::new(
                Code::FailedPrecondition,
                "PRODUCT_UNAVAILABLE",
                format!("unknown or no longer sold: {}", names(&lines)),
            )
            .with_facts("lines", &lines),
            Error::OutOfStock(lines) => Refusal::new(
                Code::FailedPrecondition,
                "OUT_OF_STOCK",
                format!("there is not enough in stock of {}", names(&lines)),
            )
            .with_facts("lines", &lines),
            Error::PriceChanged { current_total, lines } => Refusal::new(
                Code::FailedPrecondition,
                "PRICE_CHANGED",
                format!("the order costs {current_total} now, in minor units"),
            )
            .with_fact("current_total", current_total.to_string())
            .with_facts("lines", &lines),
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
            Error::PaymentDeclined { decline, .. } => {
                Refusal::new(Code::FailedPrecondition, "PAYMENT_DECLINED", decline.text())
                    .with_fact("decline_code", decline.code())
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
