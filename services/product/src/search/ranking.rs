//! Ranking: executes a query on a snapshot and returns ordered hits, their total and facets.
//!
//! A document belongs to the first matching tier: exact SKU, SKU without separators, full name, SKU prefix,
//! all terms in the name, all terms, all but one, and so on. Within a tier products are ordered by descending
//! id, the newest first. The order does not depend on the segments, so every replica returns the same order.

use std::collections::BinaryHeap;

use roaring::MultiOps as _;
use tantivy::Term;

use super::{
    IndexResult, Ranking,
    analyzer::{normalize, strip_separators},
    facets,
    index::{Snapshot, exact_sku_term},
    query::{self, TermMatches},
    segment::{Docs, Segment},
};
use crate::listing::{Filters, Sort, SortKey};

/// The maximum number of missing terms that is ranked; documents that lack more share one tier.
const MAX_MISSING_TERMS: usize = 7;
/// The tiers of products that the query identifies, and the number of those plus the tiers of full matches.
const IDENTITY_TIERS: usize = 4;
const FULL_MATCH_TIERS: usize = 8;
/// The number of tiers. Partial matches have two tiers per number of missing terms: with a term in the name,
/// or without.
pub const TIER_COUNT: usize = FULL_MATCH_TIERS + 2 * (MAX_MISSING_TERMS + 1);
/// The minimum length of a SKU prefix. Characters.
const MIN_SKU_PREFIX_LEN: usize = 3;

/// A query as the index executes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexQuery {
    pub text: String,
    pub filters: Filters,
    pub ranking: Ranking,
    /// The page size. Products.
    pub limit: usize,
    /// The product behind which the page starts.
    pub after: Option<(SortKey, i64)>,
    pub facets: bool,
}

/// Executes a query on a snapshot.
pub fn execute(snapshot: &Snapshot, query: &IndexQuery) -> tantivy::Result<IndexResult> {
    let terms = query::resolve(snapshot, &query.text)?;
    let mut candidates = Vec::with_capacity(snapshot.segments.len());
    for (at, segment) in snapshot.segments.iter().enumerate() {
        let mut candidate = Candidates::new(snapshot, segment, at, &terms, &query.text)?;
        filter(snapshot, segment, &query.filters, &mut candidate.remaining)?;
        candidates.push(candidate);
    }
    let total = candidates.iter().map(|candidate| candidate.remaining.len()).sum();
    let facets = query.facets.then(|| {
        let sets = candidates.iter().map(|candidate| (candidate.segment, &candidate.remaining));
        facets::count(snapshot, sets)
    });
    // One more than the page, to detect whether there is a next page.
    let limit = query.limit + 1;
    let mut hits = match query.ranking {
        Ranking::Relevance => top_by_tier(&mut candidates, query.after.as_ref(), limit),
        Ranking::By(Sort::Name) => top_by_name(&candidates, query.after.as_ref(), limit)?,
        Ranking::By(sort) => top_by_number(&candidates, sort, query.after.as_ref(), limit),
    };
    let more = hits.len() > query.limit;
    hits.truncate(query.limit);
    Ok(IndexResult { hits, more, total, facets: facets.transpose()? })
}

/// Retains the documents that pass the filters.
fn filter(snapshot: &Snapshot, segment: &Segment, filters: &Filters, docs: &mut Docs) -> tantivy::Result<()> {
    let fields = snapshot.fields;
    if let Some(in_stock) = filters.in_stock {
        *docs &= segment.term(&Term::from_field_bool(fields.in_stock, in_stock))?;
    }
    if let Some(slug) = &filters.category {
        let mut within = Docs::new();
        for category in snapshot.categories.with_descendants(slug) {
            within |= segment.term(&Term::from_field_i64(fields.category, category))?;
        }
        *docs &= within;
    }
    if filters.min_price > 0 || filters.max_price < i64::MAX {
        let prices = filters.min_price..=filters.max_price;
        *docs = docs.iter().filter(|doc| prices.contains(&segment.price(*doc))).collect();
    }
    Ok(())
}

