//! Single products.

use std::sync::LazyLock;

use shoppee_kit::{
    audit_log::{Columns, Record},
    log_throttle::LogThrottle,
};
use sqlx::{
    Decode, PgConnection, Postgres, Type,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueRef},
    types::Json,
};
use time::OffsetDateTime;

use crate::product::{self, Attributes, CategoryRef, NewProduct, Product, Status};

/// A product with its category and its stock, as all queries read it.
#[derive(Debug)]
pub struct Row {
    pub id: i64,
    pub sku: String,
    pub name: String,
    pub name_key: String,
    pub description: String,
    pub price: i64,
    pub image_url: Option<String>,
    pub attributes: StoredAttributes,
    pub status: String,
    pub version: i64,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    pub stock: i64,
    pub revision: i64,
    pub category_id: Option<i64>,
    pub category_slug: Option<String>,
    pub category_name: Option<String>,
}

/// The attributes of a row: `None` if they break the rules, which only SQL or an older version can have
/// caused. The product is shown without them, because an error would fail the whole page.
#[derive(Debug)]
pub struct StoredAttributes(Option<Attributes>);

impl Type<Postgres> for StoredAttributes {
    fn type_info() -> PgTypeInfo {
        Json::<Attributes>::type_info()
    }

    fn compatible(type_info: &PgTypeInfo) -> bool {
        Json::<Attributes>::compatible(type_info)
    }
}

impl Decode<'_, Postgres> for StoredAttributes {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        // The text form of PostgreSQL is never shorter than compact JSON.
        let is_small = value.as_bytes()?.len() <= product::MAX_ATTRIBUTES_BYTES;
        let decoded = Json::<Attributes>::decode(value).ok().map(|json| json.0);
        Ok(Self(decoded.and_then(|attributes| {
            if is_small {
                Some(attributes).filter(product::is_depth_valid)
            } else {
                product::validate_attributes(attributes).ok()
            }
        })))
    }
}

impl StoredAttributes {
    /// Returns the attributes, or none with a log line.
    fn unwrap_or_log(self, id: i64) -> Attributes {
        static THROTTLE: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
        self.0.unwrap_or_else(|| {
            if let Some(suppressed) = THROTTLE.admit() {
                tracing::warn!(
                    product.id = id,
                    suppressed,
                    "the stored attributes of a product are invalid and not shown"
                );
            }
            Attributes::new()
        })
    }
}

/// A query that reads products as [`Row`]s. Arguments: `[the source, with the alias p] [the remaining
/// clauses]; arguments`. Each text may consist of several literals.
macro_rules! products {
    ([$($from:literal)+] [$($rest:literal)+] $(; $($argument:expr),+)?) => {
        sqlx::query_as!(
            $crate::store::product::Row,
            "select p.id, p.sku, p.name, p.name_key as \"name_key!\", p.description, p.price, p.image_url,
                    p.attributes as \"attributes: _\", p.status, p.version, p.created_at, p.updated_at,
                    s.available as stock,
                    p.version + s.revision + (select revision from product.tree) as \"revision!\",
                    c.id as \"category_id?\", c.slug as \"category_slug?\", c.name as \"category_name?\"
             from " $(+ $from)+
            + " join product.stock s on s.product_id = p.id
                left join product.category c on c.id = p.category_id "
            $(+ $rest)+
            $($(, $argument)+)?
        )
    };
}
pub(crate) use products;

