//! Carts. A line is a product id and a quantity. Names and prices are fetched at each read, so that they are current.

use std::collections::{BTreeSet, HashMap};

use shoppee_kit::status::Violations;
use shoppee_proto::{
    order::v1::{Cart, CartItem},
    product::v1::{Product, ProductStatus, RefusedLine},
};
use sqlx::Connection as _;
use time::OffsetDateTime;

use crate::{
    OrderContext,
    error::Error,
    idempotent_request::IdempotentRequest,
    order::{Line, MAX_LINES, Quantity, total},
    store::cart::{self as store, CartLine},
};

/// Bounds the attempts of a change, which is retried if another device adds a product that was not fetched.
const MAX_ATTEMPTS: u32 = 3;

/// Returns the cart with current names and prices. A cart that does not exist yet is empty.
pub async fn get(context: &OrderContext, user_id: i64) -> Result<Cart, Error> {
    let mut conn = context.pool.acquire().await?;
    let lines = store::lines(&mut conn, user_id).await?;
    let updated_at = store::updated_at(&mut conn, user_id).await?.unwrap_or_else(|| context.clock.now());
    drop(conn);
    let products = fetch_products(context, lines.iter().map(|line| line.product_id).collect()).await?;
    let saving = async {
        let mut conn = context.pool.acquire().await?;
        save_shown_prices(&mut conn, user_id, &lines, &products).await
    };
    // Without saved prices an order at old prices is rejected too, with less detail.
    if has_new_prices(&lines, &products)
        && let Err(error) = saving.await
    {
        tracing::debug!(%error, "shown prices of a cart not saved");
    }
    build_cart(context, &lines, &products, updated_at)
}

fn has_new_prices(lines: &[CartLine], products: &HashMap<i64, Product>) -> bool {
    let is_new = |line: &CartLine| {
        products.get(&line.product_id).is_some_and(|product| line.shown_price != Some(product.price))
    };
    lines.iter().any(is_new)
}

/// Saves the prices that the user is shown, so that the error of an order at old prices can name the changed ones.
async fn save_shown_prices(
    conn: &mut sqlx::PgConnection,
    user_id: i64,
    lines: &[CartLine],
    products: &HashMap<i64, Product>,
) -> sqlx::Result<()> {
    let shown = lines.iter().filter_map(|line| products.get(&line.product_id));
    let (ids, prices): (Vec<i64>, Vec<i64>) = shown.map(|product| (product.id, product.price)).unzip();
    store::save_shown_prices(conn, user_id, &ids, &prices).await
}

async fn fetch_products(context: &OrderContext, ids: BTreeSet<i64>) -> Result<HashMap<i64, Product>, Error> {
    let products = context.product.get_products(ids.into_iter().collect()).await?;
    Ok(products.into_iter().map(|product| (product.id, product)).collect())
}

fn build_cart(
    context: &OrderContext,
    lines: &[CartLine],
    products: &HashMap<i64, Product>,
    updated_at: OffsetDateTime,
) -> Result<Cart, Error> {
    let items: Vec<CartItem> = lines
        .iter()
        // Products are archived and never deleted.
        .filter_map(|line| Some(item(line, products.get(&line.product_id)?)))
        .collect();
    Ok(Cart {
        total: total(items.iter().map(|item| (item.unit_price, item.quantity)))
            .ok_or(Error::Internal("a cart's total overflows 64 bits"))?,
        currency: context.currency.clone(),
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

/// Adds to the line of a product. Returns the cart, and whether the response is a replay under the same key.
pub async fn add(
    context: &OrderContext,
    user_id: i64,
    line: Line,
    key: Option<String>,
) -> Result<(Cart, bool), Error> {
    let payload = (line.product_id, line.quantity.get());
    let request = IdempotentRequest::new(user_id, "cart/add", key, &payload);
    change(context, user_id, line.product_id, Change::Add(line.quantity), &request).await
}

/// Sets the quantity of a product; `None` removes the line.
pub async fn set(
    context: &OrderContext,
    user_id: i64,
    product_id: i64,
    quantity: Option<Quantity>,
) -> Result<Cart, Error> {
    let new_value = quantity.map_or(Change::Remove, Change::Set);
    let request = IdempotentRequest::new(user_id, "cart/set", None, &());
    change(context, user_id, product_id, new_value, &request).await.map(|(cart, _)| cart)
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

/// Changes a line. The products are fetched before the transaction, so that the response is saved in it, and nothing
/// can fail after the commit.
async fn change(
    context: &OrderContext,
    user_id: i64,
    product_id: i64,
    change: Change,
    request: &IdempotentRequest,
) -> Result<(Cart, bool), Error> {
    for _ in 0..MAX_ATTEMPTS {
        let now = context.clock.now();
        let mut conn = context.pool.acquire().await?;
        if let Some(response) = request.find(&mut conn, now).await? {
            return Ok((response, true));
        }
        let before = store::lines(&mut conn, user_id).await?;
        drop(conn);
        let mut ids: BTreeSet<i64> = before.iter().map(|line| line.product_id).collect();
        ids.insert(product_id);
        let products = fetch_products(context, ids.clone()).await?;
        if change != Change::Remove && !products.get(&product_id).is_some_and(is_active) {
            // An earlier request with the key may have added the product while it was active.
            let mut conn = context.pool.acquire().await?;
            if let Some(response) = request.find(&mut conn, now).await? {
                return Ok((response, true));
            }
            return Err(Error::ProductUnavailable(vec![RefusedLine {
                product_id,
                sku: products.get(&product_id).map(|product| product.sku.clone()),
                requested: change.quantity(),
                ..RefusedLine::default()
            }]));
        }

        let mut tx = context.pool.begin().await?;
        if let Some(response) = request.claim(&mut tx, now).await? {
            return Ok((response, true));
        }
        store::touch(&mut tx, user_id, now).await?;
        apply(&mut tx, user_id, product_id, change, now).await?;
        let lines = store::lines(&mut tx, user_id).await?;
        if change != Change::Remove && lines.len() > MAX_LINES {
            return Err(Violations::from(("product_id", "a cart holds at most 100 products")).into());
        }
        if lines.iter().all(|line| ids.contains(&line.product_id)) {
            if has_new_prices(&lines, &products) {
                save_shown_prices(&mut tx, user_id, &lines, &products).await?;
            }
            let cart = build_cart(context, &lines, &products, now)?;
            request.save_response(&mut tx, &cart).await?;
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
            if !store::add(conn, user_id, product_id, quantity.get(), Quantity::MAX, now).await? {
                return Err(Violations::from(("quantity", "would be more than 1000 in the cart")).into());
            }
        }
        Change::Set(quantity) => store::set(conn, user_id, product_id, quantity.get(), now).await?,
        Change::Remove => store::remove(conn, user_id, product_id).await?,
    }
    Ok(())
}

pub async fn clear(context: &OrderContext, user_id: i64) -> Result<(), Error> {
    let mut conn = context.pool.acquire().await?;
    let mut tx = conn.begin().await?;
    store::touch(&mut tx, user_id, context.clock.now()).await?;
    store::clear(&mut tx, user_id).await?;
    Ok(tx.commit().await?)
}