/// The candidates of a query in one segment.
struct Candidates<'a> {
    segment: &'a Segment,
    /// The documents of the identity tiers and the full-match tiers.
    full: [Docs; FULL_MATCH_TIERS],
    /// The documents of each term, if there are several terms.
    terms: Vec<&'a Docs>,
    /// The documents with at least one term in the name.
    named: Docs,
    /// The documents that lack up to 1, 2, … terms; computed on demand.
    missing: Option<Vec<Docs>>,
    /// The documents that are not in a tier yet.
    remaining: Docs,
}

impl<'a> Candidates<'a> {
    fn new(
        snapshot: &Snapshot,
        segment: &'a Segment,
        at: usize,
        terms: &'a [TermMatches],
        query: &str,
    ) -> tantivy::Result<Self> {
        let fields = snapshot.fields;
        let squeezed = strip_separators(query);
        let is_long = terms.len() != 1 && squeezed.chars().count() >= MIN_SKU_PREFIX_LEN;
        let full = [
            segment.word(fields.sku, &exact_sku_term(query.trim()))?,
            segment.word(fields.sku, &squeezed)?,
            segment.word(fields.title, &normalize(query))?,
            // With a single term the prefix is already a match of that term.
            if is_long { segment.prefix(fields.sku, &squeezed)? } else { Docs::new() },
            terms.iter().map(|term| &term[at].exact).intersection(),
            terms.iter().map(|term| &term[at].name).intersection(),
            terms.iter().map(|term| &term[at].text).intersection(),
            terms.iter().map(|term| &term[at].any).intersection(),
        ];
        // A full match also matches each term.
        let identified = full.iter().take(IDENTITY_TIERS);
        let remaining = identified.chain(terms.iter().map(|term| &term[at].any)).union();
        let (terms, named) = if terms.len() > 1 {
            let named = terms.iter().map(|term| &term[at].name).union();
            (terms.iter().map(|term| &term[at].any).collect(), named)
        } else {
            (Vec::new(), Docs::new())
        };
        Ok(Self { segment, full, terms, named, missing: None, remaining })
    }

    /// Takes the documents of a tier. Must be called for each tier in order.
    fn take(&mut self, tier: usize) -> Docs {
        let docs = if let Some(docs) = self.full.get(tier) {
            docs & &self.remaining
        } else {
            let (missing, in_name) =
                ((tier - FULL_MATCH_TIERS) / 2, (tier - FULL_MATCH_TIERS).is_multiple_of(2));
            let (terms, remaining) = (&self.terms, &self.remaining);
            let sets = self.missing.get_or_insert_with(|| missing_up_to(terms, remaining));
            let mut docs = match sets.get(missing) {
                Some(docs) => docs & remaining,
                None => remaining.clone(),
            };
            if in_name {
                docs &= &self.named;
            }
            docs
        };
        self.remaining -= &docs;
        docs
    }
}

/// Returns the documents that lack up to 1, 2, … of the terms.
fn missing_up_to(terms: &[&Docs], docs: &Docs) -> Vec<Docs> {
    let max_missing = MAX_MISSING_TERMS.min(terms.len().saturating_sub(1));
    let mut sets = vec![docs.clone(); max_missing + 1];
    for term in terms {
        for missing in (1..=max_missing).rev() {
            let fewer = sets[missing - 1].clone();
            sets[missing] &= *term;
            sets[missing] |= fewer;
        }
        sets[0] &= *term;
    }
    sets.split_off(1)
}

