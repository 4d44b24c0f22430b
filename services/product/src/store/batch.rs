//! Batch statements over many products.

use std::collections::{BTreeMap, BTreeSet};

use shoppee_kit::audit_log::{Columns, Record};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    batch::{Current, Update},
    product::Status,
};

/// Returns the ids and SKUs of the products that exist.
pub async fn find(conn: &mut PgConnection, ids: &[i64], skus: &[String]) -> sqlx::Result<Vec<(i64, String)>> {
    let rows = sqlx::query!(
        r#"select id as "id!", sku as "sku!" from product.product where id = any($1)
           union
           select id, sku from product.product where sku = any($2)"#,
        ids,
        skus,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.sku)).collect())
}

/// Returns the categories that exist, locked against changes until the transaction ends.
pub async fn categories(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<BTreeSet<i64>> {
    let ids =
        sqlx::query_scalar!("select id from product.category where id = any($1) order by id for share", ids)
            .fetch_all(conn)
            .await?;
    Ok(ids.into_iter().collect())
}

/// Locks products in the order of their ids and returns their state. The stock rows to be changed must be
/// locked before.
pub async fn lock(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<BTreeMap<i64, Current>> {
    let rows = sqlx::query!(
        r#"select p.id, p.sku, p.version, p.name, p.description, p.price, p.category_id, p.status, s.available,
                  p.version + s.revision + (select revision from product.tree) as "revision!"
         from product.product p
         join product.stock s on s.product_id = p.id
         where p.id = any($1)
         order by p.id
         for no key update of p"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    let products = rows.into_iter().map(|row| {
        let current = Current {
            version: row.version,
            revision: row.revision,
            sku: row.sku,
            name: row.name,
            description: row.description,
            price: row.price,
            category_id: row.category_id,
            status: Status::from_stored(&row.status),
            available: row.available,
        };
        (row.id, current)
    });
    Ok(products.collect())
}

/// The update of one product.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: i64,
    pub update: Update,
}

/// Writes locked products, each as its next version, and inserts the audit records of the acts.
pub async fn write(
    conn: &mut PgConnection,
    writes: &[Write],
    records: &[Record<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<i64> = writes.iter().map(|write| write.id).collect();
    let prices: Vec<Option<i64>> = writes.iter().map(|write| write.update.price).collect();
    let statuses: Vec<Option<String>> =
        writes.iter().map(|write| write.update.status.map(|status| status.as_str().to_owned())).collect();
    let records = Columns::new(records, now);
    sqlx::query!(
        "with noted as (
             insert into product.change (product_id, at) select id, $4 from unnest($1::bigint[]) as c (id)
         ),
         audited as (
             insert into product.audit_record
                 (id, at, actor, actor_name, action, target, before, after, request_id)
             select id, $5, actor, actor_name, action, target, before::jsonb, after::jsonb, request_id
             from unnest($6::uuid[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                         $13::text[])
                  as r (id, actor, actor_name, action, target, before, after, request_id)
         )
         update product.product p
         set price = coalesce(c.price, p.price),
             status = coalesce(c.status, p.status),
             version = p.version + 1,
             updated_at = $4
         from unnest($1::bigint[], $2::bigint[], $3::text[]) as c (id, price, status)
         where p.id = c.id",
        &ids,
        &prices as &[Option<i64>],
        &statuses as &[Option<String>],
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
    .execute(&mut *conn)
    .await?;
    let detailed: Vec<&Write> = writes.iter().filter(|write| write.update.changes_details()).collect();
    if detailed.is_empty() { Ok(()) } else { write_details(&mut *conn, &detailed).await }
}

/// Writes names, descriptions and categories. This is a separate statement, because most batches have none.
async fn write_details(conn: &mut PgConnection, writes: &[&Write]) -> sqlx::Result<()> {
    let ids: Vec<i64> = writes.iter().map(|write| write.id).collect();
    let names: Vec<Option<String>> = writes.iter().map(|write| write.update.name.clone()).collect();
    let descriptions: Vec<Option<String>> =
        writes.iter().map(|write| write.update.description.clone()).collect();
    let categories: Vec<Option<i64>> =
        writes.iter().map(|write| write.update.category_id.flatten()).collect();
    let moves: Vec<bool> = writes.iter().map(|write| write.update.category_id.is_some()).collect();
    sqlx::query!(
        "update product.product p
         set name = coalesce(c.name, p.name),
             description = coalesce(c.description, p.description),
             category_id = case when c.moves then c.category_id else p.category_id end
         from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bool[])
              as c (id, name, description, category_id, moves)
         where p.id = c.id",
        &ids,
        &names as &[Option<String>],
        &descriptions as &[Option<String>],
        &categories as &[Option<i64>],
        &moves,
    )
    .execute(conn)
    .await?;
    Ok(())
}
