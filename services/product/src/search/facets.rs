//! Facets: counts by category, stock and price over the whole result of a search.

use std::collections::{BTreeMap, HashMap};

use tantivy::Term;

use super::{
    index::Snapshot,
    segment::{Docs, Segment},
};

/// The maximum number of category facets; those with the most products are kept.
const MAX_CATEGORIES: usize = 100;

/// The number of products in a category and its descendants, as the filter `category` would leave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CategoryCount {
    pub slug: String,
    pub name: String,
    pub count: u64,
}

/// The number of products in a price range, both ends inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceCount {
    pub min: i64,
    pub max: i64,
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facets {
    /// The largest first.
    pub categories: Vec<CategoryCount>,
    pub in_stock: u64,
    pub sold_out: u64,
    /// The cheapest first, without empty ranges.
    pub prices: Vec<PriceCount>,
}

/// Counts the hits of all segments.
pub fn count<'a>(
    snapshot: &Snapshot,
    sets: impl Iterator<Item = (&'a Segment, &'a Docs)>,
) -> tantivy::Result<Facets> {
    let (mut facets, mut total) = (Facets::default(), 0);
    let mut categories = HashMap::<i64, u64>::new();
    let mut prices = BTreeMap::<i64, u64>::new();
    for (segment, docs) in sets {
        total += docs.len();
        let in_stock = segment.term(&Term::from_field_bool(snapshot.fields.in_stock, true))?;
        facets.in_stock += docs.intersection_len(&in_stock);
        for doc in docs {
            *prices.entry(range_start(segment.price(doc))).or_default() += 1;
            if let Some(category) = segment.category(doc) {
                *categories.entry(category).or_default() += 1;
            }
        }
    }
    facets.sold_out = total - facets.in_stock;
    facets.prices =
        prices.into_iter().map(|(min, count)| PriceCount { min, max: range_end(min), count }).collect();
    let mut sums = HashMap::<i64, u64>::new();
    for (category, count) in categories {
        for ancestor in snapshot.categories.with_ancestors(category) {
            *sums.entry(ancestor.id).or_default() += count;
        }
    }
    facets.categories = sums
        .into_iter()
        .filter_map(|(id, count)| {
            let category = snapshot.categories.get(id)?;
            Some(CategoryCount { slug: category.slug.clone(), name: category.name.clone(), count })
        })
        .collect();
    facets
        .categories
        .sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.slug.cmp(&other.slug)));
    facets.categories.truncate(MAX_CATEGORIES);
    Ok(facets)
}

/// Returns the start of the price range: 0, 1, 2, 5, 10, 20, 50, … minor units. Ranges are the same for all
/// results, so that counts are comparable.
fn range_start(price: i64) -> i64 {
    let mut power = 1;
    while power <= price / 10 {
        power *= 10;
    }
    match price / power {
        5.. => 5 * power,
        2.. => 2 * power,
        1.. => power,
        _ => 0,
    }
}

/// Returns the end of the price range that starts at `min`.
fn range_end(min: i64) -> i64 {
    let mut power = 1;
    while power <= min / 10 {
        power *= 10;
    }
    match min / power {
        5.. => 10 * power - 1,
        2.. => 5 * power - 1,
        1.. => 2 * power - 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Price;

    #[test]
    fn price_ranges_are_contiguous() {
        let mut price = 0;
        while price <= Price::MAX {
            let (min, max) = (range_start(price), range_end(range_start(price)));
            assert!(min <= price && price <= max, "{price}");
            assert_eq!(range_start(max), min, "{max}");
            assert_eq!(range_start(max + 1), max + 1, "the next one begins behind {max}");
            price = max + 1;
        }
        for (price, min, max) in [(0, 0, 0), (45, 20, 49), (1990, 1000, 1999), (500, 500, 999)] {
            assert_eq!((range_start(price), range_end(min)), (min, max), "{price}");
        }
    }
}
