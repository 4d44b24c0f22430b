//! The responses to requests without a route.

use crate::error::Problem;

pub async fn not_found() -> Problem {
    Problem::not_found()
}

/// Axum adds `Allow`.
pub async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}
