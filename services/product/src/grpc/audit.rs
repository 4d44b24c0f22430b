//! Holds for the audit of orders. Internal: with a service token only.

use shoppee_kit::caller;
use shoppee_kit::pg::PgPool;
use shoppee_proto::product::v1::{
    GetHoldsRequest, GetHoldsResponse, HoldState, ListHoldsRequest, ListHoldsResponse, OrderHold, StockLine,
    hold_audit_service_server::HoldAuditService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{error::Error, hold_audit::AuditedHold, stock::State, store::hold_audit as store};

/// Holds of one call.
const MAX_HOLDS: usize = 500;

#[derive(Debug)]
pub struct Audit {
    pub pool: PgPool,
}

#[tonic::async_trait]
impl HoldAuditService for Audit {
    async fn get_holds(
        &self,
        request: Request<GetHoldsRequest>,
    ) -> Result<Response<GetHoldsResponse>, Status> {
        caller::service(&request)?;
        let order_ids = request.into_inner().order_ids;
        if !(1..=MAX_HOLDS).contains(&order_ids.len()) {
            return Err(Error::invalid("order_ids", "must be 1 to 500").into());
        }
        let ids: Vec<Uuid> =
            order_ids.iter().map(|id| order_id("order_ids", id)).collect::<Result<_, _>>()?;
        let found = store::get(&self.pool, &ids).await.map_err(Error::from)?;
        let holds = found.into_iter().map(|(order_id, found)| hold(order_id, &found)).collect();
        Ok(Response::new(GetHoldsResponse { holds }))
    }

    async fn list_holds(
        &self,
        request: Request<ListHoldsRequest>,
    ) -> Result<Response<ListHoldsResponse>, Status> {
        caller::service(&request)?;
        let asked = request.into_inner();
        let limit = usize::try_from(asked.limit).unwrap_or_default();
        if !(1..=MAX_HOLDS).contains(&limit) {
            return Err(Error::invalid("limit", "must be 1 to 500").into());
        }
        let after = match asked.after_order_id.as_str() {
            "" => Uuid::nil(),
            id => order_id("after_order_id", id)?,
        };
        let mut conn = self.pool.acquire().await.map_err(Error::from)?;
        let found = store::list(&mut conn, after, asked.limit.into()).await.map_err(Error::from)?;
        let next = found.last().filter(|_| found.len() >= limit).map(|(order_id, _)| order_id.to_string());
        let keeps = |state: State| matches!(state, State::Held | State::Committed);
        let order_ids =
            found.iter().filter(|(_, state)| keeps(*state)).map(|(order_id, _)| order_id.to_string());
        Ok(Response::new(ListHoldsResponse { order_ids: order_ids.collect(), next_after_order_id: next }))
    }
}

fn hold(order_id: Uuid, found: &AuditedHold) -> OrderHold {
    let lines = found.lines.iter().filter(|line| line.quantity > 0);
    OrderHold {
        order_id: order_id.to_string(),
        state: match found.state {
            State::Held => HoldState::Held,
            State::Committed => HoldState::Committed,
            State::Released => HoldState::Released,
            State::Expired => HoldState::Expired,
        }
        .into(),
        lines: lines.map(|line| StockLine { product_id: line.product_id, quantity: line.quantity }).collect(),
        ledger_agrees: found.ledger_agrees(),
        created_at: Some(found.created_at.into()),
    }
}

fn order_id(field: &str, text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::invalid(field, "must be a UUID"))
}
