//! Every error a client can see: the table of codes (contract §1), and what becomes of a service's status.
//! The only file that turns errors into HTTP statuses; a new code is one line of [`codes!`].

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use shoppee_kit::{caller::TokenError, client::is_away, status};
use tonic::{Code as Grpc, Status};

use crate::routes::replay::{REPLAYED, YES, is_replayed};

/// What a client that is refused for load, or for a part that is away, is asked to wait.
const AGAIN: Duration = Duration::from_secs(1);

macro_rules! codes {
    ($($variant:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// The `code` of a problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($variant),* }

        impl Code {
            /// All codes, for the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),* }
            }

            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid_request", BAD_REQUEST, "The request is not well-formed";
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Sign in first";
    TokenExpired = "token_expired", UNAUTHORIZED, "The access token has expired";
    SessionRevoked = "session_revoked", UNAUTHORIZED, "The session has ended";
    InvalidCredentials = "invalid_credentials", UNAUTHORIZED, "Wrong username or password";
    PaymentDeclined = "payment_declined", PAYMENT_REQUIRED, "The payment was declined";
    Forbidden = "forbidden", FORBIDDEN, "Not allowed";
    AccountDisabled = "account_disabled", FORBIDDEN, "The account is disabled";
    NotFound = "not_found", NOT_FOUND, "There is no such thing";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "There is no such method here";
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request did not arrive in time";
    UsernameTaken = "username_taken", CONFLICT, "The username is taken";
    EmailTaken = "email_taken", CONFLICT, "The e-mail address is taken";
    SkuTaken = "sku_taken", CONFLICT, "The SKU is taken";
    SlugTaken = "slug_taken", CONFLICT, "The slug is taken";
    CategoryInUse = "category_in_use", CONFLICT, "The category is in use";
    InvalidTransition = "invalid_transition", CONFLICT, "The order cannot take this step";
    OrderExpired = "order_expired", CONFLICT, "The order has run out";
    OutOfStock = "out_of_stock", CONFLICT, "There is not enough in stock";
    ProductUnavailable = "product_unavailable", CONFLICT, "The product cannot be bought";
    CartEmpty = "cart_empty", CONFLICT, "The cart is empty";
    PriceChanged = "price_changed", CONFLICT, "The price has changed";
    TooManyUnpaidOrders = "too_many_unpaid_orders", CONFLICT, "Too many orders are not paid yet";
    TooManyUnpaidUnits = "too_many_unpaid_units", CONFLICT, "Too many units are not paid yet";
    RequestInProgress = "request_in_progress", CONFLICT, "The same request is still running";
    VersionMismatch = "version_mismatch", PRECONDITION_FAILED, "It was changed in the meantime";
    PayloadTooLarge = "payload_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body must be JSON";
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY, "The request breaks a rule";
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The key was used for another body";
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, "Too many requests";
    TooManyAttempts = "too_many_attempts", TOO_MANY_REQUESTS, "Too many attempts";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong on our side";
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Not available right now";
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, "It took too long";
}

impl Code {
    /// The code that a service's reason names: the same word, in upper case.
    fn of_reason(reason: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str().eq_ignore_ascii_case(reason))
    }
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

/// An error on its way to the client (RFC 9457). It is written out by [`Problem::render`], in the outermost
/// layer, which knows the id of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    /// A token was sent, and is not good: RFC 6750 wants that said.
    bad_token: bool,
    /// It was answered before, under the same idempotency key.
    replayed: bool,
}

impl Problem {
    /// `detail` is for people, and says nothing of the inside.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            // 503 and 504 pass; a 429 knows better when.
            retry_after: code.status().is_server_error().then_some(AGAIN).filter(|_| code != Code::Internal),
            bad_token: false,
            replayed: false,
        }
    }

    /// A request of the wrong shape.
    pub fn malformed(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, "the request is not well-formed").on(field, message)
    }

    /// A request that breaks a rule which only this side can see.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::ValidationFailed, "the request breaks a rule").on(field, message)
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

    /// A part of the shop is away, or there is more to do than can be done.
    pub fn unavailable() -> Self {
        Self::new(Code::Unavailable, "a part of the shop does not answer right now; try again")
            .retry_after(AGAIN)
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    #[must_use]
    pub fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    fn on(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.errors.push(FieldError { field: field.into(), message: message.into() });
        self
    }

    /// What is wrong, field by field.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The answer, with the body that names the request.
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
        }

        let status = self.code.status();
        let body = Body {
            kind: format!("/docs#{}", self.code.as_str()),
            title: self.code.title(),
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            request_id,
            errors: self.errors,
        };
        // Strings and numbers always serialise.
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
        response.headers_mut().extend(self.replayed.then_some((Some(REPLAYED), YES)));
        response
    }
}

/// Rounded up: whoever waits this long has waited long enough.
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

/// Carries the problem to the outermost layer; what stands between sees only its status.
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
    /// A status with a reason came from a handler of ours and says what it means. One without came from the
    /// way there and back, or from a fault.
    fn from(status: Status) -> Self {
        let told = status::read(&status);
        if let Some(code) = Code::of_reason(&told.reason) {
            let errors = told.violations.into_iter().map(|(field, message)| FieldError { field, message });
            let retry_after = match code.status() {
                StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
                | StatusCode::TOO_MANY_REQUESTS => Some(told.retry_after.unwrap_or(AGAIN)),
                _ => told.retry_after,
            };
            let bad_token = matches!(code, Code::Unauthenticated | Code::TokenExpired | Code::SessionRevoked);
            let detail = status.message().to_owned().into();
            let replayed = is_replayed(status.metadata());
            return Self { code, detail, errors: errors.collect(), retry_after, bad_token, replayed };
        }
        match status.code() {
            _ if is_away(&status) => Self::unavailable(),
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
                tracing::error!(code = ?status.code(), message = status.message(), "a service failed");
                Self::internal()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoppee_kit::status::{Refusal, Violations};

    use super::*;

    #[test]
    fn every_reason_of_a_service_has_its_status() {
        for code in Code::ALL {
            let reason: &'static str = code.as_str().to_ascii_uppercase().leak();
            let status: Status = Refusal::new(Grpc::FailedPrecondition, reason, "said so").into();
            assert_eq!(Problem::from(status).code, *code);
        }
    }

    #[test]
    fn violations_arrive_field_by_field() {
        let status: Status = Refusal::invalid(Violations::from(("price", "must not be negative"))).into();
        let problem = Problem::from(status);
        assert_eq!(problem.code.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem.errors[0].field, "price");
    }

    #[test]
    fn a_status_without_a_reason_goes_by_its_code() {
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
            assert!(!problem.detail.contains("relation"), "the inside is not shown");
        }
    }

    #[test]
    fn waiting_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2001)), 3);
    }
}
