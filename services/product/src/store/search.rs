//! Finding products by words.

use sqlx::PgConnection;

use crate::{listing::Filters, search::words::Asked};

/// A score is the level, by where the words stand, and PostgreSQL's rank below it, which is less than 1.
const IN_NAME: i64 = 3_000_000;
const IN_DESCRIPTION: i64 = 2_000_000;
const IN_TEXT: i64 = 1_000_000;
const RANKS: i64 = 999_999;
/// Products that are looked at and ranked for each part of a search. A common word has more; ranking all of
/// them would take longer the larger the shop is. What a better part has found already is left out only then,
/// so that no part looks at more.
const CANDIDATES: i64 = 500;
/// Words that a beginning is completed to; where there are as many, there may be more.
pub const LONGER: u32 = 16;
/// Words that a slip may have meant, before counting letters.
const SIMILAR: i64 = 16;
/// A word longer than this is not corrected, nor completed: it is not among those the catalogue knows. Characters.
const LONGEST_CORRECTED: i32 = 32;
/// Products whose texts one statement takes apart: the longest of them, on a slow machine, stay far below the limit for
/// a statement.
pub const AT_ONCE: u8 = 50;
/// Words of a query that are looked up; of a longer one the rest is left out.
pub const LOOKED_UP: u32 = 16;

/// Takes a query apart as the products' texts were, in its order, and tells what the catalogue knows of each
/// word.
pub async fn words(conn: &mut PgConnection, query: &str) -> sqlx::Result<Vec<Asked>> {
    let rows = sqlx::query!(
        r#"select w.lexeme as "word!",
                  (ts_lexize('pg_catalog.english_stem', w.lexeme))[1] as stem,
                  length(w.lexeme) > $4 or exists (select from product.word k where k.word = w.lexeme)
                      as "known!",
                  exists (
                      select from product.word k
                      where k.word = (ts_lexize('pg_catalog.english_stem', w.lexeme))[1]
                  ) as "stem_known!",
                  array(
                      select k.word from product.word k
                      where k.word >= w.lexeme and k.word < w.lexeme || U&'\+10FFFF'
                      order by length(k.word), k.word
                      limit $2
                  ) as "longer!: Vec<String>",
                  array(
                      select k.word from product.word k
                      where k.word operator(product.%) w.lexeme
                        and length(w.lexeme) between 3 and $4
                        and not exists (select from product.word same where same.word = w.lexeme)
                      order by product.similarity(k.word, w.lexeme) desc, k.word
                      limit $3
                  ) as "similar!: Vec<String>"
           from (
               select lexeme, positions from unnest(to_tsvector('pg_catalog.simple', product.plain($1)))
               order by positions[1]
               limit $5
           ) w
           order by w.positions[1]"#,
        query,
        i64::from(LONGER),
        SIMILAR,
        LONGEST_CORRECTED,
        i64::from(LOOKED_UP),
    )
    .fetch_all(conn)
    .await?;
    let words = rows.into_iter().map(|row| Asked {
        word: row.word,
        stem: row.stem,
        known: row.known,
        stem_known: row.stem_known,
        longer: row.longer,
        similar: row.similar,
    });
    Ok(words.collect())
}

/// What else a product must be, and which score and id a page begins behind.
#[derive(Clone, Copy, Debug)]
pub struct Within<'a> {
    pub filters: &'a Filters,
    pub categories: Option<&'a [i64]>,
    pub after: (i64, i64),
}

/// Lets the searches of a transaction be planned for the words they are about: what is best for a rare one
/// takes ten times as long for one that stands everywhere. And lets them find the same candidates each time, where
/// there are more than are looked at: a scan of a large table would begin where the last one left off.
pub async fn prepare(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "select set_config('plan_cache_mode', 'force_custom_plan', true) as plans,
                set_config('synchronize_seqscans', 'off', true) as scans,
                set_config('max_parallel_workers_per_gather', '0', true) as workers"
    )
    .fetch_one(conn)
    .await?;
    Ok(())
}

/// Products with all the words in their names, the best first, with their scores.
pub async fn names(
    conn: &mut PgConnection,
    all: &str,
    within: &Within<'_>,
    limit: i64,
) -> sqlx::Result<Vec<(i64, i64)>> {
    if within.after.0 < IN_NAME {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"with candidates as (
               select p.id, p.words
               from product.product p
               where p.status = 'active' and ts_filter(p.words, '{a}') @@ $1::text::tsquery
                 and (p.in_stock and $2 or not p.in_stock and $3) and p.price between $4 and $5
                 and ($6::bigint[] is null or p.category_id = any($6))
               limit $10
           ),
           scored as (
               select id,
                      $11::bigint
                      + floor(ts_rank('{0, 0.1, 0.3, 1}', words, $1::text::tsquery) * $12::bigint)::bigint
                          as score
               from candidates
           )
           select id as "id!", score as "score!"
           from scored
           where (score, id) < ($7::bigint, $8::bigint)
           order by score desc, id desc
           limit $9"#,
        all,
        within.filters.wants_in_stock(),
        within.filters.wants_sold_out(),
        within.filters.min_price,
        within.filters.max_price,
        within.categories,
        within.after.0,
        within.after.1,
        limit,
        CANDIDATES,
        IN_NAME,
        RANKS,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.score)).collect())
}

