//! The ledger of the sandbox payment provider, which a real provider keeps on its side.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// Records an outcome unless the attempt has one, and returns the recorded outcome.
pub async fn record(
    conn: &mut PgConnection,
    attempt_id: Uuid,
    outcome: &str,
    amount: i64,
    currency: &str,
    now: OffsetDateTime,
) -> sqlx::Result<String> {
    sqlx::query_scalar!(
        "insert into orders.sandbox_charge as charge (attempt_id, outcome, amount, currency, at)
         values ($1, $2, $3, $4, $5)
         on conflict (attempt_id) do update set outcome = charge.outcome
         returning outcome",
        attempt_id,
        outcome,
        amount,
        currency,
        now
    )
    .fetch_one(conn)
    .await
}

/// Refunds an approved charge, and returns the recorded outcome, if any. A repeat changes nothing.
pub async fn refund(conn: &mut PgConnection, attempt_id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "update orders.sandbox_charge
         set outcome = case outcome when 'approved' then 'refunded' else outcome end
         where attempt_id = $1
         returning outcome",
        attempt_id
    )
    .fetch_optional(conn)
    .await
}
