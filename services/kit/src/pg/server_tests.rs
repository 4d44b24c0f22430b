//! Tests of the pool on a real server: session parameters, failover, slow connects.

use std::{net::SocketAddr, time::Instant};

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{Database, TestProcess, eventually};

async fn open_pool(database: &Database, process: &TestProcess) -> PgPool {
    let (tasks, readiness) = (&process.process.tasks, &process.process.readiness);
    let migrations = Migrator { table_name: "auth.migrations_of_this_test".into(), ..Migrator::DEFAULT };
    open("test", &database.settings("auth"), migrations, PlanCacheMode::Auto, tasks, readiness)
        .await
        .expect("opens")
}

async fn write(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let create = "create table auth.note (line text); drop table auth.note";
    sqlx::raw_sql(create).execute(&mut *connection).await.map(drop)
}

#[tokio::test]
async fn session_parameters_are_set_on_every_connection_and_not_as_startup_options() {
    let (database, process) = (Database::create().await, TestProcess::default());
    let pool = open_pool(&database, &process).await;
    assert_eq!(pool.connect_options().get_options(), None, "a pooler refuses them");
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = pool.acquire().await.unwrap();
        for (parameter, value) in [
            ("statement_timeout", "5s"),
            ("lock_timeout", "1500ms"),
            ("idle_in_transaction_session_timeout", "5s"),
            ("jit", "off"),
        ] {
            let current: String = sqlx::query_scalar("select current_setting($1)")
                .bind(parameter)
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert_eq!(current, value, "{parameter}");
        }
        connections.push(connection);
    }
}

#[tokio::test]
async fn after_the_loss_of_a_connection_idle_ones_are_tested_before_their_next_use() {
    const CONNECTIONS: usize = 4;
    let (database, process) = (Database::create().await, TestProcess::default());
    let pool = open_pool(&database, &process).await;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(pool.acquire().await.unwrap());
    }
    drop(connections);
    eventually("all connections are idle", || async { pool.num_idle() >= CONNECTIONS }).await;
    let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                     where datname = current_database() and pid <> pg_backend_pid()";
    let mut other = PgConnection::connect_with(&pool.connect_options()).await.unwrap();
    sqlx::raw_sql(terminate).execute(&mut other).await.unwrap();
    let error = write(&pool).await.expect_err("the first connection is dead");
    assert!(is_unavailable(&error), "{error}");
    for _ in 0..CONNECTIONS {
        write(&pool).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_only_server_is_unavailable_for_writes_and_left_after_the_failover() {
    let (database, mut process) = (Database::create().await, TestProcess::default());
    let pool = open_pool(&database, &process).await;
    process.wait_ready().await;
    let readiness = process.process.readiness.clone();
    let failing = || readiness.failing_with_reasons(false);
    eventually("all is well", || async { failing().is_empty() }).await;
    database.alter("set default_transaction_read_only = on").await;
    eventually("/readyz says that it cannot write", || async {
        failing() == ["postgres writes (read only)"]
    })
    .await;
    assert!(readiness.failing_required().is_empty(), "reads go on");
    let refused = write(&pool).await.unwrap_err();
    assert_eq!(ErrorClass::from_error(&refused), ErrorClass::ReadOnly, "{refused}");
    assert!(is_unavailable(&refused));
    // Open sessions stay read-only, as connections to a demoted server do.
    database.alter_for_new_sessions("reset default_transaction_read_only").await;
    let started = Instant::now();
    eventually("all is well again", || async { failing().is_empty() }).await;
    for _ in 0..16 {
        write(&pool).await.expect("every connection leads to a writable server");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_database_that_refuses_connections_is_reported_by_class_until_it_accepts_them() {
    let (database, mut process) = (Database::create().await, TestProcess::default());
    let _pool = open_pool(&database, &process).await;
    process.wait_ready().await;
    let readiness = process.process.readiness.clone();
    database.block_connections().await;
    eventually("/readyz says why", || async {
        readiness.failing_with_reasons(true) == ["postgres (shutting down or starting up)"]
    })
    .await;
    database.alter("with allow_connections true").await;
    process.wait_ready().await;
}

/// Starts a proxy that delays each connection to `server` by `delay`.
async fn delaying_proxy(server: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let mut server = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connect_that_takes_longer_than_the_acquire_timeout_completes_in_the_background() {
    let database = Database::create().await;
    let delay = 2 * ACQUIRE_TIMEOUT;
    let address = delaying_proxy(database.address().await, delay).await;
    let options = connect_options("test", &database.url_at("auth", &address.to_string())).unwrap();
    let pool = PgPool::new(pool_options(2, PlanCacheMode::Auto), options);
    let started = Instant::now();
    assert!(matches!(pool.acquire().await, Err(sqlx::Error::PoolTimedOut)));
    assert!(started.elapsed() < delay, "a request does not wait for the connection");
    eventually("a later request has it", || async { pool.acquire().await.is_ok() }).await;
    assert!(started.elapsed() < CONNECT_TIMEOUT, "{:?}", started.elapsed());
}