impl From<Row> for Product {
    fn from(row: Row) -> Self {
        let category = match (row.category_id, row.category_slug, row.category_name) {
            (Some(id), Some(slug), Some(name)) => Some(CategoryRef { id, slug, name }),
            (Some(_) | None, Some(_) | None, Some(_) | None) => None,
        };
        Self {
            id: row.id,
            sku: row.sku,
            name: row.name,
            description: row.description,
            category,
            price: row.price,
            stock: row.stock,
            status: Status::from_stored(&row.status),
            image_url: row.image_url,
            attributes: row.attributes.unwrap_or_log(row.id),
            version: row.version,
            revision: row.revision,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Returns a product.
pub async fn get(conn: &mut PgConnection, id: i64) -> sqlx::Result<Option<Product>> {
    let row = products!(["product.product p"]["where p.id = $1"]; id).fetch_optional(conn).await?;
    Ok(row.map(Product::from))
}

/// Returns those of the products that exist, in no order.
pub async fn get_many(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<Product>> {
    let rows = products!(["product.product p"]["where p.id = any($1)"]; ids).fetch_all(conn).await?;
    Ok(rows.into_iter().map(Product::from).collect())
}

/// Locks products against other changes, in the order of their ids.
pub async fn lock(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "select id from product.product where id = any($1) order by id for no key update",
        ids
    )
    .fetch_all(conn)
    .await?;
    Ok(())
}

/// Inserts a product without stock and returns its id.
pub async fn insert(conn: &mut PgConnection, product: &NewProduct, now: OffsetDateTime) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "with created as (
             insert into product.product (sku, name, description, category_id, price, image_url, attributes,
                                          created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $8)
             returning id
         ),
         noted as (insert into product.change (product_id, at) select id, $8 from created)
         select id from created",
        product.sku.as_str(),
        product.name.as_str(),
        product.description.as_str(),
        product.category_id,
        product.price.get(),
        product.image_url.as_ref().map(crate::product::ImageUrl::as_str),
        Json(&product.attributes) as _,
        now,
    )
    .fetch_one(conn)
    .await
}

/// Writes all fields of a locked product except its category and its stock, as its next version. Without
/// `attributes` the stored ones stay, even if they are invalid and not shown.
pub async fn update(
    conn: &mut PgConnection,
    product: &Product,
    attributes: Option<&Attributes>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "with noted as (insert into product.change (product_id, at) values ($1, $9))
         update product.product
         set sku = $2, name = $3, description = $4, price = $5, image_url = $6,
             attributes = coalesce($7, attributes), status = $8, version = version + 1, updated_at = $9
         where id = $1",
        product.id,
        product.sku,
        product.name,
        product.description,
        product.price,
        product.image_url,
        attributes.map(Json) as _,
        product.status.as_str(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds versions to locked products that differ in their stock alone: to each product the given number. Inserts the audit
/// records of the acts.
pub async fn add_versions(
    conn: &mut PgConnection,
    versions: &[(i64, i64)],
    records: &[Record<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let (ids, counts): (Vec<i64>, Vec<i64>) = versions.iter().copied().unzip();
    let records = Columns::new(records, now);
    sqlx::query!(
        "with noted as (
             insert into product.change (product_id, at) select id, $3 from unnest($1::bigint[]) as c (id)
         ),
         audited as (
             insert into product.audit_record
                 (id, at, actor, actor_name, action, target, before, after, request_id)
             select id, $4, actor, actor_name, action, target, before::jsonb, after::jsonb, request_id
             from unnest($5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
                         $12::text[])
                  as r (id, actor, actor_name, action, target, before, after, request_id)
         )
         update product.product p
         set version = p.version + c.versions, updated_at = $3
         from unnest($1::bigint[], $2::bigint[]) as c (id, versions)
         where p.id = c.id",
        &ids,
        &counts,
        now,
        records.at,
        &records.ids,
        &records.actors as &[&str],
        &records.actor_names as &[Option<&str>],
        &records.actions as &[&str],
        &records.targets as &[&str],
        &records.before as &[Option<&str>],
        &records.after as &[Option<&str>],
        &records.request_ids as &[Option<&str>],
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Sets or clears the category of a locked product.
pub async fn set_category(conn: &mut PgConnection, id: i64, category_id: Option<i64>) -> sqlx::Result<()> {
    sqlx::query!("update product.product set category_id = $2 where id = $1", id, category_id)
        .execute(conn)
        .await?;
    Ok(())
}
