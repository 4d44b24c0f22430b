//! The demo shop: products straight into the product service's tables, customers through the front door.

use serde_json::json;
use shoppee_kit::clock::Clock;
use sqlx::{Connection as _, PgConnection, PgTransaction};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    catalogue::{self, CATEGORIES, Product},
    rest::Rest,
    secrets::Secrets,
};

/// Rows sent at a time: a megabyte or so.
const CHUNK: usize = 2_000;

/// Adds what is missing, and says what it was.
pub async fn run(
    postgres_url: String,
    gateway: String,
    products: u32,
    secrets: Secrets,
) -> anyhow::Result<String> {
    let added = self::products(&postgres_url, products).await?;
    customers(&gateway, &secrets).await?;
    Ok(match added {
        0 => format!("{products} products were there"),
        added => format!("{added} products added"),
    })
}

async fn products(postgres_url: &str, wanted: u32) -> anyhow::Result<usize> {
    let mut connection = PgConnection::connect(postgres_url).await?;
    let skus: Vec<String> = (0..wanted).map(catalogue::sku).collect();
    let there: Vec<String> = sqlx::query_scalar("select sku from product.product where sku = any($1)")
        .bind(&skus)
        .fetch_all(&mut connection)
        .await?;
    if there.len() == skus.len() {
        return Ok(0);
    }
    let there: std::collections::HashSet<String> = there.into_iter().collect();
    let missing: Vec<u32> =
        (0..wanted).zip(&skus).filter(|(_, sku)| !there.contains(*sku)).map(|(number, _)| number).collect();

    let mut transaction = connection.begin().await?;
    let categories = categories(&mut transaction).await?;
    let ids: Vec<i64> = sqlx::query_scalar(
        "select nextval(pg_get_serial_sequence('product.product', 'id')) from generate_series(1, $1)",
    )
    .bind(i64::try_from(missing.len())?)
    .fetch_all(&mut *transaction)
    .await?;
    let now = Clock::default().now();
    let rows: Vec<(i64, Product)> =
        ids.into_iter().zip(missing.into_iter().map(catalogue::product)).collect();

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
    // So that the first queries are planned as all later ones will be.
    sqlx::query("vacuum (analyze) product.product, product.stock").execute(&mut connection).await?;
    connection.close().await?;
    Ok(rows.len())
}

/// The id of each of [`CATEGORIES`].
async fn categories(transaction: &mut PgTransaction<'_>) -> anyhow::Result<Vec<i64>> {
    let mut known = Vec::new();
    for category in &CATEGORIES {
        let parent: Option<i64> = category.parent.map(|parent| known[parent]);
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
        known.push(id);
    }
    Ok(known)
}

async fn copy(
    transaction: &mut PgTransaction<'_>,
    statement: &'static str,
    rows: &[(i64, Product)],
    text: impl Fn(&(i64, Product)) -> Option<String>,
) -> anyhow::Result<()> {
    let mut copying = transaction.copy_in_raw(statement).await?;
    for chunk in rows.chunks(CHUNK) {
        let lines: String = chunk.iter().filter_map(&text).collect();
        copying.send(lines.into_bytes()).await?;
    }
    copying.finish().await?;
    Ok(())
}

/// A row in COPY's text format.
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
    // Every time of this century has one.
    at.format(&Rfc3339).unwrap_or_default()
}

/// Registers those who are not there yet.
async fn customers(gateway: &str, secrets: &Secrets) -> anyhow::Result<()> {
    let rest = Rest::new(gateway)?;
    for customer in &secrets.customers {
        let body = json!({
            "username": customer.username,
            "email": format!("{}@customers.example", customer.username),
            "password": customer.password,
        });
        // A machine whose cores are taken by others answers 503 for a while.
        let answer = rest.post("/auth/register").body(body).send().await?;
        if answer.status != 409 {
            answer.expect_success(&format!("registering {}", customer.username))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_row_stays_one_row() {
        assert_eq!(line(&["1", "a\tb\nc\\d"]), "1\ta\\tb\\nc\\\\d\n");
    }
}
