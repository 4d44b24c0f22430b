//! Carts. A line is a product and a number; names and prices are looked up each time, so they are never old.

use std::collections::{BTreeSet, HashMap};

use shoppee_kit::status::Violations;
use shoppee_proto::{
    order::v1::{Cart, CartItem},
    product::v1::{Product, ProductStatus, RefusedLine},
};
use sqlx::Connection as _;
use time::OffsetDateTime;

use crate::{
    Orders,
    error::Error,
    order::{Line, MOST_LINES, Quantity, total},
    request::IdempotentRequest,
    store::cart::{self as store, CartLine},
};

/// A change is made anew where another device has put a product in that was not looked up.
const TRIES: u32 = 3;

/// The cart with live names and prices. One that has not been made yet is empty.
pub async fn get(orders: &Orders, user_id: i64) -> Result<Cart, Error> {
    let mut conn = orders.pool.acquire().await?;
    let lines = store::lines(&mut conn, user_id).await?;
    let updated_at = store::updated_at(&mut conn, user_id).await?.unwrap_or_else(|| orders.clock.now());
    drop(conn);
    let products = look_up(orders, lines.iter().map(|line| line.product_id).collect()).await?;
    let kept = async {
        let mut conn = orders.pool.acquire().await?;
        keep_prices(&mut conn, user_id, &lines, &products).await
    };
    // An order at old prices is refused as well without them, and says less.
    if has_new_prices(&lines, &products)
        && let Err(error) = kept.await
    {
        tracing::debug!(%error, "prices of a cart not kept");
    }
    show(orders, &lines, &products, updated_at)
}

fn has_new_prices(lines: &[CartLine], products: &HashMap<i64, Product>) -> bool {
    let is_new = |line: &CartLine| {
        products.get(&line.product_id).is_some_and(|product| line.shown_price != Some(product.price))
    };
    lines.iter().any(is_new)
}

/// Keeps the prices that a cart is shown with, so that an order at others can say which ones moved.
async fn keep_prices(
    conn: &mut sqlx::PgConnection,
    user_id: i64,
    lines: &[CartLine],
    products: &HashMap<i64, Product>,
) -> sqlx::Result<()> {
    let shown = lines.iter().filter_map(|line| products.get(&line.product_id));
    let (ids, prices): (Vec<i64>, Vec<i64>) = shown.map(|product| (product.id, product.price)).unzip();
    store::keep_prices(conn, user_id, &ids, &prices).await
}

async fn look_up(orders: &Orders, ids: BTreeSet<i64>) -> Result<HashMap<i64, Product>, Error> {
    let products = orders.stock.products(ids.into_iter().collect()).await?;
    Ok(products.into_iter().map(|product| (product.id, product)).collect())
}

fn show(
    orders: &Orders,
    lines: &[CartLine],
    products: &HashMap<i64, Product>,
    updated_at: OffsetDateTime,
) -> Result<Cart, Error> {
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

/// Adds to the line of a product; with whether the answer was given before, under the same key.
pub async fn add(
    orders: &Orders,
    user_id: i64,
    line: Line,
    key: Option<String>,
) -> Result<(Cart, bool), Error> {
    let meaning = (line.product_id, line.quantity.get());
    let request = IdempotentRequest::new(user_id, "cart/add", key, &meaning);
    change(orders, user_id, line.product_id, Change::Add(line.quantity), &request).await
}

/// Sets the line of a product; `None` removes it.
pub async fn set(
    orders: &Orders,
    user_id: i64,
    product_id: i64,
    quantity: Option<Quantity>,
) -> Result<Cart, Error> {
    let change_to = quantity.map_or(Change::Remove, Change::Set);
    let request = IdempotentRequest::new(user_id, "cart/set", None, &());
    change(orders, user_id, product_id, change_to, &request).await.map(|(cart, _)| cart)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add(Quantity),
    Set(Quantity),
    Remove,
}

impl Change {
    const fn quantity(self) -> i64 {
        match self {
            Self::Add(quantity) | Self::Set(quantity) => quantity.get(),
            Self::Remove => 0,
        }
    }
}

/// Changes a line. The products are looked up before the transaction, so that its answer is kept in it, and nothing fails
/// once it is committed.
async fn change(
    orders: &Orders,
    user_id: i64,
    product_id: i64,
    change: Change,
    request: &IdempotentRequest,
) -> Result<(Cart, bool), Error> {
    for _ in 0..TRIES {
        let now = orders.clock.now();
        let mut conn = orders.pool.acquire().await?;
        if let Some(answer) = request.find(&mut conn, now).await? {
            return Ok((answer, true));
        }
        let before = store::lines(&mut conn, user_id).await?;
        drop(conn);
        let mut ids: BTreeSet<i64> = before.iter().map(|line| line.product_id).collect();
        ids.insert(product_id);
        let products = look_up(orders, ids.clone()).await?;
        if change != Change::Remove && !products.get(&product_id).is_some_and(is_active) {
            return Err(Error::ProductUnavailable(vec![RefusedLine {
                product_id,
                sku: products.get(&product_id).map(|product| product.sku.clone()),
                requested: change.quantity(),
                ..RefusedLine::default()
            }]));
        }

        let mut tx = orders.pool.begin().await?;
        if let Some(answer) = request.claim(&mut tx, now).await? {
            return Ok((answer, true));
        }
        store::touch(&mut tx, user_id, now).await?;
        apply(&mut tx, user_id, product_id, change, now).await?;
        let lines = store::lines(&mut tx, user_id).await?;
        if change != Change::Remove && lines.len() > MOST_LINES {
            return Err(Violations::from(("product_id", "a cart holds at most 100 products")).into());
        }
        if lines.iter().all(|line| ids.contains(&line.product_id)) {
            if has_new_prices(&lines, &products) {
                keep_prices(&mut tx, user_id, &lines, &products).await?;
            }
            let cart = show(orders, &lines, &products, now)?;
            request.answer(&mut tx, &cart).await?;
            tx.commit().await?;
            return Ok((cart, false));
        }
        tx.rollback().await?;
    }
    Err(Error::InProgress)
}

async fn apply(
    conn: &mut sqlx::PgConnection,
    user_id: i64,
    product_id: i64,
    change: Change,
    now: OffsetDateTime,
) -> Result<(), Error> {
    match change {
        Change::Add(quantity) => {
            if !store::add(conn, user_id, product_id, quantity.get(), Quantity::MOST, now).await? {
                return Err(Violations::from(("quantity", "would be more than 1000 in the cart")).into());
            }
        }
        Change::Set(quantity) => store::set(conn, user_id, product_id, quantity.get(), now).await?,
        Change::Remove => store::remove(conn, user_id, product_id).await?,
    }
    Ok(())
}

pub async fn clear(orders: &Orders, user_id: i64) -> Result<(), Error> {
    let mut conn = orders.pool.acquire().await?;
    let mut tx = conn.begin().await?;
    store::touch(&mut tx, user_id, orders.clock.now()).await?;
    store::clear(&mut tx, user_id).await?;
    Ok(tx.commit().await?)
}
