//! Password tries: a sliding window for each subject, counted where all replicas count together.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;

/// The subject of the tries, hashed.
pub type Subject = [u8; 32];

/// Whether a try may be made.
#[derive(Debug)]
pub enum Counted {
    /// It may, and counts as made at this moment.
    Let(OffsetDateTime),
    /// It may not, until so much time has passed; it does not count.
    Refused(Duration),
}

/// Counts a try, unless `most` were made within the last `window`. One statement judges and counts, so that
/// of any number at once `most` pass.
pub async fn count(
    conn: &mut PgConnection,
    subject: &Subject,
    most: i64,
    window: Duration,
) -> Result<Counted, sqlx::Error> {
    let seconds = window.as_secs_f64();
    let counted = sqlx::query_scalar!(
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
        most,
    )
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(at) = counted {
        return Ok(Counted::Let(at));
    }
    let free_in = sqlx::query_scalar!(
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
    // Free by now, where nothing is left to wait for.
    let free_in = free_in.flatten().unwrap_or_default().max(0.0);
    Ok(Counted::Refused(Duration::try_from_secs_f64(free_in).unwrap_or(window).min(window)))
}

/// Uncounts the try made at this moment, in a transaction. Locks the tries before it looks at them: two that go at once
/// must not each take the other for the one that stays.
pub async fn give_back(
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
        // Old enough to be forgotten.
        None => return Ok(()),
    };
    Ok(())
}

/// Deletes what no longer counts.
pub async fn forget_old(conn: &mut PgConnection, window: Duration) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "delete from auth.password_try
         where tried_at[cardinality(tried_at)] < clock_timestamp() - make_interval(secs => $1)",
        window.as_secs_f64(),
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
