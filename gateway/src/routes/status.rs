//! `/admin/status`: the status of the shop, gathered from the services.

use std::sync::Arc;

use axum::extract::State;
use shoppee_proto::{
    auth::v1::GetStatusRequest as GetAuthStatusRequest, order::v1::GetStatusRequest as GetOrderStatusRequest,
    product::v1::GetStatusRequest as GetProductStatusRequest,
};
use tokio::time::timeout;

use crate::{
    auth::Admin,
    error::{Code, Problem},
    extract::Json,
    shop_status::{GatewayStatus, ShopStatus},
    state::AppState,
    upstream::{Call, Upstream},
};

pub async fn get(admin: Admin, State(state): State<AppState>) -> Result<Json<Arc<ShopStatus>>, Problem> {
    Ok(Json(state.status.get_or_gather(gather(&state, &admin)).await?))
}

async fn gather(state: &AppState, admin: &Admin) -> Result<ShopStatus, Problem> {
    let upstream = &state.upstream;
    let (auth, product, order) = tokio::try_join!(
        ask(upstream, admin, GetAuthStatusRequest {}),
        ask(upstream, admin, GetProductStatusRequest {}),
        ask(upstream, admin, GetOrderStatusRequest {}),
    )?;
    let gateway = GatewayStatus {
        unavailable_dependencies: state.process.readiness.failing(),
        sockets: state.realtime.subscriptions(),
        admin_streams: state.realtime.admin_streams(),
        event_delivery: state.realtime.event_delivery(),
    };
    Ok(ShopStatus { at: state.process.clock.now().into(), gateway, auth, product, order })
}

/// Returns the status of a service, or `None` if it does not answer in time.
///
/// # Errors
/// If the service refuses the caller.
async fn ask<C: Call>(
    upstream: &Upstream,
    admin: &Admin,
    request: C,
) -> Result<Option<C::Response>, Problem> {
    match timeout(C::POLICY.timeout, upstream.call(admin, request)).await {
        Ok(Ok(status)) => Ok(Some(status)),
        Ok(Err(problem)) if is_refusal(problem.code) => Err(problem),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::TokenExpired | Code::SessionRevoked | Code::Forbidden)
}
