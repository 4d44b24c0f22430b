//! Pages of the catalogue. Each sort order has its own query and index. `in_stock` leads the index: a list of
//! both kinds merges two scans, and a filter by stock skips one of them. A category with its descendants
//! merges the scans of each. Except for rows outside of a price range, no scan reads more rows than a page
//! has.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::product::{Row, products};
use crate::listing::{Filters, Sort, SortKey};

/// The start of a page.
#[derive(Clone, Debug)]
pub struct PageStart {
    pub key: SortKey,
    pub id: i64,
}

/// Returns up to `limit` products behind `after`, within `categories` if given.
pub async fn fetch_page(
    conn: &mut PgConnection,
    sort: Sort,
    filters: &Filters,
    categories: Option<&[i64]>,
    after: &PageStart,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    let (min, max) = (filters.min_price, filters.max_price);
    let (in_stock, sold_out) = (filters.includes_in_stock(), filters.includes_sold_out());
    // Arguments: $1, $2 the cursor, $3, $4 the prices, $5, $6 in stock and sold out, $7 the limit, $8 the
    // categories.
    macro_rules! page {
        ($key:literal, $after:literal, $order:literal, $merged:literal, $price:literal; $position:expr) => {
            match categories {
                None => {
                    products!(
                        ["(select listed.id from (
                               (select p.id, " $key " as key from product.product p
                                where p.status = 'active' and p.in_stock and $5
                                  and " $after " and " $price " order by " $order " limit $7)
                               union all
                               (select p.id, " $key " as key from product.product p
                                where p.status = 'active' and not p.in_stock and $6
                                  and " $after " and " $price " order by " $order " limit $7)
                           ) listed order by " $merged " limit $7) chosen
                          join product.product p on p.id = chosen.id"]
                        ["order by " $order];
                        $position, after.id, min, max, in_stock, sold_out, limit
                    )
                    .fetch_all(conn)
                    .await
                }
                Some(categories) => {
                    products!(
                        ["(select listed.id from unnest($8::bigint[]) as wanted (id)
                           cross join lateral (
                               (select p.id, " $key " as key from product.product p
                                where p.status = 'active' and p.in_stock and $5
                                  and p.category_id = wanted.id and " $after " and " $price "
                                order by " $order " limit $7)
                               union all
                               (select p.id, " $key " as key from product.product p
                                where p.status = 'active' and not p.in_stock and $6
                                  and p.category_id = wanted.id and " $after " and " $price "
                                order by " $order " limit $7)
                           ) listed order by " $merged " limit $7) chosen
                          join product.product p on p.id = chosen.id"]
                        ["order by " $order];
                        $position, after.id, min, max, in_stock, sold_out, limit, categories
                    )
                    .fetch_all(conn)
                    .await
                }
            }
        };
    }
    match sort {
        Sort::Newest => page!(
            "p.created_at", "(p.created_at, p.id) < ($1, $2)", "p.created_at desc, p.id desc",
            "listed.key desc, listed.id desc", "p.price between $3 and $4"; timestamp(&after.key)
        ),
        Sort::PriceAsc => page!(
            "p.price", "(p.price, p.id) > ($1, $2)", "p.price, p.id",
            "listed.key, listed.id", "p.price between $3 and $4"; number(&after.key)
        ),
        Sort::PriceDesc => page!(
            "- p.price", "(- p.price, p.id) > ($1, $2)", "- p.price, p.id",
            "listed.key, listed.id", "- p.price between - $4::bigint and - $3::bigint"; number(&after.key)
        ),
        Sort::Name => page!(
            "p.name_key", "(p.name_key, p.id) > ($1, $2)", "p.name_key, p.id",
            "listed.key, listed.id", "p.price between $3 and $4"; text(&after.key)
        ),
    }
}

fn number(key: &SortKey) -> i64 {
    match key {
        SortKey::Number(number) => *number,
        SortKey::Text(_) => 0,
    }
}

fn text(key: &SortKey) -> &str {
    match key {
        SortKey::Number(_) => "",
        SortKey::Text(text) => text,
    }
}

/// Returns the time of a cursor, in microseconds since the Unix epoch; not before the epoch.
fn timestamp(key: &SortKey) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(number(key).max(0)) * 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
