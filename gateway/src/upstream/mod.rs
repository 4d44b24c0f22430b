//! The gRPC clients of the three services. A handler passes a request message and gets the response; this module adds
//! the deadline, the retry and the caller's token. [`calls`] is the table of calls.

mod calls;

use std::{pin::pin, sync::Arc, time::Duration};

use secrecy::SecretString;
use shoppee_kit::{
    client,
    load_balancer::{Endpoint, LoadBalancer},
    process::Process,
    status,
    tasks::Tasks,
    telemetry::Trace,
};
use shoppee_proto::{
    auth::v1::{
        auth_service_client::AuthServiceClient,
        status_service_client::StatusServiceClient as AuthStatusClient,
    },
    order::v1::{
        WatchEventsRequest, WatchEventsResponse, order_service_client::OrderServiceClient,
        status_service_client::StatusServiceClient as OrderStatusClient,
    },
    product::v1::{
        change_feed_service_client::ChangeFeedServiceClient,
        product_cache_service_client::ProductCacheServiceClient,
        product_service_client::ProductServiceClient,
        status_service_client::StatusServiceClient as ProductStatusClient,
    },
};
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::{Settings, error::Problem};

pub use calls::{Call, ListAuthAudit, ListOrderAudit, ListProductAudit};

/// Bounds an attempt unless its service proves that it is alive. A service reports an unavailable dependency within it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the time until a client learns that a service is unavailable.
const MAX_UNAVAILABLE_LATENCY: Duration = Duration::from_millis(2500);

/// The source of the access token that a call to a service carries.
pub trait Credential {
    fn token(&self) -> Option<Arc<SecretString>>;
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    auth: Arc<LoadBalancer>,
    product: Arc<LoadBalancer>,
    order: Arc<LoadBalancer>,
    tasks: Tasks,
}

impl Upstream {
    pub fn start(settings: &Settings, process: &Process) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Inner {
            auth: LoadBalancer::start("auth", &settings.auth_url, process)?,
            product: LoadBalancer::start("product", &settings.product_url, process)?,
            order: LoadBalancer::start("order", &settings.order_url, process)?,
            tasks: process.tasks.clone(),
        })))
    }

    /// Returns the connections to the auth service, from which the gateway polls keys and ended sessions.
    pub fn auth_pool(&self) -> &Arc<LoadBalancer> {
        &self.0.auth
    }

    /// Returns a client of the product service's change stream.
    pub fn change_feed(&self) -> ChangeFeedServiceClient<Channel> {
        ChangeFeedServiceClient::new(self.0.product.pick().channel())
    }

    /// Opens a stream of all users' events, as `caller`.
    pub async fn watch_events(
        &self,
        caller: &impl Credential,
        request: WatchEventsRequest,
    ) -> Result<Streaming<WatchEventsResponse>, Status> {
        let (started, token) = (Instant::now(), caller.token());
        let attempt = |endpoint: Arc<Endpoint>| {
            let request = client::request(request.clone(), token.as_deref(), ATTEMPT_TIMEOUT);
            async move {
                let mut client = order(endpoint.channel());
                client::with_deadline(ATTEMPT_TIMEOUT, client.watch_events(request)).await
            }
        };
        // A stream that was not opened has no effect. Both attempts together must stay within the bound.
        let may_retry = || started.elapsed() + ATTEMPT_TIMEOUT <= MAX_UNAVAILABLE_LATENCY;
        Ok(self.0.order.call(may_retry, attempt).await?.into_inner())
    }

    /// Calls the method that takes `message`, as `caller`.
    pub async fn call<C: Call>(&self, caller: &impl Credential, message: C) -> Result<C::Response, Problem> {
        Ok(self.call_with_metadata(caller, message).await?.into_inner())
    }

    /// Like [`Upstream::call`], with the metadata of the response or of the error.
    pub async fn call_with_metadata<C: Call>(
        &self,
        caller: &impl Credential,
        message: C,
    ) -> Result<Response<C::Response>, Status> {
        let call = self.clone().call_with_retry(caller.token(), message);
        if C::POLICY.mutates {
            // A task of its own: the call goes on when the client hangs up.
            let task = self.0.tasks.track(Trace::current().instrument(call));
            task.await.unwrap_or_else(|_panicked| Err(status::internal().into()))
        } else {
            // Boxed, as the future is large and part of every handler's future.
            Box::pin(call).await
        }
    }

    /// Makes up to two attempts within one deadline.
    async fn call_with_retry<C: Call>(
        self,
        token: Option<Arc<SecretString>>,
        message: C,
    ) -> Result<Response<C::Response>, Status> {
        let started = Instant::now();
        let remaining = || C::POLICY.timeout.saturating_sub(started.elapsed());
        let attempt = |endpoint: Arc<Endpoint>| {
            let request = client::request(message.clone(), token.as_deref(), remaining());
            async move {
                let mut call = pin!(C::send(endpoint.channel(), request));
                if let Ok(response) =
                    timeout_at(started + C::POLICY.timeout.min(ATTEMPT_TIMEOUT), &mut call).await
                {
                    return response;
                }
                // A slow call goes on only while its service is alive: a silent service is frozen or unreachable.
                tokio::select! {
                    biased;
                    () = endpoint.wait_unresponsive() => Err(status::unavailable().into()),
                    response = client::with_deadline(remaining(), call) => response,
                }
            }
        };
        // Both attempts together must stay within the bound.
        let in_time = || {
            !remaining().is_zero()
                && started.elapsed() + remaining().min(ATTEMPT_TIMEOUT) <= MAX_UNAVAILABLE_LATENCY
        };
        let may_retry = || message.is_retryable() && in_time();
        C::pool(&self).call(may_retry, attempt).await
    }
}

fn auth(channel: Channel) -> AuthServiceClient<Channel> {
    AuthServiceClient::new(channel)
}

fn auth_status(channel: Channel) -> AuthStatusClient<Channel> {
    AuthStatusClient::new(channel)
}

fn product(channel: Channel) -> ProductServiceClient<Channel> {
    ProductServiceClient::new(channel).max_decoding_message_size(client::MAX_RESPONSE_BYTES)
}

fn product_cache(channel: Channel) -> ProductCacheServiceClient<Channel> {
    ProductCacheServiceClient::new(channel).max_decoding_message_size(client::MAX_RESPONSE_BYTES)
}

fn product_status(channel: Channel) -> ProductStatusClient<Channel> {
    ProductStatusClient::new(channel)
}

fn order(channel: Channel) -> OrderServiceClient<Channel> {
    OrderServiceClient::new(channel).max_decoding_message_size(client::MAX_RESPONSE_BYTES)
}

fn order_status(channel: Channel) -> OrderStatusClient<Channel> {
    OrderStatusClient::new(channel)
}