fn top_by_tier(
    candidates: &mut [Candidates<'_>],
    after: Option<&(SortKey, i64)>,
    limit: usize,
) -> Vec<(SortKey, i64)> {
    let (first, below) = match after {
        Some((SortKey::Number(tier), id)) => (usize::try_from(*tier).unwrap_or_default(), *id),
        Some((SortKey::Text(_), _)) | None => (0, i64::MAX),
    };
    let mut hits = Vec::new();
    for tier in 0..TIER_COUNT {
        if candidates.iter().all(|candidate| candidate.remaining.is_empty()) {
            break;
        }
        let remaining = limit - hits.len();
        let mut ids = Vec::new();
        for candidate in &mut *candidates {
            let docs = candidate.take(tier);
            if tier >= first {
                let start = if tier == first { candidate.segment.first_below(below) } else { 0 };
                ids.extend(docs.range(start..).take(remaining).map(|doc| candidate.segment.id(doc)));
            }
        }
        ids.sort_unstable_by(|one, other| other.cmp(one));
        let key = i64::try_from(tier).unwrap_or_default();
        hits.extend(ids.into_iter().take(remaining).map(|id| (SortKey::Number(key), id)));
        if hits.len() == limit {
            break;
        }
    }
    hits
}

/// A bounded heap of the N smallest values.
struct TopN<T> {
    heap: BinaryHeap<T>,
    limit: usize,
}

impl<T: Ord> TopN<T> {
    fn new(limit: usize) -> Self {
        Self { heap: BinaryHeap::with_capacity(limit + 1), limit }
    }

    fn push(&mut self, value: T) {
        if self.heap.len() < self.limit {
            self.heap.push(value);
        } else if let Some(mut last) = self.heap.peek_mut()
            && value < *last
        {
            *last = value;
        }
    }
}

fn top_by_number(
    candidates: &[Candidates<'_>],
    sort: Sort,
    after: Option<&(SortKey, i64)>,
    limit: usize,
) -> Vec<(SortKey, i64)> {
    let newest = sort == Sort::Newest;
    // Keys of the newest-first order are negated, so that all orders are ascending.
    let position = |key: i64, id: i64| if newest { (-key, -id) } else { (key, id) };
    let after = match after {
        Some((SortKey::Number(key), id)) => {
            Some(if newest { (key.saturating_neg(), id.saturating_neg()) } else { (*key, *id) })
        }
        Some((SortKey::Text(_), _)) | None => None,
    };
    let mut top = TopN::new(limit);
    for candidate in candidates {
        let segment = candidate.segment;
        for doc in &candidate.remaining {
            let key = match sort {
                Sort::PriceAsc => segment.price(doc),
                Sort::PriceDesc => -segment.price(doc),
                Sort::Newest | Sort::Name => segment.created_at(doc),
            };
            let position = position(key, segment.id(doc));
            if after.is_none_or(|after| position > after) {
                top.push(position);
            }
        }
    }
    let positions = top.heap.into_sorted_vec().into_iter();
    positions
        .map(|(key, id)| if newest { (SortKey::Number(-key), -id) } else { (SortKey::Number(key), id) })
        .collect()
}

fn top_by_name(
    candidates: &[Candidates<'_>],
    after: Option<&(SortKey, i64)>,
    limit: usize,
) -> tantivy::Result<Vec<(SortKey, i64)>> {
    let mut named = Vec::new();
    for candidate in candidates {
        let segment = candidate.segment;
        let after = match after {
            Some((SortKey::Text(name), id)) => {
                let position = segment.ordinal_of(name)?;
                // Names with a higher ordinal come later with any id.
                Some((position, if segment.name_at(position)? == *name { *id } else { i64::MIN }))
            }
            Some((SortKey::Number(_), _)) | None => None,
        };
        let mut top = TopN::new(limit);
        for doc in &candidate.remaining {
            let position = (segment.name_ordinal(doc), segment.id(doc));
            if after.is_none_or(|after| position > after) {
                top.push(position);
            }
        }
        for (position, id) in top.heap {
            named.push((segment.name_at(position)?, id));
        }
    }
    named.sort_unstable();
    named.truncate(limit);
    Ok(named.into_iter().map(|(name, id)| (SortKey::Text(name), id)).collect())
}
