//! Stock and catalogue as the product service has them, called in our own name.

use std::{sync::Arc, time::Duration};

use shoppee_kit::{
    client::{self, ServiceToken},
    pool::{Member, Pool},
    status::{self, Told},
};
use shoppee_proto::product::v1::{
    BatchGetProductsRequest, CommitRequest, HoldRequest, HoldResponse, Product, ProductView, RefusedLine,
    ReleaseReason, ReleaseRequest, StockLine, product_service_client::ProductServiceClient,
    stock_service_client::StockServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

use crate::{error::Error, order::Lines};

/// What the product service is given; the caller of ours has 2 s.
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Clone, Debug)]
pub struct Stock {
    product: Arc<Pool>,
    token: ServiceToken,
}

/// Why there is no hold.
#[derive(Debug)]
pub enum NoHold {
    /// Product's own words: which goods, and why.
    Refused(Error),
    /// The order's hold ran out or was released.
    Gone,
    /// The order holds other lines than these.
    Differs,
    /// Unknown whether there is one.
    Unavailable,
}

impl Stock {
    pub fn new(product: Arc<Pool>, token: ServiceToken) -> Self {
        Self { product, token }
    }

    /// Takes the lines for an order, or finds them taken; with prices and names as they are now.
    pub async fn hold(&self, order_id: Uuid, lines: &Lines, ttl: Duration) -> Result<HoldResponse, NoHold> {
        let lines = lines
            .as_slice()
            .iter()
            .map(|line| StockLine { product_id: line.product_id, quantity: line.quantity.get() })
            .collect();
        self.ask_hold(HoldRequest { lines, ..request(order_id, ttl) }).await
    }

    /// Makes an order's hold last at least `ttl` from now, unless a later attempt than `fence` has asked for something.
    pub async fn prolong(&self, order_id: Uuid, fence: i64, ttl: Duration) -> Result<(), NoHold> {
        self.ask_hold(HoldRequest { fence, ..request(order_id, ttl) }).await.map(|_| ())
    }

    /// Makes an order's hold last no longer than `ttl` from now, in the same way.
    pub async fn cut_back(&self, order_id: Uuid, fence: i64, ttl: Duration) -> Result<(), NoHold> {
        self.ask_hold(HoldRequest { fence, shorten: true, ..request(order_id, ttl) }).await.map(|_| ())
    }

    async fn ask_hold(&self, message: HoldRequest) -> Result<HoldResponse, NoHold> {
        let held = self
            .call(message, |channel, request| async move {
                StockServiceClient::new(channel)
                    .max_decoding_message_size(client::MAX_ANSWER_BYTES)
                    .hold(request)
                    .await
            })
            .await;
        held.map_err(|refused| {
            let told = status::read(&refused);
            match told.reason.as_str() {
                "OUT_OF_STOCK" => NoHold::Refused(Error::OutOfStock(refused_lines(&told))),
                "PRODUCT_UNAVAILABLE" => NoHold::Refused(Error::ProductUnavailable(refused_lines(&told))),
                "ORDER_EXPIRED" => NoHold::Gone,
                "IDEMPOTENCY_KEY_REUSED" => NoHold::Differs,
                _ => {
                    tracing::warn!(code = ?refused.code(), reason = told.reason, "no hold");
                    NoHold::Unavailable
                }
            }
        })
    }

    /// The order's goods are sold.
    pub async fn commit(&self, order_id: Uuid) -> Result<(), Status> {
        let message = CommitRequest { order_id: order_id.to_string() };
        self.call(message, |channel, request| async move {
            StockServiceClient::new(channel).commit(request).await
        })
        .await
        .map(|_| ())
    }

    /// The order's goods go back; what was sold only where `reason` allows it.
    pub async fn release(&self, order_id: Uuid, reason: ReleaseReason) -> Result<(), Status> {
        let message = ReleaseRequest { order_id: order_id.to_string(), reason: reason.into() };
        self.call(message, |channel, request| async move {
            StockServiceClient::new(channel).release(request).await
        })
        .await
        .map(|_| ())
    }

    /// Products as they are now, archived ones too, without what a cart does not show.
    pub async fn products(&self, ids: Vec<i64>) -> Result<Vec<Product>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let found = self
            .call(
                BatchGetProductsRequest { ids, view: ProductView::Basic.into() },
                |channel, request| async move {
                    ProductServiceClient::new(channel)
                        .max_decoding_message_size(client::MAX_ANSWER_BYTES)
                        .batch_get_products(request)
                        .await
                },
            )
            .await;
        match found {
            Ok(found) => Ok(found.items),
            Err(refused) => {
                tracing::warn!(code = ?refused.code(), "no products");
                Err(Error::Unavailable)
            }
        }
    }

    /// One call with our token. All of them are idempotent, so one that got lost, or whose token is no longer good, is
    /// tried a second time.
    pub(crate) async fn call<M, R, F, Fut>(&self, message: M, method: F) -> Result<R, Status>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let attempt = async || {
            let token = self.token.get().await?;
            let send = |member: Arc<Member>| {
                method(member.channel(), client::request(message.clone(), Some(&token), PATIENCE))
            };
            self.product.call(|| true, send).await
        };
        let twice = async {
            match attempt().await {
                Err(refused) if refused.code() == Code::Unauthenticated => self.token.forget().await,
                answered => return answered,
            }
            attempt().await
        };
        client::within(PATIENCE, twice).await.map(tonic::Response::into_inner)
    }
}

/// The lines that a refusal of product's names.
fn refused_lines(told: &Told) -> Vec<RefusedLine> {
    told.facts.get("lines").and_then(|lines| serde_json::from_str(lines).ok()).unwrap_or_default()
}

/// The request about the hold of an order, as it is.
fn request(order_id: Uuid, ttl: Duration) -> HoldRequest {
    HoldRequest {
        order_id: order_id.to_string(),
        ttl_seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        ..HoldRequest::default()
    }
}
