//! `/admin`: all users, all orders.

use serde::Deserialize;
use shoppee_proto::{
    auth::v1::{
        GetUserRequest, ListUsersRequest, ListUsersResponse, Role, UpdateUserRequest, User as Account,
    },
    order::v1::{ListOrdersRequest, ListOrdersResponse, OrderStatus},
};

use crate::{
    auth::{Admin, Authorized},
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path, Query, deserialize_enum},
    routes::pagination::{as_query_error, check_limit, require},
    upstream::Upstream,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    q: Option<String>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    role: Option<Role>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list_users(
    caller: Authorized<ListUsersRequest>,
    upstream: Upstream,
    Query(list): Query<Users>,
) -> Result<Json<ListUsersResponse>, Problem> {
    check_limit(list.limit)?;
    reject_service_role(list.role)?;
    let role = list.role.map(Into::into);
    let request = ListUsersRequest { q: list.q, role, limit: list.limit, cursor: list.cursor };
    Ok(Json(upstream.call(&caller, request).await.map_err(as_query_error)?))
}

pub async fn get_user(
    caller: Authorized<GetUserRequest>,
    upstream: Upstream,
    Path(id): Path<Id>,
) -> Result<Json<Account>, Problem> {
    Ok(Json(upstream.call(&caller, GetUserRequest { id: id.into() }).await?))
}

pub async fn update_user(
    admin: Admin,
    upstream: Upstream,
    // A repeat sets the same values: the key is checked and has no effect.
    _: IdempotencyKey,
    Path(id): Path<Id>,
    Json(change): Json<UpdateUserRequest>,
) -> Result<Json<Account>, Problem> {
    reject_service_role(change.role.and_then(|role| role.try_into().ok()))?;
    Ok(Json(upstream.call(&admin, UpdateUserRequest { id: id.into(), ..change }).await?))
}

/// Rejects `service`: it is a role of tokens, not of users, and unknown in REST.
fn reject_service_role(role: Option<Role>) -> Result<(), Problem> {
    require(role != Some(Role::Service), "role", "is not one of the words it may be")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    user_id: Option<i64>,
    #[serde(default, deserialize_with = "deserialize_enum")]
    status: Option<OrderStatus>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list_orders(
    caller: Authorized<ListOrdersRequest>,
    upstream: Upstream,
    Query(list): Query<Orders>,
) -> Result<Json<ListOrdersResponse>, Problem> {
    // The method admits customers too, to their own orders.
    if !caller.0.is_staff() {
        return Err(Problem::forbidden());
    }
    check_limit(list.limit)?;
    require(list.user_id.is_none_or(|id| id > 0), "user_id", "must be 1 or more")?;
    let request = ListOrdersRequest {
        status: list.status.map(Into::into),
        limit: list.limit,
        cursor: list.cursor,
        everyone: true,
        user_id: list.user_id,
    };
    Ok(Json(upstream.call(&caller, request).await.map_err(as_query_error)?))
}
