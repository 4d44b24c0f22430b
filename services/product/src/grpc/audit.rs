//! The gRPC HoldAuditService, for the audit of orders and the sweep of orphan holds.

use shoppee_kit::{caller, pg::PgPool};
use shoppee_proto::product::v1::{
    GetHoldsRequest, GetHoldsResponse, HoldState as WireState, ListHoldsRequest, ListHoldsResponse,
    OrderHold, StockLine, hold_audit_service_server::HoldAuditService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    error::Error,
    hold_audit::AuditedHold,
    stock::HoldState,
    store::hold_audit::{self as store, ListedHold},
};

/// Holds per call.
const MAX_HOLDS: usize = 500;

#[derive(Debug)]
pub struct HoldAudit {
    pub pool: PgPool,
}

#[tonic::async_trait]
impl HoldAuditService for HoldAudit {
    async fn get_holds(
        &self,
        request: Request<GetHoldsRequest>,
    ) -> Result<Response<GetHoldsResponse>, Status> {
        let order_ids = request.into_inner().order_ids;
        if !(1..=MAX_HOLDS).contains(&order_ids.len()) {
            return Err(Error::invalid("order_ids", "must be 1 to 500").into());
        }
        let ids: Vec<Uuid> =
            order_ids.iter().map(|id| order_id("order_ids", id)).collect::<Result<_, _>>()?;
        let holds = store::get(&self.pool, &ids).await.map_err(Error::from)?;
        let holds = holds.into_iter().map(|(order_id, audited)| hold(order_id, &audited)).collect();
        Ok(Response::new(GetHoldsResponse { holds }))
    }

    async fn list_holds(
        &self,
        request: Request<ListHoldsRequest>,
    ) -> Result<Response<ListHoldsResponse>, Status> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let limit = usize::try_from(request.limit).unwrap_or_default();
        if !(1..=MAX_HOLDS).contains(&limit) {
            return Err(Error::invalid("limit", "must be 1 to 500").into());
        }
        let bound = |field: &str, id: &str, default: Uuid| match id {
            "" => Ok(default),
            id => order_id(field, id),
        };
        let after = bound("after_order_id", &request.after_order_id, Uuid::nil())?;
        let until = bound("until_order_id", &request.until_order_id, Uuid::max())?;
        let mut conn = self.pool.acquire().await.map_err(Error::from)?;
        let holds = store::list(&mut conn, after, until, request.limit.into()).await.map_err(Error::from)?;
        let next = holds.last().filter(|_| holds.len() >= limit).map(|hold| hold.order_id.to_string());
        let is_listed = |hold: &&ListedHold| match hold.state {
            HoldState::Held => true,
            HoldState::Committed => !request.held_only,
            HoldState::Released | HoldState::Expired => false,
        };
        let is_own = |hold: &&ListedHold| {
            hold.caller.as_deref().is_none_or(|creator| Some(creator) == caller.client_id())
        };
        let listed = holds.iter().filter(is_listed).filter(is_own);
        let order_ids = listed.map(|hold| hold.order_id.to_string()).collect();
        Ok(Response::new(ListHoldsResponse { order_ids, next_after_order_id: next }))
    }
}

fn hold(order_id: Uuid, audited: &AuditedHold) -> OrderHold {
    let lines = audited.lines.iter().filter(|line| line.quantity > 0);
    OrderHold {
        order_id: order_id.to_string(),
        state: match audited.state {
            HoldState::Held => WireState::Held,
            HoldState::Committed => WireState::Committed,
            HoldState::Released => WireState::Released,
            HoldState::Expired => WireState::Expired,
        }
        .into(),
        lines: lines.map(|line| StockLine { product_id: line.product_id, quantity: line.quantity }).collect(),
        ledger_agrees: audited.ledger_agrees(),
        created_at: Some(audited.created_at.into()),
    }
}

fn order_id(field: &str, text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::invalid(field, "must be a UUID"))
}
