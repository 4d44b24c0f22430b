//! Calls to the three services: which there are stands in [`calls`]. A handler hands in a request message and gets the
//! answer; deadline, retry and the caller's token are seen to here.

mod calls;

use std::{pin::pin, sync::Arc, time::Duration};

use secrecy::SecretString;
use shoppee_kit::{
    client,
    pool::{Member, Pool},
    process::Process,
    status,
    tasks::Tasks,
    telemetry::Trace,
};
use shoppee_proto::{
    auth::v1::auth_service_client::AuthServiceClient,
    order::v1::order_service_client::OrderServiceClient,
    product::v1::{
        change_feed_service_client::ChangeFeedServiceClient,
        product_cache_service_client::ProductCacheServiceClient,
        product_service_client::ProductServiceClient,
    },
};
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status, transport::Channel};

use crate::{Settings, auth::Credential, error::Problem};

pub use calls::Call;

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
    tasks: Tasks,
}

impl Upstream {
    pub fn start(settings: &Settings, process: &Process) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts {
            auth: Pool::start("auth", &settings.auth_url, process)?,
            product: Pool::start("product", &settings.product_url, process)?,
            order: Pool::start("order", &settings.order_url, process)?,
            tasks: process.tasks.clone(),
        })))
    }

    /// For those who follow the keys.
    pub fn auth(&self) -> &Arc<Pool> {
        &self.0.auth
    }

    /// For those who keep copies of products.
    pub fn changes(&self) -> ChangeFeedServiceClient<Channel> {
        ChangeFeedServiceClient::new(self.0.product.member().channel())
    }

    /// Makes the call that `message` stands for, as `caller`.
    pub async fn call<C: Call>(&self, caller: &impl Credential, message: C) -> Result<C::Answer, Problem> {
        Ok(self.call_in_full(caller, message).await?.into_inner())
    }

    /// The same, with the metadata of the answer or of the refusal.
    pub async fn call_in_full<C: Call>(
        &self,
        caller: &impl Credential,
        message: C,
    ) -> Result<Response<C::Answer>, Status> {
        let attempts = self.clone().attempts(caller.token(), message);
        if C::CLASS.changes {
            // In a task of its own: what was begun is not broken off when the client hangs up.
            let task = self.0.tasks.track(Trace::current().of(attempts));
            task.await.unwrap_or_else(|_panicked| Err(status::internal().into()))
        } else {
            // Large, and part of the answer to every request, also of those that need no call.
            Box::pin(attempts).await
        }
    }

    /// At most two tries within one deadline.
    async fn attempts<C: Call>(
        self,
        token: Option<Arc<SecretString>>,
        message: C,
    ) -> Result<Response<C::Answer>, Status> {
        let started = Instant::now();
        let left = || C::CLASS.deadline.saturating_sub(started.elapsed());
        let attempt = |member: Arc<Member>| {
            let request = client::request(message.clone(), token.as_deref(), left());
            async move {
                let mut call = pin!(C::send(member.channel(), request));
                if let Ok(answer) = timeout_at(started + C::CLASS.deadline.min(SOON), &mut call).await {
                    return answer;
                }
                // What takes its time is waited for only while its service lives: one that says nothing at all any
                // more is frozen, or was cut off.
                tokio::select! {
                    biased;
                    () = member.falls_silent() => Err(status::unavailable().into()),
                    answer = client::within(left(), call) => answer,
                }
            }
        };
        // Only where both together are within what is promised.
        let in_time = || !left().is_zero() && started.elapsed() + left().min(SOON) <= PROMISED;
        let again = || message.repeatable() && in_time();
        C::pool(&self).call(again, attempt).await
    }
}

fn auth(over: Channel) -> AuthServiceClient<Channel> {
    AuthServiceClient::new(over)
}

fn product(over: Channel) -> ProductServiceClient<Channel> {
    ProductServiceClient::new(over).max_decoding_message_size(client::MAX_ANSWER_BYTES)
}

fn product_cache(over: Channel) -> ProductCacheServiceClient<Channel> {
    ProductCacheServiceClient::new(over).max_decoding_message_size(client::MAX_ANSWER_BYTES)
}

fn order(over: Channel) -> OrderServiceClient<Channel> {
    OrderServiceClient::new(over).max_decoding_message_size(client::MAX_ANSWER_BYTES)
}
