//! Facets: what kinds of products a search found, counted over its whole result.

use std::collections::{BTreeMap, HashMap};

use tantivy::Term;

use super::{
    index::Snapshot,
    segment::{Docs, Segment},
};

/// Categories that are told, those with the most products.
const MAX_CATEGORIES: usize = 100;

/// The number of products in a category and all below it: what the filter `category` leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CategoryCount {
    pub slug: String,
    pub name: String,
    pub count: u64,
}

/// The number of products of a range of prices, both ends included.
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
    /// The cheapest first, without those that are empty.
    pub prices: Vec<PriceCount>,
}

/// Counts what each segment has found.
pub fn count<'a>(
    snapshot: &Snapshot,
    sets: impl Iterator<Item = (&'a Segment, &'a Docs)>,
) -> tantivy::Result<Facets> {
    let (mut facets, mut all) = (Facets::default(), 0);
    let mut categories = HashMap::<i64, u64>::new();
    let mut prices = BTreeMap::<i64, u64>::new();
    for (segment, docs) in sets {
        all += docs.len();
        let in_stock = segment.term(&Term::from_field_bool(snapshot.fields.in_stock, true))?;
        facets.in_stock += docs.intersection_len(&in_stock);
        for doc in docs {
            *prices.entry(step(segment.price(doc))).or_default() += 1;
            if let Some(category) = segment.category(doc) {
                *categories.entry(category).or_default() += 1;
            }
        }
    }
    facets.sold_out = all - facets.in_stock;
    facets.prices = prices.into_iter().map(|(min, count)| PriceCount { min, max: top(min), count }).collect();
    let mut sums = HashMap::<i64, u64>::new();
    for (category, count) in categories {
        for above in snapshot.tree.with_ancestors(category) {
            *sums.entry(above.id).or_default() += count;
        }
    }
    facets.categories = sums
        .into_iter()
        .filter_map(|(id, count)| {
            let category = snapshot.tree.get(id)?;
            Some(CategoryCount { slug: category.slug.clone(), name: category.name.clone(), count })
        })
        .collect();
    facets
        .categories
        .sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.slug.cmp(&other.slug)));
    facets.categories.truncate(MAX_CATEGORIES);
    Ok(facets)
}

/// The begin of the range of a price: 0, 1, 2, 5, 10, 20, 50, … minor units. The same for every result, so that counts
/// can be compared.
fn step(price: i64) -> i64 {
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

/// The end of the range that begins at `min`.
fn top(min: i64) -> i64 {
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
    fn ranges_of_prices_lie_side_by_side() {
        let mut price = 0;
        while price <= Price::HIGHEST {
            let (min, max) = (step(price), top(step(price)));
            assert!(min <= price && price <= max, "{price}");
            assert_eq!(step(max), min, "{max}");
            assert_eq!(step(max + 1), max + 1, "the next one begins behind {max}");
            price = max + 1;
        }
        for (price, min, max) in [(0, 0, 0), (45, 20, 49), (1990, 1000, 1999), (500, 500, 999)] {
            assert_eq!((step(price), top(min)), (min, max), "{price}");
        }
    }
}
