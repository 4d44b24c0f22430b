//! Categories.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::category::{Category, NewCategory};

/// Returns all categories, by slug.
pub async fn fetch_all(conn: &mut PgConnection) -> sqlx::Result<Vec<Category>> {
    sqlx::query_as!(
        Category,
        "select id, slug, name, parent_id from product.category order by slug collate \"C\""
    )
    .fetch_all(conn)
    .await
}

/// Returns up to `limit` categories with slugs behind `after`, by slug.
pub async fn fetch_page(conn: &mut PgConnection, after: &str, limit: i64) -> sqlx::Result<Vec<Category>> {
    sqlx::query_as!(
        Category,
        "select id, slug, name, parent_id from product.category
         where slug collate \"C\" > $1 order by slug collate \"C\" limit $2",
        after,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Returns the ids of a category and its descendants; empty if the slug is unknown.
pub async fn with_descendants(conn: &mut PgConnection, slug: &str) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"with recursive below as (
               select id from product.category where slug = $1
               union
               select c.id from product.category c join below on c.parent_id = below.id
           )
           select id as "id!" from below"#,
        slug,
    )
    .fetch_all(conn)
    .await
}

/// Locks the tree against other changes until the transaction ends. Products can still be assigned to
/// categories.
pub async fn lock_tree(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("lock table product.category in share row exclusive mode").execute(conn).await?;
    Ok(())
}

/// Locks a category against changes until the transaction ends. Returns whether it exists.
pub async fn lock(conn: &mut PgConnection, id: i64) -> sqlx::Result<bool> {
    let id = sqlx::query_scalar!("select id from product.category where id = $1 for share", id)
        .fetch_optional(conn)
        .await?;
    Ok(id.is_some())
}

pub async fn insert(conn: &mut PgConnection, category: &NewCategory) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "insert into product.category (slug, name, parent_id) values ($1, $2, $3) returning id",
        category.slug.as_str(),
        category.name.as_str(),
        category.parent_id,
    )
    .fetch_one(conn)
    .await
}

/// Updates a category.
pub async fn update(conn: &mut PgConnection, category: &Category, now: OffsetDateTime) -> sqlx::Result<()> {
    // The products of the category get a new revision. Separate statements, so that each writer holds its
    // lock before it takes an id of the change log.
    sqlx::query!("update product.tree set revision = revision + 1").execute(&mut *conn).await?;
    // Waits for transactions that assign products to the category, so that those products are logged too.
    sqlx::query!(
        "update product.category
         set slug = $2, name = $3, parent_id = $4
         where id = $1",
        category.id,
        category.slug,
        category.name,
        category.parent_id,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "insert into product.change (product_id, at)
         select id, $2 from product.product where category_id = $1",
        category.id,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes and returns a category; `None` if it does not exist. The foreign keys refuse it while it has products or
/// children.
pub async fn delete(conn: &mut PgConnection, id: i64) -> sqlx::Result<Option<Category>> {
    sqlx::query_as!(
        Category,
        "delete from product.category where id = $1 returning id, slug, name, parent_id",
        id
    )
    .fetch_optional(conn)
    .await
}
