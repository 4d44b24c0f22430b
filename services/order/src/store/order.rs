//! Orders and their lines.

use std::collections::HashMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    order::{Address, Shipment, Status},
};

/// An order without its lines, which [`lines`] returns.
#[derive(Clone, Debug)]
pub struct OrderRow {
    pub user_id: i64,
    pub id: Uuid,
    pub status: Status,
    pub total: i64,
    pub currency: String,
    pub shipping_address: Address,
    pub version: i64,
    pub expires_at: OffsetDateTime,
    pub paid_at: Option<OffsetDateTime>,
    pub refunded_at: Option<OffsetDateTime>,
    pub refund_failed_at: Option<OffsetDateTime>,
    pub shipment: Option<(Shipment, OffsetDateTime)>,
    pub cancel_reason: Option<String>,
    pub expired: bool,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

#[derive(Clone, Debug)]
pub struct LineRow {
    pub order_id: Uuid,
    pub product_id: i64,
    pub sku: String,
    pub name: String,
    pub unit_price: i64,
    pub quantity: i64,
}

/// The columns of an order, before their conversion to [`OrderRow`].
struct OrderRecord {
    user_id: i64,
    id: Uuid,
    status: String,
    total: i64,
    currency: String,
    shipping_address: sqlx::types::Json<Address>,
    version: i64,
    expires_at: OffsetDateTime,
    paid_at: Option<OffsetDateTime>,
    refunded_at: Option<OffsetDateTime>,
    refund_failed_at: Option<OffsetDateTime>,
    carrier: Option<String>,
    tracking_number: Option<String>,
    shipped_at: Option<OffsetDateTime>,
    cancel_reason: Option<String>,
    expired: bool,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<OrderRecord> for OrderRow {
    type Error = Error;

    fn try_from(row: OrderRecord) -> Result<Self, Error> {
        let shipment = match (row.carrier, row.tracking_number, row.shipped_at) {
            (Some(carrier), Some(tracking_number), Some(at)) => {
                Some((Shipment { carrier, tracking_number }, at))
            }
            _ => None,
        };
        Ok(Self {
            user_id: row.user_id,
            id: row.id,
            status: row.status.parse().map_err(|_| Error::Internal("an order with an unknown status"))?,
            total: row.total,
            currency: row.currency,
            shipping_address: row.shipping_address.0,
            version: row.version,
            expires_at: row.expires_at,
            paid_at: row.paid_at,
            refunded_at: row.refunded_at,
            refund_failed_at: row.refund_failed_at,
            shipment,
            cancel_reason: row.cancel_reason,
            expired: row.expired,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// Returns an order of a user.
pub async fn find(conn: &mut PgConnection, user_id: i64, id: Uuid) -> Result<Option<OrderRow>, Error> {
    let row = sqlx::query_as!(
        OrderRecord,
        r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                  expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number, shipped_at,
                  cancel_reason, expired, created_at, updated_at
           from orders.orders where user_id = $1 and id = $2"#,
        user_id,
        id
    )
    .fetch_optional(conn)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Returns the owner of an order; for admins.
pub async fn find_owner(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!("select user_id from orders.orders where id = $1", id).fetch_optional(conn).await
}

/// Returns an order, and holds its lock until the transaction ends.
pub async fn get_for_update(
    conn: &mut PgConnection,
    user_id: i64,
    id: Uuid,
) -> Result<Option<OrderRow>, Error> {
    let row = sqlx::query_as!(
        OrderRecord,
        r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                  expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number, shipped_at,
                  cancel_reason, expired, created_at, updated_at
           from orders.orders where user_id = $1 and id = $2 for update"#,
        user_id,
        id
    )
    .fetch_optional(conn)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The filter of a list of orders.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// The owner; `None` for all users.
    pub user_id: Option<i64>,
    pub status: Option<Status>,
    /// Selects orders older than this one.
    pub before: Option<Uuid>,
    pub limit: i64,
}

/// Returns orders, newest first: the ids are UUIDv7, which begin with the time. There is one query for each
/// combination. Once it plans for all parameters, PostgreSQL makes an optional condition a filter over all orders of
/// the user, or of the shop.
pub async fn list(conn: &mut PgConnection, filter: Filter) -> Result<Vec<OrderRow>, Error> {
    let before = filter.before.unwrap_or(Uuid::max());
    let rows = match (filter.user_id, filter.status.map(Status::as_str)) {
        (Some(user_id), None) => {
            sqlx::query_as!(
                OrderRecord,
                r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                          expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number,
                          shipped_at, cancel_reason, expired, created_at, updated_at
                   from orders.orders
                   where user_id = $1 and id < $2 order by id desc limit $3"#,
                user_id,
                before,
                filter.limit
            )
            .fetch_all(conn)
            .await?
        }
        (Some(user_id), Some(status)) => {
            sqlx::query_as!(
                OrderRecord,
                r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                          expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number,
                          shipped_at, cancel_reason, expired, created_at, updated_at
                   from orders.orders
                   where user_id = $1 and status = $2 and id < $3 order by id desc limit $4"#,
                user_id,
                status,
                before,
                filter.limit
            )
            .fetch_all(conn)
            .await?
        }
        (None, None) => {
            sqlx::query_as!(
                OrderRecord,
                r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                          expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number,
                          shipped_at, cancel_reason, expired, created_at, updated_at
                   from orders.orders
                   where id < $1 order by id desc limit $2"#,
                before,
                filter.limit
            )
            .fetch_all(conn)
            .await?
        }
        (None, Some(status)) => {
            // Sorted like the index on the status: otherwise PostgreSQL may search all orders for a rare status.
            sqlx::query_as!(
                OrderRecord,
                r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                          expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number,
                          shipped_at, cancel_reason, expired, created_at, updated_at
                   from orders.orders
                   where status >= $1 and (status, id) < ($1, $2) order by status desc, id desc limit $3"#,
                status,
                before,
                filter.limit
            )
            .fetch_all(conn)
            .await?
        }
    };
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Returns the lines of these orders, sorted by order and product id.
pub async fn lines(conn: &mut PgConnection, orders: &[(i64, Uuid)]) -> sqlx::Result<Vec<LineRow>> {
    let (users, ids): (Vec<i64>, Vec<Uuid>) = orders.iter().copied().unzip();
    // The lines of one user are in one partition, which the query names if all orders have the same owner.
    if let Some(user_id) = users.first().copied().filter(|first| users.iter().all(|user_id| user_id == first))
    {
        return sqlx::query_as!(
            LineRow,
            "select order_id, product_id, sku, name, unit_price, quantity
             from orders.order_line where user_id = $1 and order_id = any($2)
             order by order_id, product_id",
            user_id,
            &ids
        )
        .fetch_all(conn)
        .await;
    }
    sqlx::query_as!(
        LineRow,
        "select line.order_id, line.product_id, line.sku, line.name, line.unit_price, line.quantity
         from unnest($1::bigint[], $2::uuid[]) as wanted (user_id, order_id)
         join orders.order_line as line on line.user_id = wanted.user_id and line.order_id = wanted.order_id
         order by line.order_id, line.product_id",
        &users,
        &ids
    )
    .fetch_all(conn)
    .await
}

/// Bounds the lines of a user's pending orders that are read: those of 20 orders, the default limit per user.
const MAX_PENDING_LINES: i64 = 2000;

/// Returns the newest unpaid order of a user for each of `products`. All lines of these orders are read, up to
/// [`MAX_PENDING_LINES`]: their index begins with the order.
pub async fn find_unpaid_with(
    conn: &mut PgConnection,
    user_id: i64,
    now: OffsetDateTime,
    products: &[i64],
) -> sqlx::Result<HashMap<i64, Uuid>> {
    let rows = sqlx::query!(
        "select line.product_id, o.id
         from orders.orders as o
         join orders.order_line as line on line.user_id = o.user_id and line.order_id = o.id
         where o.user_id = $1 and o.status = 'pending' and o.expires_at > $2
         order by o.created_at desc
         limit $3",
        user_id,
        now,
        MAX_PENDING_LINES,
    )
    .fetch_all(conn)
    .await?;
    let mut newest = HashMap::new();
    for row in rows.into_iter().filter(|row| products.contains(&row.product_id)) {
        newest.entry(row.product_id).or_insert(row.id);
    }
    Ok(newest)
}

/// Updates the columns that transitions change. The caller holds the row's lock from [`get_for_update`].
pub async fn update(conn: &mut PgConnection, order: &OrderRow) -> sqlx::Result<()> {
    let shipment = order.shipment.as_ref();
    sqlx::query!(
        "update orders.orders
         set status = $3, version = $4, paid_at = $5, refunded_at = $6, carrier = $7, tracking_number = $8,
             shipped_at = $9, cancel_reason = $10, expired = $11, updated_at = $12
         where user_id = $1 and id = $2",
        order.user_id,
        order.id,
        order.status.as_str(),
        order.version,
        order.paid_at,
        order.refunded_at,
        shipment.map(|(shipment, _)| shipment.carrier.as_str()),
        shipment.map(|(shipment, _)| shipment.tracking_number.as_str()),
        shipment.map(|(_, at)| *at),
        order.cancel_reason.as_deref(),
        order.expired,
        order.updated_at
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Locks pending orders past their payment deadline, the longest overdue first. Skips orders with an open payment
/// attempt, and orders that another transaction has locked.
pub async fn lock_overdue(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<OrderRow>, Error> {
    let rows = sqlx::query_as!(
        OrderRecord,
        r#"select user_id, id, status, total, currency, shipping_address as "shipping_address: _", version,
                  expires_at, paid_at, refunded_at, refund_failed_at, carrier, tracking_number, shipped_at,
                  cancel_reason, expired, created_at, updated_at
           from orders.orders as o
           where status = 'pending' and expires_at <= $1
             and not exists (select from orders.payment_attempt as attempt
                             where attempt.user_id = o.user_id and attempt.order_id = o.id
                               and attempt.state = 'charging')
           order by expires_at limit $2
           for update of o skip locked"#,
        now,
        limit
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Records the outcome of the refund of a cancelled order. Returns the total and the currency, if the order was paid.
pub async fn record_refund(
    conn: &mut PgConnection,
    (user_id, id): (i64, Uuid),
    refunded: bool,
    now: OffsetDateTime,
) -> sqlx::Result<Option<(i64, String)>> {
    let order = sqlx::query!(
        "update orders.orders
         set refunded_at = case when $3 then $4::timestamptz end,
             refund_failed_at = case when not $3 then $4::timestamptz end,
             updated_at = $4
         where user_id = $1 and id = $2 and status = 'cancelled' and paid_at is not null and refunded_at is null
         returning total, currency",
        user_id,
        id,
        refunded,
        now
    )
    .fetch_optional(conn)
    .await?;
    Ok(order.map(|order| (order.total, order.currency)))
}
