//! The gRPC StatusService, for the back office.

use std::sync::Arc;

use shoppee_kit::readiness::Readiness;
use shoppee_proto::auth::v1::{AuthServiceStatus, GetStatusRequest, status_service_server::StatusService};
use tonic::{Request, Response, Status};

use crate::{AuthContext, error::Error, outbox};

#[derive(Debug)]
pub struct ProcessStatus {
    pub context: Arc<AuthContext>,
    pub readiness: Readiness,
}

#[tonic::async_trait]
impl StatusService for ProcessStatus {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<AuthServiceStatus>, Status> {
        let now = self.context.clock.now();
        let backlog = outbox::read_backlog(&self.context.pool, now).await.map_err(Error::from)?;
        let unavailable = self.readiness.failing().into_iter().map(ToOwned::to_owned);
        Ok(Response::new(AuthServiceStatus {
            unavailable_dependencies: unavailable.collect(),
            outbox_pending: backlog.pending,
            outbox_oldest_seconds: backlog.lag_seconds,
        }))
    }
}
