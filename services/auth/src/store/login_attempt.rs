//! Login attempts: a sliding window per subject, shared by all replicas.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;

/// The hash of a subject's name.
pub type Subject = [u8; 32];

/// The decision on an attempt.
#[derive(Debug)]
pub enum Attempt {
    /// The attempt is allowed, and counted at this time.
    Allowed(OffsetDateTime),
    /// The attempt is rejected until this time has passed, and not counted.
    Limited(Duration),
}

/// Counts an attempt, unless `max` were counted within the last `window`. One statement decides and counts, so that
/// `max` of any number of concurrent attempts are allowed.
pub async fn record(
    conn: &mut PgConnection,
    subject: &Subject,
    max: i64,
    window: Duration,
) -> Result<Attempt, sqlx::Error> {
    let seconds = window.as_secs_f64();
    let recorded_at = sqlx::query_scalar!(
        r#"insert into auth.password_try as past (subject, tried_at)
           values ($1, array[clock_timestamp()])
           on conflict on constraint password_try_pkey do update
           set tried_at = array_append(
               (select array_agg(try.at order by try.at) from unnest(past.tried_at) as try (at)
                where try.at > clock_timestamp() - make_interval(secs => $2)),
               clock_timestamp())
           where (select count(*) from unnest(past.tried_at) as try (at)
                  where try.at > clock_timestamp() - make_interval(secs => $2)) < $3
           returning tried_at[cardinality(tried_at)] as "at!""#,
        subject,
        seconds,
        max,
    )
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(at) = recorded_at {
        return Ok(Attempt::Allowed(at));
    }
    let retry_after = sqlx::query_scalar!(
        r#"select extract(epoch from
               (select min(try.at) from unnest(tried_at) as try (at)
                where try.at > clock_timestamp() - make_interval(secs => $2))
               + make_interval(secs => $2) - clock_timestamp())::float8
           from auth.password_try where subject = $1"#,
        subject,
        seconds,
    )
    .fetch_optional(conn)
    .await?;
    // Without a counted attempt the next one is allowed now.
    let retry_after = retry_after.flatten().unwrap_or_default().max(0.0);
    Ok(Attempt::Limited(Duration::try_from_secs_f64(retry_after).unwrap_or(window).min(window)))
}

/// Removes the attempt counted at `at`, in a transaction. Locks the row before it reads it, so that two concurrent
/// removals do not each leave the row to the other.
pub async fn remove(
    conn: &mut PgConnection,
    subject: &Subject,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    let is_only = sqlx::query_scalar!(
        r#"select tried_at = array[$2::timestamptz] as "is_only!"
           from auth.password_try where subject = $1 for update"#,
        subject,
        at,
    )
    .fetch_optional(&mut *conn)
    .await?;
    match is_only {
        Some(true) => {
            sqlx::query!("delete from auth.password_try where subject = $1", subject).execute(conn).await?
        }
        Some(false) => {
            sqlx::query!(
                "update auth.password_try set tried_at = array_remove(tried_at, $2) where subject = $1",
                subject,
                at,
            )
            .execute(conn)
            .await?
        }
        // The attempts have expired and were deleted.
        None => return Ok(()),
    };
    Ok(())
}

/// Deletes the attempts that no longer count.
pub async fn delete_expired(conn: &mut PgConnection, window: Duration) -> Result<u64, sqlx::Error> {
    let result = sqlx::query!(
        "delete from auth.password_try
         where tried_at[cardinality(tried_at)] < clock_timestamp() - make_interval(secs => $1)",
        window.as_secs_f64(),
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected())
}
