//! `/admin`: all users, all orders.

use serde::Deserialize;
use shoppee_proto::{
    auth::v1::{
        GetUserRequest, ListUsersRequest, ListUsersResponse, Role, UpdateUserRequest, User as Account,
    },
    order::v1::{ListOrdersRequest, ListOrdersResponse, OrderStatus},
};

use crate::{
    auth::Admin,
    error::Problem,
    extract::{Id, IdempotencyKey, Json, Path, Query, word},
    routes::page::{check, check_limit, of_query},
    upstream::Upstream,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    q: Option<String>,
    #[serde(default, deserialize_with = "word")]
    role: Option<Role>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list_users(
    admin: Admin,
    shop: Upstream,
    Query(list): Query<Users>,
) -> Result<Json<ListUsersResponse>, Problem> {
    check_limit(list.limit)?;
    a_persons(list.role)?;
    let role = list.role.map(Into::into);
    let request = ListUsersRequest { q: list.q, role, limit: list.limit, cursor: list.cursor };
    Ok(Json(shop.call(&admin, request).await.map_err(of_query)?))
}

pub async fn show_user(admin: Admin, shop: Upstream, Path(id): Path<Id>) -> Result<Json<Account>, Problem> {
    Ok(Json(shop.call(&admin, GetUserRequest { id: id.into() }).await?))
}

pub async fn update_user(
    admin: Admin,
    shop: Upstream,
    // A repeat sets the same values: the key is checked and has no effect.
    _: IdempotencyKey,
    Path(id): Path<Id>,
    Json(change): Json<UpdateUserRequest>,
) -> Result<Json<Account>, Problem> {
    a_persons(change.role.and_then(|role| role.try_into().ok()))?;
    Ok(Json(shop.call(&admin, UpdateUserRequest { id: id.into(), ..change }).await?))
}

/// `service` is a role of tokens, not of people: to a REST client it is an unknown word.
fn a_persons(role: Option<Role>) -> Result<(), Problem> {
    check(role != Some(Role::Service), "role", "is not one of the words it may be")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    user_id: Option<i64>,
    #[serde(default, deserialize_with = "word")]
    status: Option<OrderStatus>,
    limit: Option<i32>,
    cursor: Option<String>,
}

pub async fn list_orders(
    admin: Admin,
    shop: Upstream,
    Query(list): Query<Orders>,
) -> Result<Json<ListOrdersResponse>, Problem> {
    check_limit(list.limit)?;
    check(list.user_id.is_none_or(|id| id > 0), "user_id", "must be 1 or more")?;
    let request = ListOrdersRequest {
        status: list.status.map(Into::into),
        limit: list.limit,
        cursor: list.cursor,
        everyone: true,
        user_id: list.user_id,
    };
    Ok(Json(shop.call(&admin, request).await.map_err(of_query)?))
}
