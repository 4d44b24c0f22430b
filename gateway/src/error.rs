//! The errors that clients see: problem details (RFC 9457), made from the table of [`codes`] and from the gRPC status
//! of a service. No other module maps errors to HTTP statuses.

mod codes;
mod oauth;

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::{Map, Value};
use shoppee_kit::{caller::TokenError, client::is_unavailable, status};
use tonic::{Code as Grpc, Status};

use crate::replay::{REPLAYED, TRUE, is_replayed};
pub use codes::Code;
pub use oauth::OAuthError;

/// The `Retry-After` of overload and of an unavailable service.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The extension members of a problem, and their encoding in `google.rpc.ErrorInfo.metadata`.
const FACTS: [(&str, FactEncoding); 6] = [
    ("lines", FactEncoding::Json),
    ("current_total", FactEncoding::Json),
    ("current_status", FactEncoding::Text),
    ("allowed", FactEncoding::Json),
    ("decline_code", FactEncoding::Text),
    ("limit", FactEncoding::Text),
];

#[derive(Clone, Copy, Debug)]
enum FactEncoding {
    Text,
    Json,
}

impl FactEncoding {
    fn decode(self, text: &str) -> Option<Value> {
        match self {
            Self::Text => Some(text.into()),
            Self::Json => serde_json::from_str(text).ok(),
        }
    }
}

/// The error of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

/// Problem details (RFC 9457). The request middleware renders them with [`Problem::render`], as it knows the request
/// id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    /// Extension members, some of [`FACTS`].
    facts: Map<String, Value>,
    retry_after: Option<Duration>,
    /// The request had an invalid token, which `WWW-Authenticate` states (RFC 6750).
    bad_token: bool,
    /// The response repeats that of an earlier request with the same idempotency key.
    replayed: bool,
}

impl Problem {
    /// `detail` is for people, and reveals no internals.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            facts: Map::new(),
            // 503 and 504 are temporary. A 429 sets a delay of its own.
            retry_after: code
                .status()
                .is_server_error()
                .then_some(DEFAULT_RETRY_AFTER)
                .filter(|_| code != Code::Internal),
            bad_token: false,
            replayed: false,
        }
    }

    /// Returns a 400 for a request of the wrong shape.
    pub fn malformed(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, "the request is not well-formed").with_field_error(field, message)
    }

    /// Returns a 422 for a request that breaks a rule of the gateway.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::ValidationFailed, "the request breaks a rule").with_field_error(field, message)
    }

    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "there is no such thing")
    }

    pub fn method_not_allowed() -> Self {
        Self::new(Code::MethodNotAllowed, "the method is not one of those in Allow")
    }

    pub fn forbidden() -> Self {
        Self::new(Code::Forbidden, "your role does not allow this")
    }

    pub fn internal() -> Self {
        Self::new(Code::Internal, "something went wrong on our side")
    }

    /// Returns a 503 for an unavailable service or overload.
    pub fn unavailable() -> Self {
        Self::new(Code::Unavailable, "a part of the shop does not answer right now; try again")
            .retry_after(DEFAULT_RETRY_AFTER)
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds an extension member, one of [`FACTS`].
    #[must_use]
    pub fn with_fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    fn with_field_error(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.add_field_error(field.into(), message.into());
        self
    }

    /// Adds another error of the same request.
    pub fn add_field_error(&mut self, field: String, message: String) {
        self.errors.push(FieldError { field, message });
    }

    /// Returns the errors of fields.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Returns the response, whose body names the request.
    pub fn render(self, request_id: &str) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(rename = "type")]
            kind: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            request_id: &'a str,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            errors: Vec<FieldError>,
            #[serde(flatten)]
            facts: Map<String, Value>,
        }

        let status = self.code.status();
        let body = Body {
            kind: self.code.type_uri(),
            title: self.code.title(),
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            request_id,
            errors: self.errors,
            facts: self.facts,
        };
        // Strings and numbers always serialize.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response =
            (status, [(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))], body)
                .into_response();
        if let Some(delay) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, whole_seconds(delay).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge(self.bad_token));
        }
        response.headers_mut().extend(self.replayed.then_some((Some(REPLAYED), TRUE)));
        response
    }
}

/// Returns the delay in seconds, rounded up, so that a client does not return too early.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}

