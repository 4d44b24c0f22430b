//! Seeds the demo shop: writes products into the product service's tables, and registers customers by REST.

use serde_json::json;
use shoppee_kit::clock::Clock;
use sqlx::{Connection as _, PgConnection, PgTransaction};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    demo_data::{self, CATEGORIES, Product},
    rest::Rest,
    secrets::Secrets,
};

/// Rows per COPY message, about a megabyte.
const CHUNK_ROWS: usize = 2_000;

/// Adds missing products and customers, and describes the additions.
pub async fn run(
    postgres_url: String,
    gateway: String,
    products: u32,
    secrets: Secrets,
) -> anyhow::Result<String> {
    let added = seed_products(&postgres_url, products).await?;
    seed_customers(&gateway, &secrets).await?;
    Ok(match added {
        0 => format!("{products} products were there"),
        added => format!("{added} products added"),
    })
}

async fn seed_products(postgres_url: &str, count: u32) -> anyhow::Result<usize> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let skus: Vec<String> = (0..count).map(demo_data::sku).collect();
    let existing: Vec<String> = sqlx::query_scalar("select sku from product.product where sku = any($1)")
        .bind(&skus)
        .fetch_all(&mut connection)
        .await?;
    if existing.len() == skus.len() {
        return Ok(0);
    }
    let existing: std::collections::HashSet<String> = existing.into_iter().collect();
    let missing: Vec<u32> =
        (0..count).zip(&skus).filter(|(_, sku)| !existing.contains(*sku)).map(|(number, _)| number).collect();

    let mut transaction = connection.begin().await?;
    let categories = seed_categories(&mut transaction).await?;
    let ids: Vec<i64> = sqlx::query_scalar(
        "select nextval(pg_get_serial_sequence('product.product', 'id')) from generate_series(1, $1)",
    )
    .bind(i64::try_from(missing.len())?)
    .fetch_all(&mut *transaction)
    .await?;
    let now = Clock::default().now();
    let rows: Vec<(i64, Product)> =
        ids.into_iter().zip(missing.into_iter().map(demo_data::product)).collect();

    copy(
        &mut transaction,
        "copy product.product (id, sku, name, description, category_id, price, attributes, in_stock, created_at, \
         updated_at) from stdin",
        &rows,
        |(id, product)| {
            let category_id = categories[product.category];
            let at = time_text(now - Duration::minutes(product.age));
            Some(line(&[
                &id.to_string(),
                &product.sku,
                &product.name,
                &product.description,
                &category_id.to_string(),
                &product.price.to_string(),
                &product.attributes.to_string(),
                if product.stock > 0 { "t" } else { "f" },
                &at,
                &at,
            ]))
        },
    )
    .await?;
    copy(
        &mut transaction,
        "copy product.stock (product_id, available) from stdin",
        &rows,
        |(id, product)| Some(line(&[&id.to_string(), &product.stock.to_string()])),
    )
    .await?;
    copy(
        &mut transaction,
        "copy product.stock_ledger (product_id, kind, quantity, at) from stdin",
        &rows,
        |(id, product)| {
            (product.stock > 0)
                .then(|| line(&[&id.to_string(), "supply", &product.stock.to_string(), &time_text(now)]))
        },
    )
    .await?;
    transaction.commit().await?;
    // Without statistics, the first queries would get other plans than later ones.
    sqlx::query("vacuum (analyze) product.product, product.stock").execute(&mut connection).await?;
    connection.close().await?;
    Ok(rows.len())
}

/// Inserts missing categories, and returns the id of each of [`CATEGORIES`].
async fn seed_categories(transaction: &mut PgTransaction<'_>) -> anyhow::Result<Vec<i64>> {
    let mut ids = Vec::new();
    for category in &CATEGORIES {
        let parent: Option<i64> = category.parent.map(|parent| ids[parent]);
        sqlx::query(
            "insert into product.category (slug, name, parent_id) values ($1, $2, $3) \
             on conflict (slug) do nothing",
        )
        .bind(category.slug)
        .bind(category.name)
        .bind(parent)
        .execute(&mut **transaction)
        .await?;
        let id = sqlx::query_scalar("select id from product.category where slug = $1")
            .bind(category.slug)
            .fetch_one(&mut **transaction)
            .await?;
        ids.push(id);
    }
    Ok(ids)
}

async fn copy(
    transaction: &mut PgTransaction<'_>,
    statement: &'static str,
    rows: &[(i64, Product)],
    text: impl Fn(&(i64, Product)) -> Option<String>,
) -> anyhow::Result<()> {
    let mut writer = transaction.copy_in_raw(statement).await?;
    for chunk in rows.chunks(CHUNK_ROWS) {
        let lines: String = chunk.iter().filter_map(&text).collect();
        writer.send(lines.into_bytes()).await?;
    }
    writer.finish().await?;
    Ok(())
}

/// Formats a row in COPY's text format.
fn line(fields: &[&str]) -> String {
    let escaped: Vec<String> = fields
        .iter()
        .map(|field| {
            field.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
        })
        .collect();
    escaped.join("\t") + "\n"
}

fn time_text(at: OffsetDateTime) -> String {
    // RFC 3339 represents every time of this century.
    at.format(&Rfc3339).unwrap_or_default()
}

/// Registers customers that do not exist yet.
async fn seed_customers(gateway: &str, secrets: &Secrets) -> anyhow::Result<()> {
    let rest = Rest::new(gateway)?;
    for customer in &secrets.customers {
        let body = json!({
            "username": customer.username,
            "email": format!("{}@customers.example", customer.username),
            "password": customer.password,
        });
        // The client retries: the shop may answer 503 for a while on a busy machine.
        let response = rest.post("/auth/register").body(body).send().await?;
        if response.status != 409 {
            response.expect_success(&format!("registering {}", customer.username))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn separators_in_a_field_are_escaped() {
        assert_eq!(line(&["1", "a\tb\nc\\d"]), "1\ta\\tb\\nc\\\\d\n");
    }
}
