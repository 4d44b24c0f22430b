//! Carts: one row per user, one row per line.

use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Clone, Debug)]
pub struct CartLine {
    pub product_id: i64,
    pub quantity: i64,
    /// The unit price that the user was last shown, in minor units.
    pub shown_price: Option<i64>,
}

/// Creates the cart if it does not exist, sets its time of change, and holds its lock until the transaction ends.
pub async fn touch(conn: &mut PgConnection, user_id: i64, now: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into orders.cart (user_id, updated_at) values ($1, $2)
         on conflict (user_id) do update set updated_at = excluded.updated_at",
        user_id,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Creates an empty cart for a new user. An existing cart is not changed.
pub async fn create(conn: &mut PgConnection, user_id: i64, now: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into orders.cart (user_id, updated_at) values ($1, $2) on conflict (user_id) do nothing",
        user_id,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn updated_at(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!("select updated_at from orders.cart where user_id = $1", user_id)
        .fetch_optional(conn)
        .await
}

/// Returns the lines of a cart, in the order in which the products were added.
pub async fn lines(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<Vec<CartLine>> {
    sqlx::query_as!(
        CartLine,
        "select product_id, quantity, shown_price from orders.cart_line
         where user_id = $1 order by added_at, product_id",
        user_id
    )
    .fetch_all(conn)
    .await
}

/// Saves the prices that the user is shown.
pub async fn save_shown_prices(
    conn: &mut PgConnection,
    user_id: i64,
    product_ids: &[i64],
    prices: &[i64],
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders.cart_line as line set shown_price = shown.price
         from unnest($2::bigint[], $3::bigint[]) as shown (product_id, price)
         where line.user_id = $1 and line.product_id = shown.product_id",
        user_id,
        product_ids,
        prices
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds to the line of a product. Returns `false` if the quantity would exceed `max`.
pub async fn add(
    conn: &mut PgConnection,
    user_id: i64,
    product_id: i64,
    quantity: i64,
    max: i64,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let result = sqlx::query!(
        "insert into orders.cart_line as line (user_id, product_id, quantity, added_at) values ($1, $2, $3, $4)
         on conflict (user_id, product_id) do update set quantity = line.quantity + excluded.quantity
         where line.quantity + excluded.quantity <= $5",
        user_id,
        product_id,
        quantity,
        now,
        max
    )
    .execute(conn)
    .await?;
    Ok(result.rows_affected() == 1)
}

pub async fn set(
    conn: &mut PgConnection,
    user_id: i64,
    product_id: i64,
    quantity: i64,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into orders.cart_line (user_id, product_id, quantity, added_at) values ($1, $2, $3, $4)
         on conflict (user_id, product_id) do update set quantity = excluded.quantity",
        user_id,
        product_id,
        quantity,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn remove(conn: &mut PgConnection, user_id: i64, product_id: i64) -> sqlx::Result<()> {
    sqlx::query!("delete from orders.cart_line where user_id = $1 and product_id = $2", user_id, product_id)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn clear(conn: &mut PgConnection, user_id: i64) -> sqlx::Result<()> {
    sqlx::query!("delete from orders.cart_line where user_id = $1", user_id).execute(conn).await?;
    Ok(())
}
