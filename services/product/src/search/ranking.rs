//! Ranking: which documents a query finds, in which order, how many there are, and of what kind.
//!
//! A document is in the first of these tiers that it fits: the SKU as it is written, the SKU, the whole name, a SKU that
//! begins so, all the words in the name, all the words, all but one of them, and so on. Within a tier the newest product
//! comes first, by its id. Nothing of this depends on how documents are spread over segments, so that every replica
//! gives the same order.

use std::collections::BinaryHeap;

use roaring::MultiOps as _;
use tantivy::Term;

use super::{
    Found, Ranking, facets,
    fold::{normalize, squeeze},
    index::{Snapshot, written_sku},
    segment::{Docs, Segment},
    words::{self, Word},
};
use crate::listing::{Filters, Key, Sort};

/// Words that a product may lack beside others that it has; those that lack more are one tier. Words.
const MAX_MISSED: usize = 7;
/// The tiers of products that the query names, and those and the ones of products that have all the words.
const TIERS_BY_QUERY: usize = 4;
const WHOLE_TIERS: usize = 8;
/// The tiers there are at most. Those of products that lack words are two each: some word stands in the name, or none.
pub const TIERS: usize = WHOLE_TIERS + 2 * (MAX_MISSED + 1);
/// The length of a beginning of a SKU. Characters.
const MIN_SKU_PREFIX: usize = 3;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub query: String,
    pub filters: Filters,
    pub ranking: Ranking,
    /// Products.
    pub limit: usize,
    /// The product the page begins behind.
    pub after: Option<(Key, i64)>,
    pub facets: bool,
}

/// Answers a question from one state of the index.
pub fn answer(snapshot: &Snapshot, question: &Question) -> tantivy::Result<Found> {
    let words = words::find(snapshot, &question.query)?;
    let mut results = Vec::with_capacity(snapshot.segments.len());
    for (at, segment) in snapshot.segments.iter().enumerate() {
        let mut result = Candidates::new(snapshot, segment, at, &words, &question.query)?;
        filter(snapshot, segment, &question.filters, &mut result.left)?;
        results.push(result);
    }
    let total = results.iter().map(|result| result.left.len()).sum();
    let facets = question.facets.then(|| {
        let sets = results.iter().map(|result| (result.segment, &result.left));
        facets::count(snapshot, sets)
    });
    // One more than the page shows whether there is another.
    let wanted = question.limit + 1;
    let mut hits = match question.ranking {
        Ranking::Relevance => by_tier(&mut results, question.after.as_ref(), wanted),
        Ranking::By(Sort::Name) => by_name(&results, question.after.as_ref(), wanted)?,
        Ranking::By(sort) => by_number(&results, sort, question.after.as_ref(), wanted),
    };
    let more = hits.len() > question.limit;
    hits.truncate(question.limit);
    Ok(Found { hits, more, total, facets: facets.transpose()? })
}

