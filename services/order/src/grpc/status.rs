//! The gRPC StatusService, for the back office.

use shoppee_kit::readiness::Readiness;
use shoppee_proto::order::v1::{GetStatusRequest, OrderServiceStatus, status_service_server::StatusService};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use crate::{
    OrderContext,
    error::Error,
    order_rate::OrderRate,
    store::{audit, backlog},
};

#[derive(Debug)]
pub struct ProcessStatus {
    pub context: OrderContext,
    pub readiness: Readiness,
    pub order_rate: OrderRate,
}

#[tonic::async_trait]
impl StatusService for ProcessStatus {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<OrderServiceStatus>, Status> {
        let now = self.context.clock.now();
        let mut conn = self.context.pool.acquire().await.map_err(Error::from)?;
        let backlog = backlog::read(&mut conn, now).await.map_err(Error::from)?;
        let mismatches = audit::count_confirmed(&mut conn).await.map_err(Error::from)?;
        drop(conn);
        let orders_per_minute = self.order_rate.read(&self.context.pool, now).await.map_err(Error::from)?;
        let outbox = *self.context.outbox_backlog.borrow();
        let age = |since: Option<OffsetDateTime>| {
            since.map_or(0.0, |since| (now - since).as_seconds_f64().max(0.0))
        };
        let unavailable = self.readiness.failing().into_iter().map(ToOwned::to_owned);
        Ok(Response::new(OrderServiceStatus {
            unavailable_dependencies: unavailable.collect(),
            orders_per_minute,
            outbox_pending: outbox.pending,
            outbox_oldest_seconds: outbox.lag_seconds,
            dead_letters: outbox.dead_letters,
            order_mismatches: mismatches.into_iter().map(|(_, count)| count).sum(),
            payments_open: backlog.charging,
            refunds_pending: backlog.refunding,
            refunds_oldest_seconds: age(backlog.refunding_since),
            refunds_failed: backlog.refunds_failed,
            stock_tasks: backlog.stock_tasks,
            stock_tasks_oldest_seconds: age(backlog.stock_tasks_since),
            orders_overdue: backlog.overdue,
        }))
    }
}
