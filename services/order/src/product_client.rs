//! A client of the product service: holds and products. Calls carry a service token.

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    client,
    load_balancer::{Endpoint, LoadBalancer},
    service_token::ServiceToken,
    status::{self, ErrorDetails},
};
use shoppee_proto::product::v1::{
    BatchGetProductsRequest, CommitRequest, HoldRequest, HoldResponse, Product, ProductView, RefusedLine,
    ReleaseReason, ReleaseRequest, StockLine, product_service_client::ProductServiceClient,
    stock_service_client::StockServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

use crate::{error::Error, order::Lines};

/// Bounds a call with its retry, within the 2 s of the calling request.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1500);

#[derive(Clone, Debug)]
pub struct ProductClient {
    pool: Arc<LoadBalancer>,
    token: ServiceToken,
}

#[derive(Debug)]
pub enum HoldError {
    /// The product service rejected the lines; with the error for the caller.
    Rejected(Error),
    /// The order's hold has expired or was released.
    Expired,
    /// The order's hold has other lines.
    Mismatch,
    /// The outcome is unknown.
    Unavailable,
}

impl ProductClient {
    pub fn new(pool: Arc<LoadBalancer>, token: ServiceToken) -> Self {
        Self { pool, token }
    }

    /// Creates the hold of an order, or returns the existing one; with the current prices and names.
    pub async fn hold(
        &self,
        order_id: Uuid,
        lines: &Lines,
        ttl: Duration,
    ) -> Result<HoldResponse, HoldError> {
        let lines = lines
            .as_slice()
            .iter()
            .map(|line| StockLine { product_id: line.product_id, quantity: line.quantity.get() })
            .collect();
        self.request_hold(HoldRequest { lines, ..request(order_id, ttl) }).await
    }

    /// Extends a hold to at least `ttl` from now, unless an attempt with a higher fence has changed it.
    pub async fn extend_hold(&self, order_id: Uuid, fence: i64, ttl: Duration) -> Result<(), HoldError> {
        self.request_hold(HoldRequest { fence, ..request(order_id, ttl) }).await.map(|_| ())
    }

    /// Shortens a hold to at most `ttl` from now, unless an attempt with a higher fence has changed it.
    pub async fn shorten_hold(&self, order_id: Uuid, fence: i64, ttl: Duration) -> Result<(), HoldError> {
        self.request_hold(HoldRequest { fence, shorten: true, ..request(order_id, ttl) }).await.map(|_| ())
    }

    async fn request_hold(&self, message: HoldRequest) -> Result<HoldResponse, HoldError> {
        let response = self
            .call(message, |channel, request| async move {
                StockServiceClient::new(channel)
                    .max_decoding_message_size(client::MAX_RESPONSE_BYTES)
                    .hold(request)
                    .await
            })
            .await;
        response.map_err(|status| {
            let details = status::parse(&status);
            match details.reason.as_str() {
                "OUT_OF_STOCK" => HoldError::Rejected(Error::OutOfStock(rejected_lines(&details))),
                "PRODUCT_UNAVAILABLE" => {
                    HoldError::Rejected(Error::ProductUnavailable(rejected_lines(&details)))
                }
                "ORDER_EXPIRED" => HoldError::Expired,
                "IDEMPOTENCY_KEY_REUSED" => HoldError::Mismatch,
                _ => {
                    tracing::warn!(code = ?status.code(), reason = details.reason, "hold request failed");
                    HoldError::Unavailable
                }
            }
        })
    }

    /// Commits the hold of an order: its goods are sold.
    pub async fn commit(&self, order_id: Uuid) -> Result<(), Status> {
        let message = CommitRequest { order_id: order_id.to_string() };
        self.call(message, |channel, request| async move {
            StockServiceClient::new(channel).commit(request).await
        })
        .await
        .map(|_| ())
    }

    /// Releases the hold of an order. Committed goods are returned only if `reason` allows it.
    pub async fn release(&self, order_id: Uuid, reason: ReleaseReason) -> Result<(), Status> {
        let message = ReleaseRequest { order_id: order_id.to_string(), reason: reason.into() };
        self.call(message, |channel, request| async move {
            StockServiceClient::new(channel).release(request).await
        })
        .await
        .map(|_| ())
    }

    /// Returns the current products, including archived ones, in the basic view.
    pub async fn get_products(&self, ids: Vec<i64>) -> Result<Vec<Product>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let response = self
            .call(
                BatchGetProductsRequest { ids, view: ProductView::Basic.into() },
                |channel, request| async move {
                    ProductServiceClient::new(channel)
                        .max_decoding_message_size(client::MAX_RESPONSE_BYTES)
                        .batch_get_products(request)
                        .await
                },
            )
            .await;
        match response {
            Ok(response) => Ok(response.items),
            Err(status) => {
                tracing::warn!(code = ?status.code(), "product request failed");
                Err(Error::Unavailable)
            }
        }
    }

    /// Makes a call with the service token. All calls are idempotent: a call that got lost, or whose token was
    /// rejected, is retried once.
    pub(crate) async fn call<M, R, F, Fut>(&self, message: M, method: F) -> Result<R, Status>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let attempt = async || {
            let token = self.token.get().await?;
            let send = |endpoint: Arc<Endpoint>| {
                method(endpoint.channel(), client::request(message.clone(), Some(&token), REQUEST_TIMEOUT))
            };
            self.pool.call(|| true, send).await
        };
        let with_retry = async {
            match attempt().await {
                Err(status) if status.code() == Code::Unauthenticated => self.token.invalidate().await,
                result => return result,
            }
            attempt().await
        };
        client::with_deadline(REQUEST_TIMEOUT, with_retry).await.map(tonic::Response::into_inner)
    }
}

/// Returns the lines in the details of a rejection.
fn rejected_lines(details: &ErrorDetails) -> Vec<RefusedLine> {
    details.metadata.get("lines").and_then(|lines| serde_json::from_str(lines).ok()).unwrap_or_default()
}

/// Builds a request that changes neither lines nor fence of a hold.
fn request(order_id: Uuid, ttl: Duration) -> HoldRequest {
    HoldRequest {
        order_id: order_id.to_string(),
        ttl_seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        ..HoldRequest::default()
    }
}