/// Leaves the documents that the filters let through.
fn filter(snapshot: &Snapshot, segment: &Segment, filters: &Filters, docs: &mut Docs) -> tantivy::Result<()> {
    let fields = snapshot.fields;
    if let Some(in_stock) = filters.in_stock {
        *docs &= segment.term(&Term::from_field_bool(fields.in_stock, in_stock))?;
    }
    if let Some(slug) = &filters.category {
        let mut within = Docs::new();
        for category in snapshot.tree.with_descendants(slug) {
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

/// What a query finds in one segment.
struct Candidates<'a> {
    segment: &'a Segment,
    /// The documents of the tiers of those that have all the words, or are named by the query.
    whole: [Docs; WHOLE_TIERS],
    /// For each word of several, the documents that have it.
    words: Vec<&'a Docs>,
    /// Those that have some word in the name.
    named: Docs,
    /// What lacks up to so many words, from one on; made when it is needed.
    missed: Option<Vec<Docs>>,
    /// What is in no tier yet.
    left: Docs,
}

impl<'a> Candidates<'a> {
    fn new(
        snapshot: &Snapshot,
        segment: &'a Segment,
        at: usize,
        words: &'a [Word],
        query: &str,
    ) -> tantivy::Result<Self> {
        let fields = snapshot.fields;
        let squeezed = squeeze(query);
        let is_long = words.len() != 1 && squeezed.chars().count() >= MIN_SKU_PREFIX;
        let whole = [
            segment.word(fields.sku, &written_sku(query.trim()))?,
            segment.word(fields.sku, &squeezed)?,
            segment.word(fields.title, &normalize(query))?,
            // Of one word it is among the words already.
            if is_long { segment.prefix(fields.sku, &squeezed)? } else { Docs::new() },
            words.iter().map(|word| &word[at].exact).intersection(),
            words.iter().map(|word| &word[at].name).intersection(),
            words.iter().map(|word| &word[at].near).intersection(),
            words.iter().map(|word| &word[at].any).intersection(),
        ];
        // What has all the words has each.
        let named_by_query = whole.iter().take(TIERS_BY_QUERY);
        let left = named_by_query.chain(words.iter().map(|word| &word[at].any)).union();
        let (words, named) = if words.len() > 1 {
            let named = words.iter().map(|word| &word[at].name).union();
            (words.iter().map(|word| &word[at].any).collect(), named)
        } else {
            (Vec::new(), Docs::new())
        };
        Ok(Self { segment, whole, words, named, missed: None, left })
    }

    /// Takes the documents of a tier; to be called for each tier in order.
    fn take(&mut self, tier: usize) -> Docs {
        let docs = if let Some(docs) = self.whole.get(tier) {
            docs & &self.left
        } else {
            let (missed, in_name) = ((tier - WHOLE_TIERS) / 2, (tier - WHOLE_TIERS).is_multiple_of(2));
            let (words, left) = (&self.words, &self.left);
            let sets = self.missed.get_or_insert_with(|| missed_up_to(words, left));
            let mut docs = match sets.get(missed) {
                Some(docs) => docs & left,
                None => left.clone(),
            };
            if in_name {
                docs &= &self.named;
            }
            docs
        };
        self.left -= &docs;
        docs
    }
}

/// Of `docs`, those that lack up to one of the words, up to two, and so on.
fn missed_up_to(words: &[&Docs], docs: &Docs) -> Vec<Docs> {
    let most = MAX_MISSED.min(words.len().saturating_sub(1));
    let mut sets = vec![docs.clone(); most + 1];
    for word in words {
        for missed in (1..=most).rev() {
            let fewer = sets[missed - 1].clone();
            sets[missed] &= *word;
            sets[missed] |= fewer;
        }
        sets[0] &= *word;
    }
    sets.split_off(1)
}

fn by_tier(results: &mut [Candidates<'_>], after: Option<&(Key, i64)>, wanted: usize) -> Vec<(Key, i64)> {
    let (first, below) = match after {
        Some((Key::Number(tier), id)) => (usize::try_from(*tier).unwrap_or_default(), *id),
        Some((Key::Text(_), _)) | None => (0, i64::MAX),
    };
    let mut hits = Vec::new();
    for tier in 0..TIERS {
        if results.iter().all(|result| result.left.is_empty()) {
            break;
        }
        let missing = wanted - hits.len();
        let mut ids = Vec::new();
        for result in &mut *results {
            let docs = result.take(tier);
            if tier >= first {
                let start = if tier == first { result.segment.first_below(below) } else { 0 };
                ids.extend(docs.range(start..).take(missing).map(|doc| result.segment.id(doc)));
            }
        }
        ids.sort_unstable_by(|one, other| other.cmp(one));
        let key = i64::try_from(tier).unwrap_or_default();
        hits.extend(ids.into_iter().take(missing).map(|id| (Key::Number(key), id)));
        if hits.len() == wanted {
            break;
        }
    }
    hits
}

/// The first few of many, in ascending order.
struct First<T> {
    heap: BinaryHeap<T>,
    wanted: usize,
}

impl<T: Ord> First<T> {
    fn new(wanted: usize) -> Self {
        Self { heap: BinaryHeap::with_capacity(wanted + 1), wanted }
    }

    fn offer(&mut self, one: T) {
        if self.heap.len() < self.wanted {
            self.heap.push(one);
        } else if let Some(mut last) = self.heap.peek_mut()
            && one < *last
        {
            *last = one;
        }
    }
}

fn by_number(
    results: &[Candidates<'_>],
    sort: Sort,
    after: Option<&(Key, i64)>,
    wanted: usize,
) -> Vec<(Key, i64)> {
    let newest = sort == Sort::Newest;
    // In ascending order: ids of the newest first are turned round.
    let place = |key: i64, id: i64| if newest { (-key, -id) } else { (key, id) };
    let after = match after {
        Some((Key::Number(key), id)) => {
            Some(if newest { (key.saturating_neg(), id.saturating_neg()) } else { (*key, *id) })
        }
        Some((Key::Text(_), _)) | None => None,
    };
    let mut first = First::new(wanted);
    for result in results {
        let segment = result.segment;
        for doc in &result.left {
            let key = match sort {
                Sort::PriceAsc => segment.price(doc),
                Sort::PriceDesc => -segment.price(doc),
                Sort::Newest | Sort::Name => segment.created_at(doc),
            };
            let place = place(key, segment.id(doc));
            if after.is_none_or(|after| place > after) {
                first.offer(place);
            }
        }
    }
    let places = first.heap.into_sorted_vec().into_iter();
    places.map(|(key, id)| if newest { (Key::Number(-key), -id) } else { (Key::Number(key), id) }).collect()
}

fn by_name(
    results: &[Candidates<'_>],
    after: Option<&(Key, i64)>,
    wanted: usize,
) -> tantivy::Result<Vec<(Key, i64)>> {
    let mut named = Vec::new();
    for result in results {
        let segment = result.segment;
        let after = match after {
            Some((Key::Text(name), id)) => {
                let place = segment.place_of(name)?;
                // Names behind it are behind it with any id.
                Some((place, if segment.name_at(place)? == *name { *id } else { i64::MIN }))
            }
            Some((Key::Number(_), _)) | None => None,
        };
        let mut first = First::new(wanted);
        for doc in &result.left {
            let place = (segment.name_order(doc), segment.id(doc));
            if after.is_none_or(|after| place > after) {
                first.offer(place);
            }
        }
        for (place, id) in first.heap {
            named.push((segment.name_at(place)?, id));
        }
    }
    named.sort_unstable();
    named.truncate(wanted);
    Ok(named.into_iter().map(|(name, id)| (Key::Text(name), id)).collect())
}
