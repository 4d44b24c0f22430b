//! Stock for orders. Internal: with a service token only.

use shoppee_kit::{caller, status::Violations};
use shoppee_proto::product::v1::{
    CommitRequest, CommitResponse, HoldRequest, HoldResponse, ReleaseReason as WireReason, ReleaseRequest,
    ReleaseResponse, stock_service_server::StockService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::convert;
use crate::{
    error::Error,
    holds::Holds,
    stock::{Basket, Line, ReleaseReason, Want},
};

/// Seconds that a hold may live: longer than any order stays unpaid.
const LONGEST_HOLD: i64 = 31 * 24 * 3600;

#[derive(Debug)]
pub struct Stock {
    pub holds: Holds,
    pub currency: String,
}

#[tonic::async_trait]
impl StockService for Stock {
    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldResponse>, Status> {
        caller::service(&request)?;
        let want = self.want(request.into_inner())?;
        let hold = self.holds.hold(want).await?;
        Ok(Response::new(convert::hold(hold, &self.currency)))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        caller::service(&request)?;
        self.holds.commit(order_id(&request.into_inner().order_id)?).await?;
        Ok(Response::new(CommitResponse {}))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        caller::service(&request)?;
        let request = request.into_inner();
        let reason = match WireReason::try_from(request.reason) {
            Ok(WireReason::Unspecified | WireReason::OrderCancelled) => ReleaseReason::OrderCancelled,
            // A reason that this version does not know takes the least.
            Ok(WireReason::CheckoutAbandoned) | Err(_) => ReleaseReason::CheckoutAbandoned,
        };
        self.holds.release(order_id(&request.order_id)?, reason).await?;
        Ok(Response::new(ReleaseResponse {}))
    }
}

impl Stock {
    fn want(&self, request: HoldRequest) -> Result<Want, Error> {
        let order_id = order_id(&request.order_id)?;
        let lines: Vec<Line> = request
            .lines
            .into_iter()
            .map(|line| Line { product_id: line.product_id, quantity: line.quantity })
            .collect();
        let mut bad = Violations::default();
        let ttl = request.ttl_seconds;
        bad.require((1..=LONGEST_HOLD).contains(&ttl), "ttl_seconds", "must be 1 to 31 days of seconds");
        let basket = if lines.is_empty() {
            None
        } else {
            Basket::parse(lines).map_err(|(field, fault)| bad.require(false, field, fault)).ok()
        };
        bad.require(!request.shorten || basket.is_none(), "shorten", "must not come with lines");
        bad.finish().map_err(Error::Invalid)?;
        let until = self.holds.until(time::Duration::seconds(ttl));
        Ok(Want { order_id, basket, until, fence: request.fence, shorten: request.shorten })
    }
}

fn order_id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::invalid("order_id", "must be a UUID"))
}
