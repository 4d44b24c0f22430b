//! Errors on the wire: a gRPC status with a `google.rpc.ErrorInfo` whose `reason` is the REST code in upper case,
//! what a program needs to know beside it in its `metadata`, field violations where a request broke rules, and when to
//! try again.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Whose reasons these are (`google.rpc.ErrorInfo.domain`).
const DOMAIN: &str = "shoppee";
/// Details travel in headers, which end at 16 KiB: more violations than this are left out.
const MOST_VIOLATIONS: usize = 32;
/// For the same reason.
const LONGEST_MESSAGE: usize = 300;
/// For the same reason: what does not fit into a list is left out. Bytes of JSON.
const MAX_LIST_BYTES: usize = 6 * 1024;

/// What is wrong with a request, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<(String, String)>);

impl Violations {
    /// Notes `message` about `field` unless `holds`.
    pub fn check(&mut self, holds: bool, field: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.0.push((field.into(), message.into()));
        }
    }

    /// Notes the violation inside `parsed`, or gives its value.
    pub fn take<T>(&mut self, field: impl Into<String>, parsed: Result<T, impl Into<String>>) -> Option<T> {
        parsed.map_err(|message| self.0.push((field.into(), message.into()))).ok()
    }

    /// `Ok` where nothing was noted.
    pub fn finish(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(field, message)| (field.as_str(), message.as_str()))
    }
}

impl From<(&str, &str)> for Violations {
    fn from((field, message): (&str, &str)) -> Self {
        Self(vec![(field.to_owned(), message.to_owned())])
    }
}

/// An error as a service tells it; becomes a [`Status`].
#[derive(Clone, Debug)]
pub struct Refusal {
    code: Code,
    reason: &'static str,
    message: Cow<'static, str>,
    violations: Violations,
    facts: HashMap<String, String>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// `reason` is the REST code in upper case; `message` is for people and says nothing of the inside.
    pub fn new(code: Code, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            violations: Violations::default(),
            facts: HashMap::new(),
            retry_after: None,
        }
    }

    /// A request that is well-formed and breaks rules.
    pub fn invalid(violations: Violations) -> Self {
        let mut refusal = Self::new(Code::InvalidArgument, "VALIDATION_FAILED", "the request breaks a rule");
        refusal.violations = violations;
        refusal
    }

    /// A request that is not well-formed: a cursor that is none.
    pub fn malformed(violations: Violations) -> Self {
        let mut refusal =
            Self::new(Code::InvalidArgument, "INVALID_REQUEST", "the request is not well-formed");
        refusal.violations = violations;
        refusal
    }

    /// Adds what a program acts on; REST clients find it as a member of the problem.
    #[must_use]
    pub fn with_fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a list of facts, as JSON; none where it is empty.
    #[must_use]
    pub fn with_facts<T: Serialize>(self, name: &str, items: &[T]) -> Self {
        let mut list = String::new();
        for item in items.iter().filter_map(|item| serde_json::to_string(item).ok()) {
            if list.len() + item.len() >= MAX_LIST_BYTES {
                break;
            }
            list.push(if list.is_empty() { '[' } else { ',' });
            list.push_str(&item);
        }
        if list.is_empty() { self } else { self.with_fact(name, list + "]") }
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(refusal.reason, DOMAIN, refusal.facts);
        for (field, message) in refusal.violations.iter().take(MOST_VIOLATIONS) {
            details.add_bad_request_violation(cut(field), cut(message));
        }
        if let Some(delay) = refusal.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(refusal.code, cut(&refusal.message), details)
    }
}

/// The beginning of a text that may be too long for a header.
fn cut(text: &str) -> String {
    text.chars().take(LONGEST_MESSAGE).collect()
}

/// A dependency does not answer; 503.
pub fn unavailable() -> Refusal {
    Refusal::new(Code::Unavailable, "UNAVAILABLE", "a part of the shop does not answer right now; try again")
        .retry_after(Duration::from_secs(1))
}

/// A request that is no message of its method, or is nested more deeply than is decoded.
pub fn malformed_message() -> Refusal {
    Refusal::malformed(Violations::from((
        "message",
        "cannot be decoded: it is malformed or nested too deeply",
    )))
}

/// Our own fault; the log knows more.
pub fn internal() -> Refusal {
    Refusal::new(Code::Internal, "INTERNAL", "something went wrong on our side")
}

/// What a status of one of our services says.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Upper case; empty where the status did not come from a handler of ours.
    pub reason: String,
    pub violations: Vec<(String, String)>,
    /// By name.
    pub facts: HashMap<String, String>,
    pub retry_after: Option<Duration>,
}

/// Reads what [`Refusal`] wrote.
pub fn read(status: &Status) -> Told {
    let details = status.get_error_details();
    Told {
        reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
        facts: details.error_info().map(|info| info.metadata.clone()).unwrap_or_default(),
        retry_after: details.retry_info().and_then(|info| info.retry_delay),
        violations: details
            .bad_request()
            .map(|bad| {
                bad.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect()
            })
            .unwrap_or_default(),
    }
}
