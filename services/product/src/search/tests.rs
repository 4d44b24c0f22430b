//! Tests of the index against a plain scan of all products, after any history of writes.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use futures_util::FutureExt as _;

use super::{
    analyzer::{Term, index_terms, query_terms},
    categories::CategoryTree,
    index::Writer,
    ranking::execute,
    *,
};
use crate::{category::Category, store::search::IndexEntry};

#[test]
fn a_query_that_is_too_long_or_not_storable_is_refused() {
    for valid in ["a", "%", "😀", &"ü".repeat(200)] {
        assert!(Query::parse(valid.to_owned()).is_ok(), "{valid}");
    }
    for invalid in ["", "a\0b", &"ü".repeat(201)] {
        assert!(Query::parse(invalid.to_owned()).is_err(), "{invalid}");
    }
}

/// A deterministic random number generator: splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap() % bound
    }

    fn words(&mut self, max: usize) -> String {
        const WORDS: [&str; 12] = [
            "red",
            "blue",
            "lamp",
            "lamps",
            "desk",
            "Über",
            "café",
            "红色茶杯",
            "T-Shirt",
            "sneakers",
            "x200",
            "oak",
        ];
        let count = self.below(max) + 1;
        (0..count).map(|_| WORDS[self.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
    }

    fn entry(&mut self, id: i64) -> IndexEntry {
        let name = self.words(4);
        IndexEntry {
            id,
            sku: format!("S-{id}"),
            name_key: name.to_lowercase(),
            name,
            description: self.words(8),
            category_id: [None, Some(1), Some(2), Some(3)][self.below(4)],
            price: i64::try_from(self.below(40)).unwrap(),
            in_stock: self.below(3) > 0,
            created_at: i64::try_from(self.below(1000)).unwrap(),
        }
    }
}

fn categories() -> Arc<CategoryTree> {
    let category =
        |id, slug: &str, parent_id| Category { id, slug: slug.to_owned(), name: slug.to_owned(), parent_id };
    Arc::new(CategoryTree::new(
        vec![category(1, "a", None), category(2, "b", Some(1)), category(3, "lamps", None)],
        0,
    ))
}

fn index_query(query: &str, filters: Filters, ranking: Ranking) -> IndexQuery {
    IndexQuery { text: query.to_owned(), filters, ranking, limit: 1000, after: None, facets: true }
}

fn filters(category: Option<&str>, max_price: Option<i64>, in_stock: Option<bool>) -> Filters {
    Filters::parse(category.map(ToOwned::to_owned), None, max_price, in_stock).unwrap()
}

const RANKINGS: [Ranking; 5] = [
    Ranking::Relevance,
    Ranking::By(Sort::Newest),
    Ranking::By(Sort::PriceAsc),
    Ranking::By(Sort::PriceDesc),
    Ranking::By(Sort::Name),
];

/// Returns an index with a long history, an index of the same products that was built at once, and the
/// products.
fn build_indexes(seed: u64) -> (Snapshot, Snapshot, BTreeMap<i64, IndexEntry>) {
    let (mut dice, mut products) = (Dice(seed), BTreeMap::new());
    let mut grown = Writer::open().unwrap();
    let mut snapshot = grown.commit(categories()).unwrap();
    for _ in 0..60 {
        for _ in 0..dice.below(20) {
            let id = i64::try_from(dice.below(300)).unwrap() + 1;
            if dice.below(4) == 0 {
                assert_eq!(grown.remove(id), products.remove(&id).is_some());
            } else {
                let entry = dice.entry(id);
                grown.upsert(std::slice::from_ref(&entry)).unwrap();
                products.insert(id, entry);
            }
        }
        snapshot = grown.commit(categories()).unwrap();
    }
    let mut built = Writer::open().unwrap();
    let entries: Vec<IndexEntry> = products.values().cloned().collect();
    built.upsert(&entries).unwrap();
    let built = built.commit(categories()).unwrap();
    assert!(snapshot.segments.len() > built.segments.len());
    (snapshot, built, products)
}

#[test]
fn results_do_not_depend_on_the_history_of_the_index() {
    let (grown, built, _) = build_indexes(1);
    let all_filters =
        [filters(None, None, None), filters(Some("a"), Some(30), None), filters(None, None, Some(false))];
    let queries =
        ["lamp", "red lamp", "red blue desk oak", "茶杯", "sneakrs", "s-17", "café über", "x2", "zzz", "a"];
    for query in queries {
        for filters in &all_filters {
            for ranking in RANKINGS {
                let whole = index_query(query, filters.clone(), ranking);
                let (one, other) = (execute(&grown, &whole).unwrap(), execute(&built, &whole).unwrap());
                assert_eq!(one.hits, other.hits, "{whole:?}");
                assert_eq!((one.total, &one.facets), (other.total, &other.facets), "{whole:?}");
                assert_eq!(one.total, u64::try_from(one.hits.len()).unwrap(), "{whole:?}");
                // Pages of seven, alternately from both indexes.
                let (mut hits, mut after) = (Vec::new(), None);
                for snapshot in [&grown, &built].into_iter().cycle() {
                    let page = IndexQuery { limit: 7, after: after.take(), ..whole.clone() };
                    let page = execute(snapshot, &page).unwrap();
                    hits.extend(page.hits);
                    after = hits.last().cloned();
                    if !page.more {
                        break;
                    }
                }
                assert_eq!(hits, one.hits, "{whole:?}");
            }
        }
    }
}

#[test]
fn a_search_finds_all_products_with_a_query_term() {
    let (grown, _, products) = build_indexes(2);
    for query in ["red ", "lamp ", "desk oak ", "茶杯", "cafe ", "tshirt "] {
        let index_query = index_query(query, filters(None, None, None), Ranking::Relevance);
        let ids: BTreeSet<i64> =
            execute(&grown, &index_query).unwrap().hits.iter().map(|(_, id)| *id).collect();
        let words: Vec<String> =
            query_terms(query).into_iter().map(|(Term::Word(text) | Term::Ngram(text))| text).collect();
        let has = |entry: &&IndexEntry| {
            let mut terms = index_terms(&entry.name);
            terms.extend(index_terms(&entry.description));
            words.iter().any(|word| terms.contains(word))
        };
        let expected: BTreeSet<i64> = products.values().filter(has).map(|entry| entry.id).collect();
        assert_eq!(ids, expected, "{query}");
    }
}

#[test]
fn an_upsert_writes_only_changed_entries() {
    let (mut writer, mut dice) = (Writer::open().unwrap(), Dice(3));
    let mut entries: Vec<IndexEntry> = (1..=10).map(|id| dice.entry(id)).collect();
    assert_eq!(writer.upsert(&entries).unwrap(), 10);
    assert_eq!(writer.upsert(&entries).unwrap(), 0);
    entries[3].in_stock = !entries[3].in_stock;
    assert_eq!(writer.upsert(&entries).unwrap(), 1);
    assert_eq!((writer.len(), writer.ids_in_range(3, 6)), (10, vec![4, 5, 6]));
    assert!(writer.remove(4) && !writer.remove(4));
    assert_eq!(writer.commit(categories()).unwrap().len(), 9);
}

#[tokio::test]
async fn a_repeated_query_returns_the_cached_result_until_the_index_changes() {
    let search = Search::new();
    let (mut writer, mut dice) = (Writer::open().unwrap(), Dice(5));
    let lamp = || search.execute(index_query("lamp", filters(None, None, None), Ranking::Relevance));
    let entry = |id, dice: &mut Dice| IndexEntry { name: "Lamp".to_owned(), ..dice.entry(id) };
    writer.upsert(&[entry(1, &mut dice)]).unwrap();
    search.0.snapshot.store(Some(Arc::new(writer.commit(categories()).unwrap())));
    let (first, second) = (lamp().await.unwrap(), lamp().await.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    writer.upsert(&[entry(2, &mut dice)]).unwrap();
    search.0.snapshot.store(Some(Arc::new(writer.commit(categories()).unwrap())));
    assert_eq!((first.total, lamp().await.unwrap().total), (1, 2));
    // After a failure the indexer begins again with a new writer.
    let mut rebuilt = Writer::open().unwrap();
    rebuilt.upsert(&[3, 4, 5].map(|id| entry(id, &mut dice))).unwrap();
    search.0.snapshot.store(Some(Arc::new(rebuilt.commit(categories()).unwrap())));
    assert_eq!(lamp().await.unwrap().total, 3);
}

#[tokio::test]
async fn a_small_search_runs_in_the_task_of_its_caller() {
    let search = Search::new();
    search.0.snapshot.store(Some(Arc::new(build_indexes(4).0)));
    let running = search.0.running_permits.clone().acquire_many_owned(2).await.unwrap();
    let search_for =
        |query: &str| search.execute(index_query(query, filters(None, None, None), Ranking::Relevance));
    assert!(search_for("lamp").now_or_never().unwrap().unwrap().total > 0);
    assert!(
        search_for(&"lamp ".repeat(9)).now_or_never().is_none(),
        "a long query waits for a blocking thread"
    );
    drop(running);
    assert!(search_for(&"lamp ".repeat(9)).await.unwrap().total > 0);
}

#[tokio::test]
async fn searches_are_refused_before_the_index_is_built_and_when_the_queue_is_full() {
    let search = Search::new();
    // Queries of this length run on a blocking thread, and no query repeats an earlier one.
    let number = Cell::new(0);
    let lamp = || {
        number.set(number.get() + 1);
        index_query(
            &format!("{}{}", "lamp ".repeat(9), number.get()),
            filters(None, None, None),
            Ranking::Relevance,
        )
    };
    assert_eq!(search.execute(lamp()).await.unwrap_err(), Error::Unavailable);
    search.0.snapshot.store(Some(Arc::new(build_indexes(4).0)));
    assert!(search.execute(lamp()).await.unwrap().total > 0);
    // Two searches run; the others wait for their permits.
    let running = search.0.running_permits.clone().acquire_many_owned(2).await.unwrap();
    let mut waiting: Vec<_> = (0..MAX_PENDING_SEARCHES)
        .map(|_| {
            let (search, query) = (search.clone(), lamp());
            tokio::spawn(async move { search.execute(query).await })
        })
        .collect();
    while search.0.pending_permits.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(search.execute(lamp()).await.unwrap_err(), Error::Unavailable);
    drop(running);
    for answer in waiting.drain(..) {
        assert!(answer.await.unwrap().is_ok());
    }
    assert!(search.execute(lamp()).await.is_ok());
}
