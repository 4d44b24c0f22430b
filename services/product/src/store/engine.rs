//! The database engine's description of itself.

use shoppee_kit::pg::PgPool;

/// A database engine.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The result of `version()`.
    pub version: String,
    /// The extensions of the database.
    pub extensions: Vec<String>,
}

/// Reads the version and the extensions of the server.
pub async fn describe(pool: &PgPool) -> sqlx::Result<Engine> {
    let mut conn = pool.acquire().await?;
    let row = sqlx::query!(
        r#"select version() as "version!",
                  array(select extname::text from pg_catalog.pg_extension) as "extensions!: Vec<String>""#
    )
    .fetch_one(&mut *conn)
    .await?;
    Ok(Engine { version: row.version, extensions: row.extensions })
}
