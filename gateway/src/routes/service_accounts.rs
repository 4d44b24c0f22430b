//! `/admin/service-accounts`: the identities of programs.

use http::{HeaderMap, StatusCode, header::LOCATION};
use shoppee_proto::auth::v1::{
    CreateServiceAccountRequest, GetServiceAccountRequest, ListServiceAccountsRequest,
    ListServiceAccountsResponse, RevokeServiceAccountRequest, RotateServiceAccountRequest, ServiceAccount,
};

use crate::{
    auth::Admin,
    error::Problem,
    extract::{EmptyBody, IdempotencyKey, Json, Path, Query, Uuid},
    routes::{
        idempotency,
        pagination::{Page, as_query_error, check_limit},
    },
    upstream::Upstream,
};

pub async fn create(
    admin: Admin,
    upstream: Upstream,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Json(account): Json<CreateServiceAccountRequest>,
) -> Result<(StatusCode, HeaderMap, Json<ServiceAccount>), Problem> {
    let request = CreateServiceAccountRequest { idempotency_key, ..account };
    let (metadata, account, _) = upstream.call_with_metadata(&admin, request).await?.into_parts();
    let mut headers = idempotency::headers(&metadata);
    // A UUID is a valid header value.
    if let Ok(location) = format!("/api/v1/admin/service-accounts/{}", account.id).parse() {
        headers.insert(LOCATION, location);
    }
    Ok((StatusCode::CREATED, headers, Json(account)))
}

pub async fn list(
    admin: Admin,
    upstream: Upstream,
    Query(Page { limit, cursor }): Query<Page>,
) -> Result<Json<ListServiceAccountsResponse>, Problem> {
    check_limit(limit)?;
    let request = ListServiceAccountsRequest { limit, cursor };
    Ok(Json(upstream.call(&admin, request).await.map_err(as_query_error)?))
}

pub async fn get(
    admin: Admin,
    upstream: Upstream,
    Path(id): Path<Uuid>,
) -> Result<Json<ServiceAccount>, Problem> {
    Ok(Json(upstream.call(&admin, GetServiceAccountRequest { id: id.into() }).await?))
}

pub async fn rotate(
    admin: Admin,
    upstream: Upstream,
    Path(id): Path<Uuid>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    _: EmptyBody,
) -> Result<(HeaderMap, Json<ServiceAccount>), Problem> {
    let request = RotateServiceAccountRequest { id: id.into(), idempotency_key };
    Ok(idempotency::into_response(upstream.call_with_metadata(&admin, request).await?))
}

pub async fn revoke(admin: Admin, upstream: Upstream, Path(id): Path<Uuid>) -> Result<StatusCode, Problem> {
    upstream.call(&admin, RevokeServiceAccountRequest { id: id.into() }).await?;
    Ok(StatusCode::NO_CONTENT)
}