/// Products in which all the words stand, but not all in their names, the best first, with their scores: all
/// below those of [`names`].
pub async fn texts(
    conn: &mut PgConnection,
    all: &str,
    within: &Within<'_>,
    limit: i64,
) -> sqlx::Result<Vec<(i64, i64)>> {
    if within.after.0 < IN_TEXT {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"with candidates as (
               select p.id, p.words
               from product.product p
               where p.status = 'active' and p.words @@ $1::text::tsquery
                 and (p.in_stock and $2 or not p.in_stock and $3) and p.price between $4 and $5
                 and ($6::bigint[] is null or p.category_id = any($6))
               limit $10
           ),
           scored as (
               select id,
                      case when ts_filter(words, '{a,b}') @@ $1::text::tsquery
                           then $11::bigint else $13::bigint end
                      + floor(ts_rank('{0, 0.1, 0.3, 1}', words, $1::text::tsquery) * $12::bigint)::bigint
                          as score
               from candidates
               where not ts_filter(words, '{a}') @@ $1::text::tsquery
           )
           select id as "id!", score as "score!"
           from scored
           where (score, id) < ($7::bigint, $8::bigint)
           order by score desc, id desc
           limit $9"#,
        all,
        within.filters.wants_in_stock(),
        within.filters.wants_sold_out(),
        within.filters.min_price,
        within.filters.max_price,
        within.categories,
        within.after.0,
        within.after.1,
        limit,
        CANDIDATES,
        IN_DESCRIPTION,
        RANKS,
        IN_TEXT,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.score)).collect())
}

/// Products in which any of the words stand, but not all of them, the best first, with their scores: all
/// below those of [`texts`].
pub async fn some(
    conn: &mut PgConnection,
    any: &str,
    all: &str,
    within: &Within<'_>,
    limit: i64,
) -> sqlx::Result<Vec<(i64, i64)>> {
    let rows = sqlx::query!(
        r#"with candidates as (
               (select p.id, p.words from product.product p
                where p.status = 'active' and ts_filter(p.words, '{a}') @@ $1::text::tsquery
                  and (p.in_stock and $2 or not p.in_stock and $3) and p.price between $4 and $5
                  and ($6::bigint[] is null or p.category_id = any($6))
                limit $10)
               union
               (select p.id, p.words from product.product p
                where p.status = 'active' and p.words @@ $1::text::tsquery
                  and (p.in_stock and $2 or not p.in_stock and $3) and p.price between $4 and $5
                  and ($6::bigint[] is null or p.category_id = any($6))
                limit $10)
           ),
           scored as (
               select id,
                      floor(ts_rank('{0, 0.1, 0.3, 1}', words, $1::text::tsquery) * $11::bigint)::bigint
                          as score
               from candidates
               where not words @@ $12::text::tsquery
           )
           select id as "id!", score as "score!"
           from scored
           where (score, id) < ($7::bigint, $8::bigint)
           order by score desc, id desc
           limit $9"#,
        any,
        within.filters.wants_in_stock(),
        within.filters.wants_sold_out(),
        within.filters.min_price,
        within.filters.max_price,
        within.categories,
        within.after.0,
        within.after.1,
        limit,
        CANDIDATES,
        RANKS,
        all,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.score)).collect())
}

/// Adds the words of these products, and their stems, to those the catalogue knows, where they are not read yet. In the
/// order of words: two who add the same ones do not wait for each other in a circle.
pub async fn learn(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"with due as (
               delete from product.words_unread
               where id = any(array(
                   select id from product.words_unread where product_id = any($1) order by id for update
               ))
               returning product_id
           )
           insert into product.word (word)
           select distinct w.lexeme collate "C" as word
           from product.product p
           cross join lateral (
               select product.plain(p.name || ' ' || p.description || ' ' || p.category_name) as text
           ) t
           cross join lateral unnest(
               to_tsvector('pg_catalog.simple', t.text) || to_tsvector('pg_catalog.english', t.text)
           ) w
           where p.id = any($1) and p.id in (select product_id from due)
             and length(w.lexeme) <= $2 and w.lexeme !~ '[0-9]'
           order by word
           on conflict (word) do nothing"#,
        ids,
        LONGEST_CORRECTED,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Some products whose words are not read yet: no more than [`AT_ONCE`].
pub async fn unread(conn: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        "select product_id from product.words_unread order by id limit $1",
        i64::from(AT_ONCE)
    )
    .fetch_all(conn)
    .await
}
