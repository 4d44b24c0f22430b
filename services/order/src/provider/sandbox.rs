//! A payment provider for tests and demos. It moves no money, and the payment token decides the outcome.

use std::time::Duration;

use shoppee_kit::{database_clock::DatabaseClock, pg::PgPool};
use uuid::Uuid;

use super::{Outcome, PaymentToken, RefundOutcome};
use crate::{decline::Decline, error::Error, store::sandbox as ledger};

/// The delay of a charge with the slow token.
const SLOW_CHARGE_DELAY: Duration = Duration::from_secs(3);

/// The sandbox. Its ledger is in tables of its own, which survive a crash of this process like those of a real
/// provider.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pool: PgPool,
    clock: DatabaseClock,
}

impl Sandbox {
    pub fn new(pool: PgPool, clock: DatabaseClock) -> Self {
        Self { pool, clock }
    }

    pub async fn charge(
        &self,
        attempt: Uuid,
        amount: i64,
        currency: &str,
        token: PaymentToken,
    ) -> Result<Outcome, Error> {
        let outcome = match token {
            PaymentToken::Ok => "approved",
            PaymentToken::Slow => {
                tokio::time::sleep(SLOW_CHARGE_DELAY).await;
                "approved"
            }
            PaymentToken::Declined => "declined",
            PaymentToken::InsufficientFunds => "insufficient_funds",
        };
        self.record(attempt, outcome, amount, currency).await
    }

    pub async fn void_or_get_outcome(&self, attempt: Uuid) -> Result<Outcome, Error> {
        self.record(attempt, "voided", 0, "").await
    }

    pub async fn refund(&self, attempt: Uuid) -> Result<RefundOutcome, Error> {
        let mut conn = self.pool.acquire().await?;
        Ok(match ledger::refund(&mut conn, attempt).await?.as_deref() {
            Some("refunded") => RefundOutcome::Refunded,
            Some(_) | None => RefundOutcome::Rejected("nothing was charged"),
        })
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
        let outcome = ledger::record(&mut conn, attempt, outcome, amount, currency, now).await?;
        match outcome.as_str() {
            "approved" => Ok(Outcome::Approved),
            "declined" => Ok(Outcome::Declined(Decline::Card)),
            "insufficient_funds" => Ok(Outcome::Declined(Decline::InsufficientFunds)),
            "voided" | "refunded" => Ok(Outcome::Voided),
            _ => Err(Error::Internal("an unknown outcome in the sandbox's ledger")),
        }
    }
}
