//! Tests of search filters, orders, totals, facets and pages.

use std::collections::HashSet;

use serde_json::{Value, json};
use shoppee_kit::{cursor, testing::eventually};
use shoppee_proto::product::v1::{
    CategoryFacet, CreateProductRequest, PriceFacet, Product, SearchProductsRequest, SearchSort, StockFacet,
};

use super::{query, skus};
use crate::test_shop::{TestShop, reason};

impl TestShop {
    /// Returns the products of all pages, with `limit` products each.
    async fn all_pages(&self, request: &SearchProductsRequest, limit: i32) -> Vec<Product> {
        let (mut products, mut cursor) = (Vec::new(), None);
        loop {
            let page = SearchProductsRequest { limit: Some(limit), cursor, ..request.clone() };
            let page = self.search(page).await.expect("found");
            products.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return products;
            }
        }
    }
}

/// Starts a shop with thirty balls. The first is archived; every third is blue; every fifth is in `toys` or
/// in its child `balls`.
async fn balls() -> TestShop {
    let shop = TestShop::start().await;
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
    let first = shop.search(SearchProductsRequest { limit: Some(1), ..query("x-0") }).await.expect("found");
    shop.archive(first.items[0].id).await.expect("archived");
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_contain_each_product_once_in_order() {
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
        let request = SearchProductsRequest { sort: sort.into(), ..query("red ball") };
        let whole = shop.all_pages(&request, 100).await;
        assert_eq!(whole.len(), 29, "{sort:?}");
        for limit in [1, 4, 29] {
            assert_eq!(shop.all_pages(&request, limit).await, whole, "{sort:?} by {limit}");
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
    let shop = TestShop::start().await;
    let mut ids = Vec::new();
    for at in 0..12 {
        ids.push(shop.create_in_stock(&format!("same-{at}"), "Same thing", "", None).await.id);
    }
    for sort in [SearchSort::PriceAsc, SearchSort::PriceDesc, SearchSort::Name, SearchSort::Relevance] {
        let request = SearchProductsRequest { sort: sort.into(), ..query("same thing") };
        let mut listed: Vec<i64> =
            shop.all_pages(&request, 5).await.iter().map(|product| product.id).collect();
        if sort == SearchSort::Relevance {
            listed.reverse();
        }
        assert_eq!(listed, ids, "{sort:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_equal_those_of_lists() {
    let shop = balls().await;
    let base = || query("ball");
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
        let prices: HashSet<i64> =
            shop.all_pages(&request, 7).await.iter().map(|one| one.price / 10).collect();
        let expected: HashSet<i64> = (1..30).filter(|at| fits(*at)).collect();
        let total = shop.search(request.clone()).await.unwrap().total;
        assert_eq!((&prices, total), (&expected, i64::try_from(expected.len()).unwrap()), "{request:?}");
    }
    for invalid in [
        SearchProductsRequest { min_price: Some(-1), ..base() },
        SearchProductsRequest { min_price: Some(2), max_price: Some(1), ..base() },
        SearchProductsRequest { limit: Some(0), ..base() },
        SearchProductsRequest { limit: Some(101), ..base() },
        SearchProductsRequest { sort: 99, ..base() },
    ] {
        assert_eq!(reason(shop.search(invalid.clone()).await), "INVALID_REQUEST", "{invalid:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facets_are_counted_over_all_pages() {
    let shop = balls().await;
    let request = SearchProductsRequest { facets: Some(true), limit: Some(2), ..query("ball") };
    let page = shop.search(request.clone()).await.unwrap();
    let facets = page.facets.expect("facets");
    let category = |slug: &str, count| CategoryFacet { slug: slug.to_owned(), name: slug.to_owned(), count };
    assert_eq!(facets.category, [category("toys", 5), category("balls", 3)]);
    assert_eq!(facets.in_stock, Some(StockFacet { r#true: 15, r#false: 14 }));
    let price = |min, max, count| PriceFacet { min, max, count };
    let prices = [(10, 19, 1), (20, 49, 3), (50, 99, 5), (100, 199, 10), (200, 499, 10)];
    assert_eq!(facets.price, prices.map(|(min, max, count)| price(min, max, count)));
    // Each count equals the total of its filter.
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
async fn pages_neither_skip_nor_repeat_during_writes() {
    let shop = balls().await;
    for sort in [SearchSort::Relevance, SearchSort::Newest, SearchSort::PriceAsc, SearchSort::Name] {
        let request = SearchProductsRequest { sort: sort.into(), ..query("ball") };
        let before: HashSet<i64> = shop.all_pages(&request, 100).await.iter().map(|one| one.id).collect();
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let page = SearchProductsRequest { limit: Some(7), cursor, ..request.clone() };
            let page = shop.search(page).await.unwrap();
            // After a stock change, each is a new document of the index.
            for product in &page.items {
                shop.adjust(product.id, 1).await.expect("restocked");
            }
            shop.create_in_stock(&format!("{sort:?}-{}", listed.len()), "Another ball", "", None).await;
            listed.extend(page.items.iter().map(|one| one.id));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        let unique: HashSet<i64> = listed.iter().copied().collect();
        assert_eq!(unique.len(), listed.len(), "{sort:?} repeats");
        assert!(before.is_subset(&unique), "{sort:?} skips");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_search_is_refused() {
    let shop = balls().await;
    for sort in [SearchSort::Relevance, SearchSort::PriceAsc, SearchSort::Name] {
        let request = SearchProductsRequest { limit: Some(2), sort: sort.into(), ..query("ball") };
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
        // Manipulated cursors.
        let wrong = match sort {
            SearchSort::Name => vec![json!(7), json!("a\0b")],
            SearchSort::PriceAsc => vec![json!("a")],
            SearchSort::Unspecified | SearchSort::Relevance | SearchSort::Newest | SearchSort::PriceDesc => {
                vec![json!("a"), json!(-1), json!(24), json!(i64::MAX)]
            }
        };
        for key in wrong {
            let mut cursor_json: Value = cursor::decode(&cursor).unwrap();
            cursor_json["key"] = key;
            let manipulated =
                SearchProductsRequest { cursor: Some(cursor::encode(&cursor_json)), ..request.clone() };
            assert_eq!(reason(shop.search(manipulated.clone()).await), "INVALID_REQUEST", "{cursor_json}");
        }
        for id in [i64::MIN, -1, i64::MAX] {
            let mut cursor_json: Value = cursor::decode(&cursor).unwrap();
            cursor_json["id"] = json!(id);
            let manipulated =
                SearchProductsRequest { cursor: Some(cursor::encode(&cursor_json)), ..request.clone() };
            assert!(shop.search(manipulated).await.is_ok(), "{cursor_json}");
        }
        // Another limit, and facets, belong to the same search.
        let wider = SearchProductsRequest { limit: Some(3), facets: Some(true), ..next };
        assert_eq!(skus(&shop.search(wider).await.unwrap()).len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_a_common_word_contain_every_product() {
    let shop = TestShop::start().await;
    shop.load("thing", "'Thing ' || n", "'Common. ' || md5(n::text)", 2_500, 1).await;
    let request = query("common");
    eventually("all are in the index", || async {
        shop.search(request.clone()).await.unwrap().total == 2_500
    })
    .await;
    let products = shop.all_pages(&request, 100).await;
    let unique: HashSet<i64> = products.iter().map(|one| one.id).collect();
    assert_eq!((products.len(), unique.len()), (2_500, 2_500));
    assert!(products.is_sorted_by(|one, next| one.id > next.id));
}
