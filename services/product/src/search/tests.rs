//! The index against what a plain look at all products finds, whatever happened to it before.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use futures_util::FutureExt as _;

use super::{
    fold::{Term, index_terms, query_terms},
    index::Writer,
    ranking::answer,
    tree::Tree,
    *,
};
use crate::category::Category;

#[test]
fn a_query_is_short_and_storable() {
    for valid in ["a", "%", "😀", &"ü".repeat(200)] {
        assert!(Query::parse(valid.to_owned()).is_ok(), "{valid}");
    }
    for invalid in ["", "a\0b", &"ü".repeat(201)] {
        assert!(Query::parse(invalid.to_owned()).is_err(), "{invalid}");
    }
}

/// Numbers that are the same in every run: splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap() % bound
    }

    fn words(&mut self, most: usize) -> String {
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
        let count = self.below(most) + 1;
        (0..count).map(|_| WORDS[self.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
    }

    fn entry(&mut self, id: i64) -> Entry {
        let name = self.words(4);
        Entry {
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

fn tree() -> Arc<Tree> {
    let category =
        |id, slug: &str, parent_id| Category { id, slug: slug.to_owned(), name: slug.to_owned(), parent_id };
    Arc::new(Tree::new(
        vec![category(1, "a", None), category(2, "b", Some(1)), category(3, "lamps", None)],
        0,
    ))
}

fn question(query: &str, filters: Filters, ranking: Ranking) -> Question {
    Question { query: query.to_owned(), filters, ranking, limit: 1000, after: None, facets: true }
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

/// An index with a long history, one of the same products that was built at once, and the products.
fn grown(seed: u64) -> (Snapshot, Snapshot, BTreeMap<i64, Entry>) {
    let (mut dice, mut products) = (Dice(seed), BTreeMap::new());
    let mut grown = Writer::open().unwrap();
    let mut snapshot = grown.commit(tree()).unwrap();
    for _ in 0..60 {
        for _ in 0..dice.below(20) {
            let id = i64::try_from(dice.below(300)).unwrap() + 1;
            if dice.below(4) == 0 {
                assert_eq!(grown.remove(id), products.remove(&id).is_some());
            } else {
                let entry = dice.entry(id);
                grown.put(std::slice::from_ref(&entry)).unwrap();
                products.insert(id, entry);
            }
        }
        snapshot = grown.commit(tree()).unwrap();
    }
    let mut built = Writer::open().unwrap();
    let entries: Vec<Entry> = products.values().cloned().collect();
    built.put(&entries).unwrap();
    let built = built.commit(tree()).unwrap();
    assert!(snapshot.segments.len() > built.segments.len());
    (snapshot, built, products)
}

#[test]
fn the_order_does_not_depend_on_the_history_of_an_index() {
    let (grown, built, _) = grown(1);
    let all_filters =
        [filters(None, None, None), filters(Some("a"), Some(30), None), filters(None, None, Some(false))];
    let queries =
        ["lamp", "red lamp", "red blue desk oak", "茶杯", "sneakrs", "s-17", "café über", "x2", "zzz", "a"];
    for query in queries {
        for filters in &all_filters {
            for ranking in RANKINGS {
                let whole = question(query, filters.clone(), ranking);
                let (one, other) = (answer(&grown, &whole).unwrap(), answer(&built, &whole).unwrap());
                assert_eq!(one.hits, other.hits, "{whole:?}");
                assert_eq!((one.total, &one.facets), (other.total, &other.facets), "{whole:?}");
                assert_eq!(one.total, u64::try_from(one.hits.len()).unwrap(), "{whole:?}");
                // By pages of seven, from either.
                let (mut hits, mut after) = (Vec::new(), None);
                for snapshot in [&grown, &built].into_iter().cycle() {
                    let page = Question { limit: 7, after: after.take(), ..whole.clone() };
                    let page = answer(snapshot, &page).unwrap();
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
fn words_that_products_have_are_found_in_all_of_them() {
    let (grown, _, products) = grown(2);
    for query in ["red ", "lamp ", "desk oak ", "茶杯", "cafe ", "tshirt "] {
        let question = question(query, filters(None, None, None), Ranking::Relevance);
        let found: BTreeSet<i64> =
            answer(&grown, &question).unwrap().hits.iter().map(|(_, id)| *id).collect();
        let words: Vec<String> =
            query_terms(query).into_iter().map(|(Term::Word(text) | Term::Gram(text))| text).collect();
        let has = |entry: &&Entry| {
            let mut terms = index_terms(&entry.name);
            terms.extend(index_terms(&entry.description));
            words.iter().any(|word| terms.contains(word))
        };
        let expected: BTreeSet<i64> = products.values().filter(has).map(|entry| entry.id).collect();
        assert_eq!(found, expected, "{query}");
    }
}

#[test]
fn only_what_differs_is_written() {
    let (mut writer, mut dice) = (Writer::open().unwrap(), Dice(3));
    let mut entries: Vec<Entry> = (1..=10).map(|id| dice.entry(id)).collect();
    assert_eq!(writer.put(&entries).unwrap(), 10);
    assert_eq!(writer.put(&entries).unwrap(), 0);
    entries[3].in_stock = !entries[3].in_stock;
    assert_eq!(writer.put(&entries).unwrap(), 1);
    assert_eq!((writer.len(), writer.ids(3, 6)), (10, vec![4, 5, 6]));
    assert!(writer.remove(4) && !writer.remove(4));
    assert_eq!(writer.commit(tree()).unwrap().len(), 9);
}

#[tokio::test]
async fn a_repeated_question_is_answered_from_its_result_until_the_index_changes() {
    let search = Search::unbuilt();
    let (mut writer, mut dice) = (Writer::open().unwrap(), Dice(5));
    let lamp = || search.answer(question("lamp", filters(None, None, None), Ranking::Relevance));
    let entry = |id, dice: &mut Dice| Entry { name: "Lamp".to_owned(), ..dice.entry(id) };
    writer.put(&[entry(1, &mut dice)]).unwrap();
    search.0.snapshot.store(Some(Arc::new(writer.commit(tree()).unwrap())));
    let (first, second) = (lamp().await.unwrap(), lamp().await.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    writer.put(&[entry(2, &mut dice)]).unwrap();
    search.0.snapshot.store(Some(Arc::new(writer.commit(tree()).unwrap())));
    assert_eq!((first.total, lamp().await.unwrap().total), (1, 2));
}

#[tokio::test]
async fn a_small_search_runs_in_the_task_of_its_caller() {
    let search = Search::unbuilt();
    search.0.snapshot.store(Some(Arc::new(grown(4).0)));
    let running = search.0.running.clone().acquire_many_owned(2).await.unwrap();
    let answer = |query: &str| search.answer(question(query, filters(None, None, None), Ranking::Relevance));
    assert!(answer("lamp").now_or_never().unwrap().unwrap().total > 0);
    assert!(answer(&"lamp ".repeat(9)).now_or_never().is_none(), "a long query waits for a blocking thread");
    drop(running);
    assert!(answer(&"lamp ".repeat(9)).await.unwrap().total > 0);
}

#[tokio::test]
async fn searches_are_refused_before_the_index_is_built_and_where_too_many_wait() {
    let search = Search::unbuilt();
    // So long a query runs on a blocking thread, and none is the repeat of another.
    let number = Cell::new(0);
    let lamp = || {
        number.set(number.get() + 1);
        question(
            &format!("{}{}", "lamp ".repeat(9), number.get()),
            filters(None, None, None),
            Ranking::Relevance,
        )
    };
    assert_eq!(search.answer(lamp()).await.unwrap_err(), Error::Unavailable);
    search.0.snapshot.store(Some(Arc::new(grown(4).0)));
    assert!(search.answer(lamp()).await.unwrap().total > 0);
    // Two run, the others wait for them.
    let running = search.0.running.clone().acquire_many_owned(2).await.unwrap();
    let mut waiting: Vec<_> = (0..MAX_SEARCHES)
        .map(|_| {
            let (search, question) = (search.clone(), lamp());
            tokio::spawn(async move { search.answer(question).await })
        })
        .collect();
    while search.0.waiting.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(search.answer(lamp()).await.unwrap_err(), Error::Unavailable);
    drop(running);
    for answer in waiting.drain(..) {
        assert!(answer.await.unwrap().is_ok());
    }
    assert!(search.answer(lamp()).await.is_ok());
}
