//! The parameters that lists share.

use serde::Deserialize;

use crate::error::{Code, Problem};

const DEFAULT_PAGE_SIZE: i32 = 20;
const MAX_PAGE_SIZE: i32 = 100;

/// The parameters of a list without filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub limit: Option<i32>,
    pub cursor: Option<String>,
}

/// Returns the size of a page, after [`check_limit`].
pub fn page_size(limit: Option<i32>) -> usize {
    usize::try_from(limit.unwrap_or(DEFAULT_PAGE_SIZE)).unwrap_or_default()
}

/// Rejects a page size out of range.
pub fn check_limit(limit: Option<i32>) -> Result<(), Problem> {
    require(limit.is_none_or(|limit| (1..=MAX_PAGE_SIZE).contains(&limit)), "limit", "must be 1 to 100")
}

/// Rejects a query parameter that violates a rule, with 400 in place of 422.
pub fn require(condition: bool, parameter: &str, message: &str) -> Result<(), Problem> {
    if condition { Ok(()) } else { Err(Problem::malformed(parameter, message)) }
}

/// Turns a validation error of a service into a 400: all of its request came from the query.
pub fn as_query_error(problem: Problem) -> Problem {
    if problem.code == Code::ValidationFailed { problem.with_code(Code::InvalidRequest) } else { problem }
}
