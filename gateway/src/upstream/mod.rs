//! Calls to the three services: which there are stands in [`calls`], over which connections they go in
//! [`pool`]. A handler hands in a request message and gets the answer; deadline, retry and the caller's token
//! are seen to here.

mod calls;
mod pool;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use secrecy::SecretString;
use shoppee_kit::{client, process::Process, readiness::Need, status, tasks::Tasks, telemetry::Trace};
use shoppee_proto::{
    auth::v1::auth_service_client::AuthServiceClient,
    order::v1::order_service_client::OrderServiceClient,
    product::v1::{change_feed_client::ChangeFeedClient, product_service_client::ProductServiceClient},
};
use tokio::time::Instant;
use tonic::{Code, Response, Status, transport::Channel};

use crate::{Settings, auth::Credential, error::Problem};

pub use calls::{Call, ProductAsOf};
use pool::{Member, Pool};

/// The largest answer: 100 products with 10 000 characters of description and 16 KiB of attributes each.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;
/// Before the one retry: long enough for a restarted peer's socket to be there more often than not.
const BACKOFF: Duration = Duration::from_millis(50);
/// Within this a service says that something it needs is away, or has shown that it lives.
const SOON: Duration = Duration::from_secs(2);
/// Within this a client hears that a part of the shop is away.
const PROMISED: Duration = Duration::from_millis(2500);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    auth: Arc<Pool>,
    product: Arc<Pool>,
    order: Arc<Pool>,
    budget: Budget,
    tasks: Tasks,
}

impl Upstream {
    /// Connects when first used. Each service is asked every second how it is; `/readyz` tells.
    pub fn start(settings: &Settings, process: &Process) -> anyhow::Result<Self> {
        let pool = |name: &'static str, url: &str| -> anyhow::Result<Arc<Pool>> {
            let pool = Arc::new(Pool::new(url)?);
            let asked = pool.clone();
            let ask = move || asked.clone().refresh();
            process.readiness.watch(&process.tasks, name, Need::Useful, ask);
            Ok(pool)
        };
        Ok(Self(Arc::new(Parts {
            auth: pool("auth", &settings.auth_url)?,
            product: pool("product", &settings.product_url)?,
            order: pool("order", &settings.order_url)?,
            budget: Budget::default(),
            tasks: process.tasks.clone(),
        })))
    }

    /// For those who keep copies of products.
    pub fn changes(&self) -> ChangeFeedClient<Channel> {
        ChangeFeedClient::new(self.0.product.member().channel())
    }

    /// The order service, for questions that no request asks.
    pub fn order(&self) -> OrderServiceClient<Channel> {
        order(self.0.order.member().channel())
    }

    /// Makes the call that `message` stands for, as `caller`.
    pub async fn call<C: Call>(&self, caller: &impl Credential, message: C) -> Result<C::Answer, Problem> {
        Ok(self.call_in_full(caller, message).await?.into_inner())
    }

    /// The same, with the metadata of the answer.
    pub async fn call_in_full<C: Call>(
        &self,
        caller: &impl Credential,
        message: C,
    ) -> Result<Response<C::Answer>, Problem> {
        let attempts = self.clone().attempts(caller.token(), message);
        let outcome = if C::CLASS.changes {
            // In a task of its own: what was begun is not broken off when the client hangs up.
            let task = self.0.tasks.track(Trace::current().of(attempts));
            task.await.map_err(|_panicked| Problem::internal())?
        } else {
            attempts.await
        };
        Ok(outcome?)
    }

    /// At most two tries within one deadline.
    async fn attempts<C: Call>(
        self,
        token: Option<Arc<SecretString>>,
        message: C,
    ) -> Result<Response<C::Answer>, Status> {
        let started = Instant::now();
        let left = || C::CLASS.deadline.saturating_sub(started.elapsed());
        let attempt = async |message: C| {
            let member = C::pool(&self).member();
            let request = client::request(message, token.as_deref(), left());
            tokio::select! {
                answer = client::within(left(), C::send(member.channel(), request)) => answer,
                () = is_lost(&member, started + SOON) => Err(status::unavailable().into()),
            }
        };
        let repeatable = message.repeatable();
        self.0.budget.earn();
        match attempt(message.clone()).await {
            // Only where both together are within what is promised.
            Err(status)
                if repeatable
                    && is_away(&status)
                    && started.elapsed() + left().min(SOON) <= PROMISED
                    && self.0.budget.spend() =>
            {
                tokio::time::sleep(BACKOFF).await;
                attempt(message).await
            }
            outcome => outcome,
        }
    }
}

/// Ends when a call that had until `soon` is at a service that says nothing at all any more, as a frozen process or a
/// machine that was cut off: what takes its time is waited for only while its service lives.
async fn is_lost(member: &Member, soon: Instant) {
    tokio::time::sleep_until(soon).await;
    member.falls_silent().await;
}

fn auth(over: Channel) -> AuthServiceClient<Channel> {
    AuthServiceClient::new(over)
}

fn product(over: Channel) -> ProductServiceClient<Channel> {
    ProductServiceClient::new(over).max_decoding_message_size(LARGEST_ANSWER)
}

fn order(over: Channel) -> OrderServiceClient<Channel> {
    OrderServiceClient::new(over).max_decoding_message_size(LARGEST_ANSWER)
}

/// Whether the peer could not be reached, or was lost: what it never said itself.
pub fn is_away(status: &Status) -> bool {
    let lost = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || (lost && matches!(status.code(), Code::Unknown | Code::Internal))
}

/// How many calls may be repeated: a fifth of all, so that retries cannot bury a service that is short of
/// breath.
#[derive(Debug)]
struct Budget(AtomicI64);

impl Budget {
    /// What a call earns, in thousandths of a retry.
    const EARNED: i64 = 200;
    const PRICE: i64 = 1000;
    /// Ten retries saved up, for a process that has just begun, or is idle.
    const MOST: i64 = 10 * Self::PRICE;

    fn earn(&self) {
        self.change(|saved| Some((saved + Self::EARNED).min(Self::MOST)));
    }

    fn spend(&self) -> bool {
        self.change(|saved| (saved >= Self::PRICE).then(|| saved - Self::PRICE))
    }

    fn change(&self, change: impl Fn(i64) -> Option<i64>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_every_fifth_call_is_repeated() {
        let budget = Budget::default();
        while budget.spend() {}
        let repeated = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(repeated.count(), 200);
    }
}
