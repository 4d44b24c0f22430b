//! What the parameters of lists have in common.

use serde::Deserialize;

use crate::error::{Code, Problem};

const MOST_ITEMS: i32 = 100;

/// The parameters of a list without filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub limit: Option<i32>,
    pub cursor: Option<String>,
}

/// How many items a page may have.
pub fn check_limit(limit: Option<i32>) -> Result<(), Problem> {
    check(limit.is_none_or(|limit| (1..=MOST_ITEMS).contains(&limit)), "limit", "must be 1 to 100")
}

/// A query parameter that breaks a rule is a bad one: 400, not 422.
pub fn check(holds: bool, parameter: &str, message: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem::malformed(parameter, message)) }
}

/// The same where the service found it: all that it was sent came from the query.
pub fn of_query(problem: Problem) -> Problem {
    if problem.code == Code::ValidationFailed { problem.with_code(Code::InvalidRequest) } else { problem }
}
