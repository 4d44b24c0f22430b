//! The gRPC StatusService, for the back office.

use shoppee_kit::readiness::Readiness;
use shoppee_proto::product::v1::{
    GetStatusRequest, ProductServiceStatus, status_service_server::StatusService,
};
use tonic::{Request, Response, Status};

use crate::{audit::StockAudit, search::Search};

#[derive(Debug)]
pub struct ProcessStatus {
    pub readiness: Readiness,
    pub audit: StockAudit,
    pub search: Search,
}

#[tonic::async_trait]
impl StatusService for ProcessStatus {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<ProductServiceStatus>, Status> {
        let unavailable = self.readiness.failing().into_iter().map(ToOwned::to_owned);
        Ok(Response::new(ProductServiceStatus {
            unavailable_dependencies: unavailable.collect(),
            stock_violations: i64::try_from(self.audit.violations()).unwrap_or(i64::MAX),
            stock_audit_age_seconds: self.audit.age().as_secs_f64(),
            search_index_products: self.search.product_count().into(),
            search_index_age_seconds: self.search.age().as_secs_f64(),
        }))
    }
}
