//! The auth service: accounts, sessions and tokens.
//!
//! A call goes `grpc` → a use case → rules and `store`:
//!
//! - rules: [`account`] (names, addresses, passwords), [`token`] (keys, signatures), [`password`] (hashes), [`device`]
//!   (tokens of devices that have signed in before), [`client_secret`] (secrets of service accounts)
//! - use cases: `registration`, `sign_in`, `refresh`, `session`, `user`, `service_account`, `service_client`
//! - in the background: `revocation` publishes revoked sessions to all verifiers, including this process's own;
//!   `outbox` publishes registrations to the other services; `cleanup` deletes expired rows
//!
//! To add a method: define it in `auth.proto`, add its use case beside similar ones, its SQL to `store` and its handler
//! to `grpc`.

mod account;
mod cleanup;
mod client_secret;
mod device;
mod error;
mod grpc;
mod metric_help;
mod outbox;
mod password;
mod refresh;
mod registration;
mod revocation;
mod service_account;
mod service_client;
mod session;
mod settings;
mod sign_in;
mod store;
mod token;
mod user;

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    audit_log,
    caller::Verifier,
    clock::Clock,
    grpc as server, ops,
    pg::{self, PgPool},
    process::Process,
    redis, telemetry,
};
use tokio::sync::{Notify, watch};

pub use crate::settings::{EXAMPLE_SECRET, Settings};
use crate::{
    client_secret::SecretKeys, device::DeviceKeys, password::Hasher, revocation::Revocations,
    service_client::ServiceClients, session::Lifetimes, store::audit_log::AuditLog, token::Signer,
};

/// The interval at which tasks check whether the database is available.
const DATABASE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The state that the use cases share: settings and clients.
#[derive(Debug)]
pub(crate) struct AuthContext {
    pool: PgPool,
    clock: Clock,
    hasher: Hasher,
    signer: Signer,
    devices: DeviceKeys,
    clients: ServiceClients,
    secret_keys: SecretKeys,
    lifetimes: Lifetimes,
    revocations: Revocations,
    /// Wakes the relay after a commit.
    outbox_wakeup: Arc<Notify>,
}

/// Starts the service. Its tasks run until `process` stops.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let secrets = settings.key_secrets()?;
    let signer = Signer::new(&secrets.current, secrets.previous.as_ref())?;
    let lifetimes = Lifetimes::from(settings.lifetimes()?);
    let clients = settings.service_clients()?;
    let initial_admin = settings.initial_admin()?;
    let redis = redis::Clients::open(&settings.redis, &process).await?;

    let Process { tasks, readiness, clock, .. } = &process;
    let pool = pg::open(
        "shoppee-auth",
        &settings.postgres,
        sqlx::migrate!(),
        pg::PlanCacheMode::Auto,
        tasks,
        readiness,
    )
    .await?;

    let verifier = Verifier::new(clock.clone());
    let context = Arc::new(AuthContext {
        pool: pool.clone(),
        clock: clock.clone(),
        hasher: Hasher::new(settings.password_hashes),
        signer,
        devices: DeviceKeys::new(&secrets.current, secrets.previous.as_ref()),
        clients,
        secret_keys: SecretKeys::new(&secrets.current, secrets.previous.as_ref()),
        lifetimes,
        revocations: Revocations::new(verifier.clone()),
        outbox_wakeup: Arc::default(),
    });
    revocation::spawn(context.clone(), &process);
    outbox::spawn_relay(pool.clone(), redis.client("relay")?, context.outbox_wakeup.clone(), &process);
    cleanup::spawn(context.clone(), &process);
    audit_log::retention::spawn::<AuditLog>(&process, &pool, &settings.audit_log, database_ready(&process));
    if let Some(admin) = initial_admin {
        registration::spawn_initial_admin(context.clone(), admin, &process);
    }

    ops::serve(settings.metrics_addr, tasks, readiness).await?;
    let services = grpc::services(context, readiness);
    server::serve(settings.listen_addr, services, verifier, settings.grpc_reflection, &process).await
}

/// Waits until the database is available and its schema is up to date, or until shutdown.
pub(crate) fn wait_for_database(process: &Process) -> impl Future<Output = ()> + Send + 'static {
    let (readiness, stop) = (process.readiness.clone(), process.tasks.shutdown_token());
    async move {
        // During shutdown the readiness of the database is no longer reported.
        let is_missing = || readiness.failing().iter().any(|name| ["postgres", "stopping"].contains(name));
        while is_missing() && !stop.is_cancelled() {
            tokio::time::sleep(DATABASE_POLL_INTERVAL).await;
        }
    }
}

/// Returns a flag for periodic workers that becomes true when [`wait_for_database`] ends.
pub(crate) fn database_ready(process: &Process) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    let ready = wait_for_database(process);
    drop(process.tasks.track(async move {
        ready.await;
        sender.send_replace(true);
    }));
    receiver
}
