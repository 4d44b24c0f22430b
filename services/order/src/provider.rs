//! The payment provider: payment tokens, and the calls that move money. Each call carries the attempt's id as its
//! idempotency key, and may be repeated. To add a provider, add a variant to [`Provider`] and its arms.

mod sandbox;

use shoppee_kit::{database_clock::DatabaseClock, pg::PgPool, status::Violations};
use uuid::Uuid;

use self::sandbox::Sandbox;
use crate::{decline::Decline, error::Error};

/// A payment token, by its meaning in the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentToken {
    Ok,
    Slow,
    Declined,
    InsufficientFunds,
}

impl PaymentToken {
    pub fn parse(token: &str) -> Result<Self, Violations> {
        match token {
            "tok_ok" => Ok(Self::Ok),
            "tok_slow" => Ok(Self::Slow),
            "tok_declined" => Ok(Self::Declined),
            "tok_insufficient_funds" => Ok(Self::InsufficientFunds),
            _ => Err(("payment_token", "is not a payment token").into()),
        }
    }
}

/// The outcome of a payment attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Approved,
    Declined(Decline),
    /// The attempt will never be charged.
    Voided,
}

/// The outcome of a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundOutcome {
    Refunded,
    /// The attempt will never be refunded; with the reason.
    Rejected(&'static str),
}

/// A client of a payment provider.
#[derive(Clone, Debug)]
pub enum Provider {
    Sandbox(Sandbox),
}

impl Provider {
    pub fn sandbox(pool: PgPool, clock: DatabaseClock) -> Self {
        Self::Sandbox(Sandbox::new(pool, clock))
    }

    /// Charges `amount` minor units.
    #[tracing::instrument(name = "payment.charge", skip_all)]
    pub async fn charge(
        &self,
        attempt: Uuid,
        amount: i64,
        currency: &str,
        token: PaymentToken,
    ) -> Result<Outcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.charge(attempt, amount, currency, token).await,
        }
    }

    /// Returns the outcome of an attempt. If the attempt has none, voids it, so that it is never charged.
    pub async fn void_or_get_outcome(&self, attempt: Uuid) -> Result<Outcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.void_or_get_outcome(attempt).await,
        }
    }

    /// Refunds an attempt; a repeat changes nothing.
    pub async fn refund(&self, attempt: Uuid) -> Result<RefundOutcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.refund(attempt).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_texts_of_sandbox_tokens_parse() {
        assert_eq!(PaymentToken::parse("tok_ok"), Ok(PaymentToken::Ok));
        for invalid in ["", "tok", "TOK_OK", "tok_ok ", "tok_visa"] {
            assert!(PaymentToken::parse(invalid).is_err(), "{invalid}");
        }
    }
}
