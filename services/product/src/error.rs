//! The errors of the service, and their gRPC codes and reasons. No other module maps errors to gRPC.

use shoppee_kit::{
    idempotency, pg,
    status::{self, ServiceError, Violations},
};
use shoppee_proto::product::v1::RefusedLine;
use tonic::{Code, Status};

use crate::stock::Shortage;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the request is not well-formed")]
    Malformed(Violations),
    #[error("the request breaks a rule")]
    Invalid(Violations),
    /// The caller's scopes do not allow a part of the request.
    #[error("forbidden")]
    Forbidden,
    #[error("not found")]
    NotFound,
    #[error("the SKU is taken")]
    SkuTaken,
    #[error("the slug is taken")]
    SlugTaken,
    #[error("the category is in use")]
    CategoryInUse,
    #[error("the version does not match")]
    VersionMismatch,
    #[error("out of stock")]
    OutOfStock(Vec<Shortage>),
    #[error("a product is unknown or archived")]
    ProductUnavailable(Vec<Shortage>),
    #[error("the hold was released or has expired")]
    HoldExpired,
    #[error("the hold of the order has other lines")]
    HoldMismatch,
    #[error("the idempotency key was used for another request")]
    KeyReused,
    #[error("the same request is in progress")]
    InProgress,
    #[error("the hold is committed")]
    HoldCommitted,
    /// A dependency does not answer, or the service is overloaded.
    #[error("unavailable")]
    Unavailable,
    /// An internal fault, which has been logged.
    #[error("internal")]
    Internal,
}

impl Error {
    /// Creates an error for a field that breaks a rule.
    pub fn invalid(field: &str, message: &str) -> Self {
        Self::Invalid(Violations::from((field, message)))
    }

    /// Creates an error for a malformed field.
    pub fn malformed(field: &str, message: &str) -> Self {
        Self::Malformed(Violations::from((field, message)))
    }
}

/// Maps constraint violations to errors. The named constraints of the database decide uniqueness and
/// existence.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if pg::is_unavailable(&error) || is_undefined(&error) {
            tracing::debug!(error = %error, "database unavailable");
            return Self::Unavailable;
        }
        let constraint = error.as_database_error().and_then(sqlx::error::DatabaseError::constraint);
        match constraint {
            Some("product_sku_key") => Self::SkuTaken,
            Some("category_slug_key") => Self::SlugTaken,
            Some("product_category_id_fkey" | "category_parent_id_fkey") => Self::CategoryInUse,
            Some("stock_available_check") => Self::OutOfStock(Vec::new()),
            Some(_) | None => {
                tracing::error!(error = %error, "database error");
                Self::Internal
            }
        }
    }
}

/// Reports whether a table does not exist yet (42P01): the server has just started, and the migrations are
/// running.
fn is_undefined(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == "42P01")
}

fn refused_lines(lines: Vec<Shortage>) -> Vec<RefusedLine> {
    let line = |line: Shortage| RefusedLine {
        product_id: line.product_id,
        sku: line.sku,
        requested: line.requested,
        available: line.available,
        ..RefusedLine::default()
    };
    lines.into_iter().map(line).collect()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let refusal = match error {
            Error::Malformed(violations) => ServiceError::malformed(violations),
            Error::Invalid(violations) => ServiceError::invalid(violations),
            Error::Forbidden => {
                ServiceError::new(Code::PermissionDenied, "FORBIDDEN", "your scopes do not allow this")
            }
            Error::NotFound => ServiceError::new(Code::NotFound, "NOT_FOUND", "there is no such thing"),
            Error::SkuTaken => {
                ServiceError::new(Code::AlreadyExists, "SKU_TAKEN", "another product has this SKU")
            }
            Error::SlugTaken => {
                ServiceError::new(Code::AlreadyExists, "SLUG_TAKEN", "another category has this slug")
            }
            Error::CategoryInUse => ServiceError::new(
                Code::FailedPrecondition,
                "CATEGORY_IN_USE",
                "the category has products or categories below it",
            ),
            Error::VersionMismatch => {
                ServiceError::new(Code::Aborted, "VERSION_MISMATCH", "the product has been changed since")
            }
            Error::OutOfStock(lines) => {
                ServiceError::new(Code::FailedPrecondition, "OUT_OF_STOCK", "there is not enough in stock")
                    .with_metadata_list("lines", &refused_lines(lines))
            }
            Error::ProductUnavailable(lines) => ServiceError::new(
                Code::FailedPrecondition,
                "PRODUCT_UNAVAILABLE",
                "a product is unknown or no longer sold",
            )
            .with_metadata_list("lines", &refused_lines(lines)),
            Error::HoldExpired => ServiceError::new(
                Code::FailedPrecondition,
                "ORDER_EXPIRED",
                "the order's hold was released or ran out",
            ),
            Error::HoldMismatch => ServiceError::new(
                Code::AlreadyExists,
                "IDEMPOTENCY_KEY_REUSED",
                "the order already holds something else",
            ),
            Error::KeyReused => idempotency::KeyReused.into(),
            Error::InProgress => idempotency::in_progress(),
            Error::HoldCommitted => ServiceError::new(
                Code::FailedPrecondition,
                "HOLD_COMMITTED",
                "the order's goods are sold; only a cancelled order gives them back",
            ),
            Error::Unavailable => status::unavailable(),
            Error::Internal => status::internal(),
        };
        refusal.into()
    }
}
