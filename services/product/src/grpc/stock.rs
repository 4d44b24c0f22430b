//! The gRPC StockService, for other services.

use shoppee_kit::{caller, status::Violations};
use shoppee_proto::product::v1::{
    self as wire, CommitRequest, CommitResponse, HoldResponse, ReleaseReason as WireReason, ReleaseRequest,
    ReleaseResponse, stock_service_server::StockService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::convert;
use crate::{
    error::Error,
    holds::Holds,
    stock::{HoldLines, HoldRequest, Line, ReleaseReason},
};

/// The maximum lifetime of a hold: longer than any order stays unpaid. Seconds.
const MAX_HOLD_TTL_SECONDS: i64 = 31 * 24 * 3600;

#[derive(Debug)]
pub struct Stock {
    pub holds: Holds,
    pub currency: String,
}

#[tonic::async_trait]
impl StockService for Stock {
    async fn hold(&self, request: Request<wire::HoldRequest>) -> Result<Response<HoldResponse>, Status> {
        let caller = caller::require(&request)?;
        let request = self.parse(request.into_inner(), caller.client_id())?;
        let hold = self.holds.hold(request).await?;
        Ok(Response::new(convert::hold(hold, &self.currency)))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        self.holds.commit(order_id(&request.into_inner().order_id)?).await?;
        Ok(Response::new(CommitResponse {}))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let request = request.into_inner();
        let reason = match WireReason::try_from(request.reason) {
            Ok(WireReason::Unspecified | WireReason::OrderCancelled) => ReleaseReason::OrderCancelled,
            // An unknown reason has the smallest effect.
            Ok(WireReason::CheckoutAbandoned) | Err(_) => ReleaseReason::CheckoutAbandoned,
        };
        self.holds.release(order_id(&request.order_id)?, reason).await?;
        Ok(Response::new(ReleaseResponse {}))
    }
}

impl Stock {
    fn parse(&self, request: wire::HoldRequest, caller: Option<&str>) -> Result<HoldRequest, Error> {
        let order_id = order_id(&request.order_id)?;
        let lines: Vec<Line> = request
            .lines
            .into_iter()
            .map(|line| Line { product_id: line.product_id, quantity: line.quantity })
            .collect();
        let mut bad = Violations::default();
        let ttl = request.ttl_seconds;
        bad.require(
            (1..=MAX_HOLD_TTL_SECONDS).contains(&ttl),
            "ttl_seconds",
            "must be 1 to 31 days of seconds",
        );
        let lines = if lines.is_empty() {
            None
        } else {
            HoldLines::parse(lines).map_err(|(field, error)| bad.require(false, field, error)).ok()
        };
        bad.require(!request.shorten || lines.is_none(), "shorten", "must not come with lines");
        bad.finish().map_err(Error::Invalid)?;
        let expires_at = self.holds.expires_at(time::Duration::seconds(ttl));
        Ok(HoldRequest {
            order_id,
            lines,
            expires_at,
            fence: request.fence,
            shorten: request.shorten,
            caller: caller.map(str::to_owned),
        })
    }
}

fn order_id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::invalid("order_id", "must be a UUID"))
}
