//! What can go wrong, and what callers are told of it. The only place that knows gRPC's codes.

use std::time::Duration;

use shoppee_kit::{
    idempotency::KeyReused,
    pg,
    status::{Refusal, Violations, internal, unavailable},
};
use tonic::{Code, Status};

use crate::{password::HashError, token::TokenError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule is broken.
    #[error("a rule is broken")]
    Invalid(Violations),
    /// A query parameter or a cursor is none.
    #[error("not well-formed")]
    Malformed(Violations),
    #[error("this username is taken")]
    UsernameTaken,
    #[error("this e-mail address is taken")]
    EmailTaken,
    /// The same whether the account exists or not.
    #[error("the name or the password is wrong")]
    InvalidCredentials,
    #[error("this account is disabled")]
    AccountDisabled,
    #[error("too many passwords were tried; try again later")]
    TooManyAttempts { retry_after: Duration },
    /// Never handed out, or so long ago that it is forgotten.
    #[error("the refresh token is not valid")]
    UnknownRefreshToken,
    #[error("the ticket was used before")]
    TicketUsed,
    #[error("{0}")]
    KeyReused(#[from] KeyReused),
    #[error("the session has expired; sign in again")]
    SessionExpired,
    #[error("the session has ended; sign in again")]
    SessionEnded,
    /// What is named.
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("password hashing: {0}")]
    Hash(#[from] HashError),
    #[error("tokens: {0}")]
    Token(#[from] TokenError),
    #[error("database: {0}")]
    Store(#[from] sqlx::Error),
}

impl Error {
    /// A rule about one field.
    pub fn invalid(field: &str, message: &str) -> Self {
        Self::Invalid(Violations::from((field, message)))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let told = error.to_string();
        match error {
            Error::Invalid(violations) => Self::invalid(violations),
            Error::Malformed(violations) => Self::malformed(violations),
            Error::UsernameTaken => Self::new(Code::AlreadyExists, "USERNAME_TAKEN", told),
            Error::EmailTaken => Self::new(Code::AlreadyExists, "EMAIL_TAKEN", told),
            Error::InvalidCredentials => Self::new(Code::Unauthenticated, "INVALID_CREDENTIALS", told),
            Error::AccountDisabled => Self::new(Code::PermissionDenied, "ACCOUNT_DISABLED", told),
            Error::TooManyAttempts { retry_after } => {
                Self::new(Code::ResourceExhausted, "TOO_MANY_ATTEMPTS", told)
                    .with_fact("limit", "account")
                    .retry_after(retry_after)
            }
            Error::UnknownRefreshToken | Error::TicketUsed => {
                Self::new(Code::Unauthenticated, "UNAUTHENTICATED", told)
            }
            Error::KeyReused(error) => error.into(),
            Error::SessionExpired => Self::new(Code::Unauthenticated, "TOKEN_EXPIRED", told),
            Error::SessionEnded => Self::new(Code::Unauthenticated, "SESSION_REVOKED", told),
            Error::NotFound(_) => Self::new(Code::NotFound, "NOT_FOUND", told),
            Error::Hash(HashError::Busy) => unavailable(),
            Error::Store(error) if pg::is_unavailable(&error) => unavailable(),
            Error::Hash(HashError::Argon2(_) | HashError::Random | HashError::Lost)
            | Error::Token(_)
            | Error::Store(_) => {
                tracing::error!(error = told, "internal error");
                internal()
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Refusal::from(error).into()
    }
}
