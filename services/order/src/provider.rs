//! The payment provider: what a payment token stands for, and the calls that move money. Each carries the attempt's id
//! as its idempotency key, and may be repeated. To add a provider, add a variant to [`Provider`] and its arms.

use std::time::Duration;

use shoppee_kit::pg::PgPool;
use shoppee_kit::{database_clock::DatabaseClock, status::Violations};
use uuid::Uuid;

use crate::{error::Error, store::sandbox as books};

/// The time that the slow sandbox token takes.
const SLOW: Duration = Duration::from_secs(3);

/// The meaning of a payment token in the sandbox.
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

/// Why the provider declines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    Card,
    InsufficientFunds,
}

impl Decline {
    pub const ALL: [Self; 2] = [Self::Card, Self::InsufficientFunds];

    /// For programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Card => "card_declined",
            Self::InsufficientFunds => "insufficient_funds",
        }
    }

    /// For people; also how an answer is kept.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Card => "the card was declined",
            Self::InsufficientFunds => "there are not sufficient funds",
        }
    }
}

/// The provider's word on an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Approved,
    Declined(Decline),
    /// It will never be charged.
    Voided,
}

/// The provider's word on a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundOutcome {
    Refunded,
    /// It will never be refunded.
    Refused(&'static str),
}

/// The service that takes the money. To add one, add a variant and its arms; each call carries the attempt's id and may
/// be repeated.
#[derive(Clone, Debug)]
pub enum Provider {
    Sandbox(Sandbox),
}

/// Takes no money. Its books stand in tables of their own, as a real provider keeps its on its side, so that they
/// survive a crash of ours.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pool: PgPool,
    clock: DatabaseClock,
}

impl Provider {
    pub fn sandbox(pool: PgPool, clock: DatabaseClock) -> Self {
        Self::Sandbox(Sandbox { pool, clock })
    }

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

    /// Returns the outcome of an attempt; one that has not been charged never will be.
    pub async fn settle(&self, attempt: Uuid) -> Result<Outcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.record(attempt, "voided", 0, "").await,
        }
    }

    /// Gives the money of an attempt back; a second time changes nothing.
    pub async fn refund(&self, attempt: Uuid) -> Result<RefundOutcome, Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.refund(attempt).await,
        }
    }
}

impl Sandbox {
    async fn charge(
        &self,
        attempt: Uuid,
        amount: i64,
        currency: &str,
        token: PaymentToken,
    ) -> Result<Outcome, Error> {
        let outcome = match token {
            PaymentToken::Ok => "approved",
            PaymentToken::Slow => {
                tokio::time::sleep(SLOW).await;
                "approved"
            }
            PaymentToken::Declined => "declined",
            PaymentToken::InsufficientFunds => "insufficient_funds",
        };
        self.record(attempt, outcome, amount, currency).await
    }

    async fn record(
        &self,
        attempt: Uuid,
        outcome: &str,
        amount: i64,
        currency: &str,
    ) -> Result<Outcome, Error> {
        let mut conn = self.pool.acquire().await?;
        let now = self.clock.now();
        let outcome = books::record(&mut conn, attempt, outcome, amount, currency, now).await?;
        match outcome.as_str() {
            "approved" => Ok(Outcome::Approved),
            "declined" => Ok(Outcome::Declined(Decline::Card)),
            "insufficient_funds" => Ok(Outcome::Declined(Decline::InsufficientFunds)),
            "voided" | "refunded" => Ok(Outcome::Voided),
            _ => Err(Error::Broken("the sandbox's books")),
        }
    }

    async fn refund(&self, attempt: Uuid) -> Result<RefundOutcome, Error> {
        let mut conn = self.pool.acquire().await?;
        Ok(match books::refund(&mut conn, attempt).await?.as_deref() {
            Some("refunded") => RefundOutcome::Refunded,
            Some(_) | None => RefundOutcome::Refused("nothing was charged"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sandbox_tokens_are_tokens() {
        assert_eq!(PaymentToken::parse("tok_ok"), Ok(PaymentToken::Ok));
        for odd in ["", "tok", "TOK_OK", "tok_ok ", "tok_visa"] {
            assert!(PaymentToken::parse(odd).is_err(), "{odd}");
        }
    }
}
