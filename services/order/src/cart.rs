//! Carts. A line is a product and a number; names and prices are looked up each time, so they are never old.

use std::collections::HashMap;

use shoppee_kit::status::Violations;
use shoppee_proto::{
    order::v1::{Cart, CartItem},
    product::v1::{Product, ProductStatus},
};
use sqlx::Connection as _;

use crate::{
    Orders,
    error::Error,
    order::{Line, MOST_LINES, Quantity, total},
    store::cart::{self as store, CartLine},
};

/// The cart with live names and prices. One that has not been made yet is empty.
pub async fn get(orders: &Orders, user_id: i64) -> Result<Cart, Error> {
    let mut conn = orders.pool.acquire().await?;
    let lines = store::lines(&mut conn, user_id).await?;
    let updated_at = store::updated_at(&mut conn, user_id).await?.unwrap_or_else(|| orders.clock.now());
    drop(conn);
    let products = orders.stock.products(lines.iter().map(|line| line.product_id).collect()).await?;
    let products: HashMap<i64, Product> = products.into_iter().map(|product| (product.id, product)).collect();

    let items: Vec<CartItem> = lines
        .iter()
        // A product is archived, never deleted.
        .filter_map(|line| Some(item(line, products.get(&line.product_id)?)))
        .collect();
    Ok(Cart {
        total: total(items.iter().map(|item| (item.unit_price, item.quantity)))
            .ok_or(Error::Broken("a cart's total beyond 64 bits"))?,
        currency: orders.currency.clone(),
        items,
        updated_at: Some(updated_at.into()),
    })
}

fn item(line: &CartLine, product: &Product) -> CartItem {
    CartItem {
        product_id: line.product_id,
        sku: product.sku.clone(),
        name: product.name.clone(),
        unit_price: product.price,
        quantity: line.quantity,
        line_total: product.price.saturating_mul(line.quantity),
        available: is_active(product) && product.stock >= line.quantity,
    }
}

fn is_active(product: &Product) -> bool {
    product.status() == ProductStatus::Active
}

/// Adds to the line of a product.
pub async fn add(orders: &Orders, user_id: i64, line: Line) -> Result<Cart, Error> {
    in_shop(orders, line.product_id).await?;
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    store::touch(&mut tx, user_id, now).await?;
    let line = CartLine { product_id: line.product_id, quantity: line.quantity.get() };
    if !store::add(&mut tx, user_id, &line, Quantity::MOST, now).await? {
        return Err(Violations::from(("quantity", "would be more than 1000 in the cart")).into());
    }
    fits(&mut tx, user_id).await?;
    tx.commit().await?;
    get(orders, user_id).await
}

/// Sets the line of a product; `None` removes it.
pub async fn set(
    orders: &Orders,
    user_id: i64,
    product_id: i64,
    quantity: Option<Quantity>,
) -> Result<Cart, Error> {
    if quantity.is_some() {
        in_shop(orders, product_id).await?;
    }
    let now = orders.clock.now();
    let mut tx = orders.pool.begin().await?;
    store::touch(&mut tx, user_id, now).await?;
    match quantity {
        Some(quantity) => {
            let line = CartLine { product_id, quantity: quantity.get() };
            store::set(&mut tx, user_id, &line, now).await?;
            fits(&mut tx, user_id).await?;
        }
        None => store::remove(&mut tx, user_id, product_id).await?,
    }
    tx.commit().await?;
    get(orders, user_id).await
}

pub async fn clear(orders: &Orders, user_id: i64) -> Result<(), Error> {
    let mut conn = orders.pool.acquire().await?;
    let mut tx = conn.begin().await?;
    store::touch(&mut tx, user_id, orders.clock.now()).await?;
    store::clear(&mut tx, user_id).await?;
    Ok(tx.commit().await?)
}

/// Whether a product can enter a cart.
async fn in_shop(orders: &Orders, product_id: i64) -> Result<(), Error> {
    let found = orders.stock.products(vec![product_id]).await?;
    if found.iter().any(is_active) {
        Ok(())
    } else {
        Err(Error::ProductUnavailable(format!("product {product_id} is not in the shop")))
    }
}

/// Whether the cart has not become too long.
async fn fits(conn: &mut sqlx::PgConnection, user_id: i64) -> Result<(), Error> {
    if store::lines(conn, user_id).await?.len() > MOST_LINES {
        return Err(Violations::from(("product_id", "a cart holds at most 100 products")).into());
    }
    Ok(())
}
