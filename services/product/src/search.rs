//! Search: the words of a query, completed and corrected, and the products they stand in.
//!
//! A product in which all the words stand comes before one in which some do; among the first, one with all of
//! them in its name comes first, then one with all in name and description. Within such a level PostgreSQL's
//! rank decides.

pub(crate) mod words;

use shoppee_kit::pg::PgPool;
use std::collections::HashMap;

use serde::Serialize;

use crate::{
    catalogue::{Catalogue, categories},
    error::Error,
    listing::{Filters, Key, Page, Position},
    product::Product,
    store,
};
pub use words::Words;

/// Characters of a query.
const LONGEST: usize = 200;

/// What somebody looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Query(String);

impl Query {
    pub fn parse(q: String) -> Result<Self, Error> {
        if !(1..=LONGEST).contains(&q.chars().count()) {
            Err(Error::malformed("q", "must be 1 to 200 characters"))
        } else if q.contains('\0') {
            Err(Error::malformed("q", "must not contain NUL"))
        } else {
            Ok(Self(q))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the last word may go on.
    fn is_open(&self) -> bool {
        self.0.chars().next_back().is_some_and(char::is_alphanumeric)
    }
}

impl Catalogue {
    /// A page of the active products that a query finds, the best first; with `newest`, as they are after what was
    /// written just now. The best thousand or so can be paged through.
    pub async fn search(
        &self,
        query: &Query,
        filters: &Filters,
        limit: i64,
        cursor: Option<&str>,
        newest: bool,
    ) -> Result<Page, Error> {
        let question = ("search", query, filters);
        let after = match cursor {
            None => (i64::MAX, i64::MAX),
            Some(cursor) => match Position::parse(cursor, &question).map_err(Error::Malformed)? {
                Position { key: Key::Number(score), id, .. } => (score, id),
                Position { key: Key::Text(_), .. } => {
                    return Err(Error::malformed("cursor", "is not a cursor of this list"));
                }
            },
        };
        // One more than the page shows whether there is another.
        let look = move |pool: PgPool| async move { look(&pool, query, filters, after, limit + 1).await };
        let mut found = self.replicas.read(newest, look).await?;
        let more = found.len() > usize::try_from(limit).unwrap_or_default();
        if more {
            found.pop();
        }
        let next_cursor = found
            .last()
            .filter(|_| more)
            .map(|(product, score)| Position::new(&question, Key::Number(*score), product.id).cursor());
        Ok(Page { items: found.into_iter().map(|(product, _)| product).collect(), next_cursor })
    }
}

/// Up to so many products behind a score and an id, the best first, each with its score.
async fn look(
    pool: &PgPool,
    query: &Query,
    filters: &Filters,
    after: (i64, i64),
    wanted: i64,
) -> Result<Vec<(Product, i64)>, Error> {
    let mut tx = pool.begin().await?;
    let Some(categories) = categories(&mut tx, filters).await? else {
        return Ok(Vec::new());
    };
    let asked = store::search::words(&mut tx, query.as_str()).await?;
    let Some(words) = Words::choose(asked, query.is_open()) else {
        return Ok(Vec::new());
    };

    store::search::prepare(&mut tx).await?;
    // What is best is looked for first.
    let missing = |found: &[(i64, i64)]| wanted - i64::try_from(found.len()).unwrap_or(wanted);
    let (all, any) = (words.all(), words.any());
    let within = store::search::Within { filters, categories: categories.as_deref(), after };
    let mut found = store::search::names(&mut tx, &all, &within, wanted).await?;
    if missing(&found) > 0 {
        found.extend(store::search::texts(&mut tx, &all, &within, missing(&found)).await?);
    }
    if missing(&found) > 0 && all != any {
        found.extend(store::search::some(&mut tx, &any, &all, &within, missing(&found)).await?);
    }
    let ids: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
    let read = store::product::get_many(&mut tx, &ids).await?;
    tx.commit().await?;
    let mut read: HashMap<i64, Product> = read.into_iter().map(|product| (product.id, product)).collect();
    Ok(found.into_iter().filter_map(|(id, score)| Some((read.remove(&id)?, score))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_short_and_storable() {
        for sound in ["a", "%", "😀", &"ü".repeat(200)] {
            assert!(Query::parse(sound.to_owned()).is_ok(), "{sound}");
        }
        for odd in ["", "a\0b", &"ü".repeat(201)] {
            assert!(Query::parse(odd.to_owned()).is_err(), "{odd}");
        }
    }
}
