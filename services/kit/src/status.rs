//! The error model of gRPC responses (`google.rpc.Status` with details, AIP-193).
//!
//! `google.rpc.ErrorInfo` has the REST code in upper case as its `reason`, and the data that a program acts on as its
//! `metadata`. `BadRequest` lists the violated fields, `RetryInfo` the delay before a retry.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "shoppee";
/// Bounds the violations of a status. Details travel in headers, which are limited to 16 KiB; so are the next two.
const MAX_VIOLATIONS: usize = 32;
/// Bounds a message, in characters.
const MAX_MESSAGE_LEN: usize = 300;
/// Bounds a list in the metadata, in bytes of JSON; further items are left out.
const MAX_LIST_BYTES: usize = 6 * 1024;

/// The violated fields of a request, each with a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<(String, String)>);

impl Violations {
    /// Adds a violation unless `condition` is true.
    pub fn require(&mut self, condition: bool, field: impl Into<String>, message: impl Into<String>) {
        if !condition {
            self.0.push((field.into(), message.into()));
        }
    }

    /// Returns the value of `result`, or adds its error as a violation.
    pub fn collect<T>(
        &mut self,
        field: impl Into<String>,
        result: Result<T, impl Into<String>>,
    ) -> Option<T> {
        result.map_err(|message| self.0.push((field.into(), message.into()))).ok()
    }

    /// Returns `Ok` if there is no violation.
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

/// The error response of a service; converts into a [`Status`].
#[derive(Clone, Debug)]
pub struct ServiceError {
    code: Code,
    reason: &'static str,
    message: Cow<'static, str>,
    violations: Violations,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
}

impl ServiceError {
    /// Creates an error. `reason` is the REST code in upper case; `message` is for people and has no internal details.
    pub fn new(code: Code, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            violations: Violations::default(),
            metadata: HashMap::new(),
            retry_after: None,
        }
    }

    /// Creates the error of a well-formed request that violates rules.
    pub fn invalid(violations: Violations) -> Self {
        let mut error = Self::new(Code::InvalidArgument, "VALIDATION_FAILED", "the request breaks a rule");
        error.violations = violations;
        error
    }

    /// Creates the error of a request that is not well-formed, such as an undecodable cursor.
    pub fn malformed(violations: Violations) -> Self {
        let mut error = Self::new(Code::InvalidArgument, "INVALID_REQUEST", "the request is not well-formed");
        error.violations = violations;
        error
    }

    /// Adds metadata of `google.rpc.ErrorInfo`; in REST it is a member of the problem.
    #[must_use]
    pub fn with_metadata(mut self, name: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a list to the metadata, as JSON; an empty list is left out.
    #[must_use]
    pub fn with_metadata_list<T: Serialize>(self, name: &str, items: &[T]) -> Self {
        let mut list = String::new();
        for item in items.iter().filter_map(|item| serde_json::to_string(item).ok()) {
            if list.len() + item.len() >= MAX_LIST_BYTES {
                break;
            }
            list.push(if list.is_empty() { '[' } else { ',' });
            list.push_str(&item);
        }
        if list.is_empty() { self } else { self.with_metadata(name, list + "]") }
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let mut details = tonic_types::ErrorDetails::new();
        details.set_error_info(error.reason, DOMAIN, error.metadata);
        for (field, message) in error.violations.iter().take(MAX_VIOLATIONS) {
            details.add_bad_request_violation(truncate(field), truncate(message));
        }
        if let Some(delay) = error.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(error.code, truncate(&error.message), details)
    }
}

/// Truncates a text to what fits into a header.
fn truncate(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_LEN).collect()
}

/// Creates the error of a dependency that does not answer; 503 in REST.
pub fn unavailable() -> ServiceError {
    ServiceError::new(
        Code::Unavailable,
        "UNAVAILABLE",
        "a part of the shop does not answer right now; try again",
    )
    .retry_after(Duration::from_secs(1))
}

/// Creates the error of a request that cannot be decoded.
pub fn malformed_message() -> ServiceError {
    ServiceError::malformed(Violations::from((
        "message",
        "cannot be decoded: it is malformed or nested too deeply",
    )))
}

/// Creates the error of a fault of the service; the log has the details.
pub fn internal() -> ServiceError {
    ServiceError::new(Code::Internal, "INTERNAL", "something went wrong on our side")
}

/// The details of a status that a service returned.
#[derive(Clone, Debug, Default)]
pub struct ErrorDetails {
    /// Upper case; empty if the status did not come from a handler of a service.
    pub reason: String,
    pub violations: Vec<(String, String)>,
    /// The metadata of `google.rpc.ErrorInfo`.
    pub metadata: HashMap<String, String>,
    pub retry_after: Option<Duration>,
}

/// Parses the details that a [`ServiceError`] was converted into.
pub fn parse(status: &Status) -> ErrorDetails {
    let details = status.get_error_details();
    ErrorDetails {
        reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
        metadata: details.error_info().map(|info| info.metadata.clone()).unwrap_or_default(),
        retry_after: details.retry_info().and_then(|info| info.retry_delay),
        violations: details
            .bad_request()
            .map(|bad| {
                bad.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect()
            })
            .unwrap_or_default(),
    }
}
