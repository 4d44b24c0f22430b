//! Filters, orders, totals, facets and pages.

use std::collections::HashSet;

use serde_json::{Value, json};
use shoppee_kit::{cursor, testing::eventually};
use shoppee_proto::product::v1::{
    CategoryFacet, CreateProductRequest, PriceFacet, Product, SearchProductsRequest, SearchSort, StockFacet,
};

use super::{of, skus};
use crate::shop::{Shop, reason};

impl Shop {
    /// All pages, each of `limit` products.
    async fn found(&self, request: &SearchProductsRequest, limit: i32) -> Vec<Product> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = SearchProductsRequest { limit: Some(limit), cursor, ..request.clone() };
            let page = self.search(page).await.expect("found");
            found.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return found;
            }
        }
    }
}

/// Thirty balls, of which the first is archived; every third is blue, every fifth in `toys` or in `balls` below it.
async fn balls() -> Shop {
    let shop = Shop::open().await;
    let toys = shop.category("toys", None).await.id;
    let below = shop.category("balls", Some(toys)).await.id;
    for at in 0..30 {
        let request = CreateProductRequest {
            sku: format!("x-{at}"),
            name: if at % 3 == 0 { format!("Blue ball {at}") } else { format!("Red ball {at}") },
            price: at * 10,
            stock: at % 2,
            category_id: (at % 5 == 0).then_some(if at % 10 == 0 { toys } else { below }),
            ..CreateProductRequest::default()
        };
        shop.create(request).await;
    }
    let first = shop.search(SearchProductsRequest { limit: Some(1), ..of("x-0") }).await.expect("found");
    shop.archive(first.items[0].id).await.expect("archived");
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_every_product_once_in_one_order() {
    let shop = balls().await;
    let sorts = [
        SearchSort::Unspecified,
        SearchSort::Relevance,
        SearchSort::Newest,
        SearchSort::PriceAsc,
        SearchSort::PriceDesc,
        SearchSort::Name,
    ];
    for sort in sorts {
        let request = SearchProductsRequest { sort: sort.into(), ..of("red ball") };
        let whole = shop.found(&request, 100).await;
        assert_eq!(whole.len(), 29, "{sort:?}");
        for limit in [1, 4, 29] {
            assert_eq!(shop.found(&request, limit).await, whole, "{sort:?} by {limit}");
        }
        let in_order = whole.is_sorted_by(|one, next| match sort {
            SearchSort::Unspecified | SearchSort::Relevance => {
                let rank = |product: &Product| (product.name.starts_with("Blue"), -product.id);
                rank(one) < rank(next)
            }
            SearchSort::Newest => one.id > next.id,
            SearchSort::PriceAsc => one.price < next.price,
            SearchSort::PriceDesc => one.price > next.price,
            SearchSort::Name => one.name.to_lowercase() < next.name.to_lowercase(),
        });
        assert!(in_order, "{sort:?}");
        let total = shop.search(SearchProductsRequest { limit: Some(1), ..request }).await.unwrap();
        assert_eq!((total.total, total.total_is_exact, total.facets), (29, true, None), "{sort:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_keys_are_ordered_by_id() {
    let shop = Shop::open().await;
    let mut ids = Vec::new();
    for at in 0..12 {
        ids.push(shop.stocked(&format!("same-{at}"), "Same thing", "", None).await.id);
    }
    for sort in [SearchSort::PriceAsc, SearchSort::PriceDesc, SearchSort::Name, SearchSort::Relevance] {
        let request = SearchProductsRequest { sort: sort.into(), ..of("same thing") };
        let mut found: Vec<i64> = shop.found(&request, 5).await.iter().map(|product| product.id).collect();
        if sort == SearchSort::Relevance {
            found.reverse();
        }
        assert_eq!(found, ids, "{sort:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_those_of_lists() {
    let shop = balls().await;
    let base = || of("ball");
    let cases: [(SearchProductsRequest, &dyn Fn(i64) -> bool); 8] = [
        (SearchProductsRequest { category: Some("toys".into()), ..base() }, &|at| at % 5 == 0),
        (SearchProductsRequest { category: Some("balls".into()), ..base() }, &|at| at % 10 == 5),
        (SearchProductsRequest { category: Some("unknown".into()), ..base() }, &|_| false),
        (SearchProductsRequest { category: Some("\0".into()), ..base() }, &|_| false),
        (SearchProductsRequest { in_stock: Some(true), ..base() }, &|at| at % 2 == 1),
        (SearchProductsRequest { in_stock: Some(false), ..base() }, &|at| at % 2 == 0),
        (SearchProductsRequest { min_price: Some(50), max_price: Some(250), ..base() }, &|at| {
            (5..=25).contains(&at)
        }),
        (
            SearchProductsRequest {
                category: Some("toys".into()),
                min_price: Some(50),
                max_price: Some(250),
                in_stock: Some(true),
                ..base()
            },
            &|at| [5, 15, 25].contains(&at),
        ),
    ];
    for (request, fits) in cases {
        let found: HashSet<i64> = shop.found(&request, 7).await.iter().map(|one| one.price / 10).collect();
        let expected: HashSet<i64> = (1..30).filter(|at| fits(*at)).collect();
        let total = shop.search(request.clone()).await.unwrap().total;
        assert_eq!((&found, total), (&expected, i64::try_from(expected.len()).unwrap()), "{request:?}");
    }
    for odd in [
        SearchProductsRequest { min_price: Some(-1), ..base() },
        SearchProductsRequest { min_price: Some(2), max_price: Some(1), ..base() },
        SearchProductsRequest { limit: Some(0), ..base() },
        SearchProductsRequest { limit: Some(101), ..base() },
        SearchProductsRequest { sort: 99, ..base() },
    ] {
        assert_eq!(reason(shop.search(odd.clone()).await), "INVALID_REQUEST", "{odd:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facets_are_counted_over_all_pages() {
    let shop = balls().await;
    let request = SearchProductsRequest { facets: Some(true), limit: Some(2), ..of("ball") };
    let found = shop.search(request.clone()).await.unwrap();
    let facets = found.facets.expect("facets");
    let category = |slug: &str, count| CategoryFacet { slug: slug.to_owned(), name: slug.to_owned(), count };
    assert_eq!(facets.category, [category("toys", 5), category("balls", 3)]);
    assert_eq!(facets.in_stock, Some(StockFacet { r#true: 15, r#false: 14 }));
    let price = |min, max, count| PriceFacet { min, max, count };
    let prices = [(10, 19, 1), (20, 49, 3), (50, 99, 5), (100, 199, 10), (200, 499, 10)];
    assert_eq!(facets.price, prices.map(|(min, max, count)| price(min, max, count)));
    // Each is what its filter leaves.
    for facet in facets.price {
        let filtered = SearchProductsRequest {
            min_price: Some(facet.min),
            max_price: Some(facet.max),
            ..request.clone()
        };
        assert_eq!(shop.search(filtered).await.unwrap().total, facet.count, "{facet:?}");
    }
    let filtered = SearchProductsRequest { category: Some("balls".into()), in_stock: Some(true), ..request };
    let facets = shop.search(filtered).await.unwrap().facets.expect("facets");
    assert_eq!(facets.category, [category("balls", 3), category("toys", 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_skip_nor_repeat_while_products_come_and_change() {
    let shop = balls().await;
    for sort in [SearchSort::Relevance, SearchSort::Newest, SearchSort::PriceAsc, SearchSort::Name] {
        let request = SearchProductsRequest { sort: sort.into(), ..of("ball") };
        let before: HashSet<i64> = shop.found(&request, 100).await.iter().map(|one| one.id).collect();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = SearchProductsRequest { limit: Some(7), cursor, ..request.clone() };
            let page = shop.search(page).await.unwrap();
            // Sold and restocked, each is another document of the index.
            for product in &page.items {
                shop.adjust(product.id, 1).await.expect("restocked");
            }
            shop.stocked(&format!("{sort:?}-{}", seen.len()), "Another ball", "", None).await;
            seen.extend(page.items.iter().map(|one| one.id));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        let unique: HashSet<i64> = seen.iter().copied().collect();
        assert_eq!(unique.len(), seen.len(), "{sort:?} repeats");
        assert!(before.is_subset(&unique), "{sort:?} skips");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_of_one_search() {
    let shop = balls().await;
    for sort in [SearchSort::Relevance, SearchSort::PriceAsc, SearchSort::Name] {
        let request = SearchProductsRequest { limit: Some(2), sort: sort.into(), ..of("ball") };
        let cursor = shop.search(request.clone()).await.unwrap().next_cursor.expect("more");
        let next = SearchProductsRequest { cursor: Some(cursor.clone()), ..request.clone() };
        for other in [
            SearchProductsRequest { q: "red ball".to_owned(), ..next.clone() },
            SearchProductsRequest { sort: SearchSort::Newest.into(), ..next.clone() },
            SearchProductsRequest { in_stock: Some(true), ..next.clone() },
            SearchProductsRequest { cursor: Some(String::new()), ..next.clone() },
            SearchProductsRequest { cursor: Some("nonsense".to_owned()), ..next.clone() },
        ] {
            assert_eq!(reason(shop.search(other.clone()).await), "INVALID_REQUEST", "{other:?}");
        }
        // Somebody has written something else into it.
        let wrong = match sort {
            SearchSort::Name => vec![json!(7), json!("a\0b")],
            SearchSort::PriceAsc => vec![json!("a")],
            SearchSort::Unspecified | SearchSort::Relevance | SearchSort::Newest | SearchSort::PriceDesc => {
                vec![json!("a"), json!(-1), json!(24), json!(i64::MAX)]
            }
        };
        for key in wrong {
            let mut position: Value = cursor::decode(&cursor).unwrap();
            position["key"] = key;
            let odd = SearchProductsRequest { cursor: Some(cursor::encode(&position)), ..request.clone() };
            assert_eq!(reason(shop.search(odd.clone()).await), "INVALID_REQUEST", "{position}");
        }
        for id in [i64::MIN, -1, i64::MAX] {
            let mut position: Value = cursor::decode(&cursor).unwrap();
            position["id"] = json!(id);
            let odd = SearchProductsRequest { cursor: Some(cursor::encode(&position)), ..request.clone() };
            assert!(shop.search(odd).await.is_ok(), "{position}");
        }
        // Another limit, or facets, are the same search.
        let wider = SearchProductsRequest { limit: Some(3), facets: Some(true), ..next };
        assert_eq!(skus(&shop.search(wider).await.unwrap()).len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_common_word_every_product_is_on_some_page() {
    let shop = Shop::open().await;
    shop.load("thing", "'Thing ' || n", "'Common. ' || md5(n::text)", 2_500, 1).await;
    let request = of("common");
    eventually("all are in the index", || async {
        shop.search(request.clone()).await.unwrap().total == 2_500
    })
    .await;
    let found = shop.found(&request, 100).await;
    let unique: HashSet<i64> = found.iter().map(|one| one.id).collect();
    assert_eq!((found.len(), unique.len()), (2_500, 2_500));
    assert!(found.is_sorted_by(|one, next| one.id > next.id));
}
