//! The errors of the order service by meaning, and their gRPC statuses.

use shoppee_kit::{
    idempotency::{self, REPLAYED},
    pg,
    status::{self, ServiceError, Violations},
};
use shoppee_proto::product::v1::RefusedLine;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    decline::Decline,
    order::{Status as OrderStatus, Transition},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("validation failed: {0:?}")]
    Invalid(Violations),
    #[error("malformed request: {0:?}")]
    Malformed(Violations),
    #[error("not found")]
    NotFound,
    #[error("forbidden for the caller's role")]
    Forbidden,
    #[error("the order's status does not allow this transition")]
    InvalidTransition {
        current: OrderStatus,
        /// The transitions that the caller can make instead.
        allowed: Vec<Transition>,
    },
    #[error("the order has expired")]
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
    #[error("the idempotency key was used with another body")]
    KeyReused,
    #[error("an earlier request is still running")]
    InProgress,
    #[error("the event log does not have the cursor's position")]
    CursorOutOfRange,
    /// A dependency is unavailable. The log names it.
    #[error("unavailable")]
    Unavailable,
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// An invariant is violated.
    #[error("invariant violated: {0}")]
    Internal(&'static str),
}

impl Error {
    /// Reports whether a dependency is unavailable, so that the same call succeeds later.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable)
            || matches!(self, Self::Database(error) if pg::is_unavailable(error))
    }
}

impl From<Violations> for Error {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

/// Formats transitions as a JSON array of their names.
fn json_names(transitions: &[Transition]) -> String {
    let names: Vec<String> =
        transitions.iter().map(|transition| format!("\"{}\"", transition.as_str())).collect();
    format!("[{}]", names.join(","))
}

/// Lists the products of lines by their SKU, or by their id if it is unknown.
fn product_names(lines: &[RefusedLine]) -> String {
    let name =
        |line: &RefusedLine| line.sku.clone().unwrap_or_else(|| format!("product {}", line.product_id));
    lines.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let replayed = matches!(error, Error::PaymentDeclined { replayed: true, .. });
        let refusal = match error {
            Error::Invalid(violations) => ServiceError::invalid(violations),
            Error::Malformed(violations) => ServiceError::malformed(violations),
            Error::NotFound => ServiceError::new(Code::NotFound, "NOT_FOUND", "there is no such thing"),
            Error::Forbidden => {
                ServiceError::new(Code::PermissionDenied, "FORBIDDEN", "your role does not allow this")
            }
            Error::InvalidTransition { current, allowed } => ServiceError::new(
                Code::FailedPrecondition,
                "INVALID_TRANSITION",
                format!("the order is {}, and not in a state for this step", current.as_str()),
            )
            .with_metadata("current_status", current.as_str())
            .with_metadata("allowed", json_names(&allowed)),
            Error::OrderExpired => ServiceError::new(
                Code::FailedPrecondition,
                "ORDER_EXPIRED",
                "the time to pay this order ran out; place a new one",
            ),
            Error::CartEmpty => {
                ServiceError::new(Code::FailedPrecondition, "CART_EMPTY", "the cart is empty")
            }
            Error::ProductUnavailable(lines) => ServiceError::new(
                Code::FailedPrecondition,
                "PRODUCT_UNAVAILABLE",
                format!("unknown or no longer sold: {}", product_names(&lines)),
            )
            .with_metadata_list("lines", &lines),
            Error::OutOfStock(lines) => ServiceError::new(
                Code::FailedPrecondition,
                "OUT_OF_STOCK",
                format!("there is not enough in stock of {}", product_names(&lines)),
            )
            .with_metadata_list("lines", &lines),
            Error::PriceChanged { current_total, lines } => ServiceError::new(
                Code::FailedPrecondition,
                "PRICE_CHANGED",
                format!("the order costs {current_total} now, in minor units"),
            )
            .with_metadata("current_total", current_total.to_string())
            .with_metadata_list("lines", &lines),
            Error::TooManyUnpaid => ServiceError::new(
                Code::FailedPrecondition,
                "TOO_MANY_UNPAID_ORDERS",
                "pay or cancel an order before you place another",
            ),
            Error::TooManyUnpaidUnits => ServiceError::new(
                Code::FailedPrecondition,
                "TOO_MANY_UNPAID_UNITS",
                "your unpaid orders hold too much; pay or cancel one, or order less",
            ),
            Error::PaymentDeclined { decline, .. } => {
                ServiceError::new(Code::FailedPrecondition, "PAYMENT_DECLINED", decline.message())
                    .with_metadata("decline_code", decline.code())
            }
            Error::KeyReused => idempotency::KeyReused.into(),
            Error::InProgress => idempotency::in_progress(),
            Error::CursorOutOfRange => ServiceError::new(
                Code::OutOfRange,
                "CURSOR_OUT_OF_RANGE",
                "the events after this cursor are not stored; start without a cursor",
            ),
            Error::Unavailable => status::unavailable(),
            Error::Database(error) if pg::is_unavailable(&error) => status::unavailable(),
            Error::Database(error) => {
                tracing::error!(%error, "query failed");
                status::internal()
            }
            Error::Internal(what) => {
                tracing::error!(invariant = what, "invariant violated");
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