fn challenge(bad_token: bool) -> HeaderValue {
    if bad_token {
        HeaderValue::from_static(r#"Bearer realm="shoppee", error="invalid_token""#)
    } else {
        HeaderValue::from_static(r#"Bearer realm="shoppee""#)
    }
}

/// Carries the problem to the request middleware. Layers in between see its status alone.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Missing | TokenError::Invalid => Code::Unauthenticated,
            TokenError::Expired => Code::TokenExpired,
            TokenError::Revoked => Code::SessionRevoked,
            TokenError::NoKeys => return Self::unavailable(),
        };
        Self { bad_token: error != TokenError::Missing, ..Self::new(code, error.to_string()) }
    }
}

impl From<Status> for Problem {
    /// A status with a reason comes from a handler of a service. One without comes from the transport, or from a fault.
    fn from(status: Status) -> Self {
        let details = status::parse(&status);
        if let Some(code) = Code::from_reason(&details.reason) {
            let errors = details.violations.into_iter().map(|(field, message)| FieldError { field, message });
            let fact = |(name, encoding): &(&str, FactEncoding)| {
                Some(((*name).to_owned(), encoding.decode(details.metadata.get(*name)?)?))
            };
            let facts = FACTS.iter().filter_map(fact).collect();
            let retry_after = match code.status() {
                StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
                | StatusCode::TOO_MANY_REQUESTS => Some(details.retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
                _ => details.retry_after,
            };
            let bad_token = matches!(code, Code::Unauthenticated | Code::TokenExpired | Code::SessionRevoked);
            let detail = status.message().to_owned().into();
            let replayed = is_replayed(status.metadata());
            return Self { code, detail, errors: errors.collect(), facts, retry_after, bad_token, replayed };
        }
        match status.code() {
            _ if is_unavailable(&status) => Self::unavailable(),
            Grpc::DeadlineExceeded | Grpc::Cancelled => {
                Self::new(Code::DeadlineExceeded, "it was not answered in time")
            }
            Grpc::Unavailable | Grpc::ResourceExhausted | Grpc::Unimplemented => Self::unavailable(),
            Grpc::Unauthenticated => TokenError::Invalid.into(),
            Grpc::PermissionDenied => Self::forbidden(),
            Grpc::NotFound => Self::not_found(),
            Grpc::Ok
            | Grpc::Unknown
            | Grpc::Internal
            | Grpc::InvalidArgument
            | Grpc::AlreadyExists
            | Grpc::FailedPrecondition
            | Grpc::Aborted
            | Grpc::OutOfRange
            | Grpc::DataLoss => {
                tracing::error!(code = ?status.code(), error = status.message(), "service call failed");
                Self::internal()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoppee_kit::status::{ServiceError, Violations};

    use super::*;

    #[test]
    fn each_reason_of_a_service_becomes_its_code() {
        for code in Code::ALL {
            let reason: &'static str = code.as_str().to_ascii_uppercase().leak();
            let status: Status = ServiceError::new(Grpc::FailedPrecondition, reason, "said so").into();
            assert_eq!(Problem::from(status).code, *code);
        }
    }

    #[test]
    fn each_violation_becomes_a_field_error() {
        let status: Status =
            ServiceError::invalid(Violations::from(("price", "must not be negative"))).into();
        let problem = Problem::from(status);
        assert_eq!(problem.code.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem.errors[0].field, "price");
    }

    #[test]
    fn known_facts_become_members_of_their_types() {
        let refusal = ServiceError::new(Grpc::FailedPrecondition, "PRICE_CHANGED", "it costs more now")
            .with_metadata("current_total", "1999")
            .with_metadata("current_status", "2")
            .with_metadata("allowed", r#"["cancel"]"#)
            .with_metadata("lines", "not JSON")
            .with_metadata("secret", "of the inside");
        let problem = Problem::from(Status::from(refusal));
        let members =
            serde_json::json!({"current_total": 1999, "current_status": "2", "allowed": ["cancel"]});
        assert_eq!(Value::from(problem.facts), members);
    }

    #[test]
    fn a_status_without_a_reason_is_mapped_by_its_grpc_code() {
        for (grpc, status) in [
            (Grpc::Unavailable, 503),
            (Grpc::Unimplemented, 503),
            (Grpc::DeadlineExceeded, 504),
            (Grpc::Cancelled, 504),
            (Grpc::Internal, 500),
            (Grpc::Unknown, 500),
        ] {
            let problem = Problem::from(Status::new(grpc, "relation \"orders\" does not exist"));
            assert_eq!(problem.code.status().as_u16(), status);
            assert!(!problem.detail.contains("relation"), "internals are not shown");
        }
    }

    #[test]
    fn retry_after_is_rounded_up_to_seconds() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2001)), 3);
    }
}
