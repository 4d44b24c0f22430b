//! The auth service: accounts, sessions and tokens.
//!
//! A call goes `grpc` → a use case → rules and `store`:
//!
//! - rules: [`account`] (names, addresses, passwords), [`token`] (keys, signatures), [`password`] (hashes), [`device`]
//!   (devices that have signed in before)
//! - use cases: `registration`, `sign_in`, `refresh`, `session`, `user`, `service_client`
//! - beside them: `revocation` tells every verifier, our own among them, which sessions have ended; `outbox`
//!   tells the other services who registered; `cleaning` forgets what is old
//!
//! To add a method: write it in `auth.proto`, its use case beside its likes, its SQL in `store`, its shape in
//! `grpc`.

mod account;
mod cleaning;
mod device;
mod error;
mod grpc;
mod metric_help;
mod outbox;
mod password;
mod refresh;
mod registration;
mod revocation;
mod service_client;
mod session;
mod settings;
mod sign_in;
mod store;
mod token;
mod user;

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
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
    device::DeviceKeys, password::Hasher, revocation::Revocations, service_client::ServiceClients,
    session::Lifetimes, token::Signer,
};

/// How often a task that needs the database looks whether it is there at last.
const DATABASE_POLL: Duration = Duration::from_millis(100);

/// What every use case works with.
#[derive(Debug)]
pub(crate) struct Auth {
    pool: PgPool,
    clock: Clock,
    hasher: Hasher,
    signer: Signer,
    devices: DeviceKeys,
    clients: ServiceClients,
    lifetimes: Lifetimes,
    revocations: Revocations,
    /// Wakes the relay after a commit.
    registered: Arc<Notify>,
}

/// Starts the service; its tasks run until `process` stops.
pub async fn start(settings: Settings, process: Process) -> anyhow::Result<()> {
    telemetry::describe(metric_help::HELP);
    let secrets = settings.key_secrets()?;
    let signer = Signer::new(&secrets.current, secrets.previous.as_ref())?;
    let lifetimes = Lifetimes::from(settings.lifetimes()?);
    let clients = settings.service_clients()?;
    let first_admin = settings.first_admin()?;
    let redis = redis::Clients::open(&settings.redis, &process).await?;

    let Process { tasks, readiness, clock, .. } = &process;
    let pool = pg::open("shoppee-auth", &settings.postgres, sqlx::migrate!(), tasks, readiness).await?;

    let verifier = Verifier::new(clock.clone());
    let auth = Arc::new(Auth {
        pool: pool.clone(),
        clock: clock.clone(),
        hasher: Hasher::new(settings.password_hashes),
        signer,
        devices: DeviceKeys::new(&secrets.current, secrets.previous.as_ref()),
        clients,
        lifetimes,
        revocations: Revocations::new(verifier.clone()),
        registered: Arc::default(),
    });
    revocation::follow(auth.clone(), &process);
    outbox::relay(pool.clone(), redis.client("relay")?, auth.registered.clone(), &process);
    cleaning::clean(auth.clone(), &process);
    if let Some(admin) = first_admin {
        registration::make_first_admin(auth.clone(), admin, &process);
    }

    ops::serve(settings.metrics_addr, tasks, readiness).await?;
    let services = grpc::services(auth);
    server::serve(settings.listen_addr, services, verifier, settings.grpc_reflection, &process).await
}

/// Ends when the database answers and its schema is up to date, or when it is time to stop.
pub(crate) fn database_ready(process: &Process) -> impl Future<Output = ()> + Send + 'static {
    let (readiness, stop) = (process.readiness.clone(), process.tasks.stopping());
    async move {
        // A process that has begun to stop says nothing of its database any more.
        let absent = || readiness.missing().iter().any(|name| ["postgres", "stopping"].contains(name));
        while absent() && !stop.is_cancelled() {
            tokio::time::sleep(DATABASE_POLL).await;
        }
    }
}

/// Becomes true when [`database_ready`] ends, for periodic workers.
pub(crate) fn database_up(process: &Process) -> watch::Receiver<bool> {
    let (up, is_up) = watch::channel(false);
    let ready = database_ready(process);
    drop(process.tasks.track(async move {
        ready.await;
        up.send_replace(true);
    }));
    is_up
}
