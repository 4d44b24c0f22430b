//! The errors of the auth service, and their gRPC statuses. Only this file depends on gRPC codes.

use std::time::Duration;

use shoppee_kit::{
    idempotency::{self, KeyReused},
    pg,
    status::{ServiceError, Violations, internal, unavailable},
};
use tonic::{Code, Status};

use crate::{password::HashError, token::TokenError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field violates a rule.
    #[error("validation failed")]
    Invalid(Violations),
    /// A parameter or a cursor is malformed.
    #[error("malformed request")]
    Malformed(Violations),
    #[error("this username is taken")]
    UsernameTaken,
    #[error("this e-mail address is taken")]
    EmailTaken,
    /// The name or the password is wrong. The error does not show whether the account exists.
    #[error("the name or the password is wrong")]
    InvalidCredentials,
    #[error("this account is disabled")]
    AccountDisabled,
    #[error("too many passwords were tried; try again later")]
    TooManyAttempts { retry_after: Duration },
    /// The token was never issued, or was deleted by the cleanup.
    #[error("the refresh token is not valid")]
    UnknownRefreshToken,
    #[error("the ticket was used before")]
    TicketUsed,
    /// A service account got too many tokens.
    #[error("too many tokens were issued; keep a token until it expires")]
    TooManyTokens { retry_after: Duration },
    #[error("{0}")]
    KeyReused(#[from] KeyReused),
    /// A concurrent request has the same idempotency key.
    #[error("the same request is in progress")]
    InProgress,
    #[error("the session has expired; sign in again")]
    SessionExpired,
    #[error("the session has ended; sign in again")]
    SessionEnded,
    /// The named resource does not exist.
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("password hashing: {0}")]
    Hash(#[from] HashError),
    #[error("tokens: {0}")]
    Token(#[from] TokenError),
    #[error("database: {0}")]
    Store(#[from] sqlx::Error),
    #[error("{0}")]
    Internal(&'static str),
}

impl Error {
    /// Creates the error of one invalid field.
    pub fn invalid(field: &str, message: &str) -> Self {
        Self::Invalid(Violations::from((field, message)))
    }
}

impl From<Error> for ServiceError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Invalid(violations) => Self::invalid(violations),
            Error::Malformed(violations) => Self::malformed(violations),
            Error::UsernameTaken => Self::new(Code::AlreadyExists, "USERNAME_TAKEN", message),
            Error::EmailTaken => Self::new(Code::AlreadyExists, "EMAIL_TAKEN", message),
            Error::InvalidCredentials => Self::new(Code::Unauthenticated, "INVALID_CREDENTIALS", message),
            Error::AccountDisabled => Self::new(Code::PermissionDenied, "ACCOUNT_DISABLED", message),
            Error::TooManyAttempts { retry_after } => {
                Self::new(Code::ResourceExhausted, "TOO_MANY_ATTEMPTS", message)
                    .with_metadata("limit", "account")
                    .retry_after(retry_after)
            }
            Error::TooManyTokens { retry_after } => {
                Self::new(Code::ResourceExhausted, "TOO_MANY_ATTEMPTS", message)
                    .with_metadata("limit", "client")
                    .retry_after(retry_after)
            }
            Error::UnknownRefreshToken | Error::TicketUsed => {
                Self::new(Code::Unauthenticated, "UNAUTHENTICATED", message)
            }
            Error::KeyReused(error) => error.into(),
            Error::InProgress => idempotency::in_progress(),
            Error::SessionExpired => Self::new(Code::Unauthenticated, "TOKEN_EXPIRED", message),
            Error::SessionEnded => Self::new(Code::Unauthenticated, "SESSION_REVOKED", message),
            Error::NotFound(_) => Self::new(Code::NotFound, "NOT_FOUND", message),
            Error::Hash(HashError::Overloaded) => unavailable(),
            Error::Store(error) if pg::is_unavailable(&error) => unavailable(),
            Error::Hash(HashError::Argon2(_) | HashError::RandomSource | HashError::WorkerLost)
            | Error::Token(_)
            | Error::Store(_)
            | Error::Internal(_) => {
                tracing::error!(error = message, "internal error");
                internal()
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        ServiceError::from(error).into()
    }
}
