//! The check of the database engine: one PostgreSQL server, with one list of transactions and locks.
//!
//! The change log ([`crate::change_log`]) and the stock audit ask the server which transactions may still
//! write. Some engines distribute tables over several servers, or replicate rows from servers that accept
//! writes too. Such an engine answers for only one of them, and changes would be missed silently.

use anyhow::bail;
use shoppee_kit::pg::PgPool;
use shoppee_kit::process::Process;
use tokio::time::Duration;

use crate::store::engine::{self, Engine};

/// The interval between two attempts while the server does not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Parts of `version()` of engines that speak PostgreSQL's protocol and have several transaction counters.
const REFUSED_VERSIONS: [&str; 6] =
    ["-YB-", "Yugabyte", "CockroachDB", "Greenplum", "Postgres-XL", "openGauss"];
/// Extensions that give PostgreSQL several transaction counters.
const REFUSED_EXTENSIONS: [&str; 3] = ["citus", "bdr", "spock"];

/// Ends the process with a one-line error if the engine is refused, as soon as the server answers.
pub fn check(process: &Process, pool: PgPool) {
    let shutdown = process.tasks.shutdown_token();
    process.tasks.spawn("engine", async move {
        while !shutdown.is_cancelled() {
            match engine::describe(&pool).await {
                Ok(engine) => {
                    if let Some(reason) = refusal(&engine) {
                        bail!("DATABASE_URL names an engine that cannot be used: {reason}");
                    }
                    shutdown.cancelled().await;
                }
                // The pool logs the failure.
                Err(error) => tracing::debug!(%error, "the database engine is not known yet"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(RETRY_INTERVAL)).await;
        }
        Ok(())
    });
}

/// Returns the reason why an engine is refused; `None` if it is accepted.
fn refusal(engine: &Engine) -> Option<String> {
    const REASON: &str = "the change log needs one PostgreSQL server with one list of transactions";
    let version = engine.version.split(" on ").next().unwrap_or_default();
    if !version.starts_with("PostgreSQL ")
        || REFUSED_VERSIONS.iter().any(|word| engine.version.contains(word))
    {
        return Some(format!("{version} is not PostgreSQL ({REASON})"));
    }
    let extension = engine.extensions.iter().find(|name| REFUSED_EXTENSIONS.contains(&name.as_str()))?;
    Some(format!("the database has the extension {extension} ({REASON})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(version: &str, extensions: &[&str]) -> Option<String> {
        let extensions = extensions.iter().map(|name| (*name).to_owned()).collect();
        refusal(&Engine { version: version.to_owned(), extensions })
    }

    #[test]
    fn one_postgresql_server_is_accepted() {
        let debian =
            "PostgreSQL 15.14 (Debian 15.14-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc, 64-bit";
        assert_eq!(refused(debian, &["plpgsql", "pg_trgm", "pg_stat_statements"]), None);
        assert_eq!(refused("PostgreSQL 18.1 on aarch64-unknown-linux-musl", &[]), None);
    }

    #[test]
    fn an_engine_with_several_transaction_counters_is_refused_with_its_name() {
        for (version, extensions, name) in [
            ("PostgreSQL 16.4 on x86_64-pc-linux-gnu", &["plpgsql", "citus"][..], "citus"),
            ("PostgreSQL 15.6 on x86_64", &["bdr"], "bdr"),
            ("PostgreSQL 16.1 on x86_64", &["spock"], "spock"),
            ("PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64", &[], "-YB-"),
            ("CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)", &[], "CockroachDB"),
            ("PostgreSQL 12.12 (Greenplum Database 7.1.0) on x86_64", &[], "Greenplum"),
        ] {
            let reason = refused(version, extensions).unwrap_or_else(|| panic!("{version} is accepted"));
            assert!(reason.contains(name) && !reason.contains('\n'), "{reason}");
        }
    }
}
