//! Tests of lists: filters, sort orders, and pages that stay consistent while products are added.

use std::collections::HashSet;

use serde_json::{Value, json};
use shoppee_kit::cursor;
use shoppee_proto::product::v1::{
    CreateProductRequest, ListProductsRequest, ListProductsResponse, Product, ProductSort,
};
use tonic::Status;

use crate::test_shop::{TestShop, reason};

impl TestShop {
    async fn list(&self, request: ListProductsRequest) -> Result<ListProductsResponse, Status> {
        self.products.clone().list_products(request).await.map(tonic::Response::into_inner)
    }

    /// Returns the products of all pages, with `limit` products each.
    async fn pages(&self, request: ListProductsRequest, limit: i32) -> Vec<Product> {
        let (mut items, mut cursor) = (Vec::new(), None);
        loop {
            let page = ListProductsRequest { limit: Some(limit), cursor, ..request.clone() };
            let page = self.list(page).await.expect("a page");
            assert!(page.items.len() <= usize::try_from(limit).expect("small"));
            items.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return items;
            }
        }
    }

    async fn create_named(&self, name: &str, price: i64, stock: i64, category_id: Option<i64>) -> Product {
        let sku = format!("sku-{}", uuid::Uuid::new_v4().simple());
        let request = CreateProductRequest {
            sku,
            name: name.to_owned(),
            price,
            stock,
            category_id,
            ..CreateProductRequest::default()
        };
        self.create(request).await
    }
}

/// The expected sort key of a product.
type Key = fn(&Product) -> (i64, String, i64);
/// A request and the expected filter.
type Filter = (ListProductsRequest, Box<dyn Fn(&Product) -> bool>);

fn by(sort: ProductSort) -> ListProductsRequest {
    ListProductsRequest { sort: sort.into(), ..ListProductsRequest::default() }
}

fn ids(products: &[Product]) -> Vec<i64> {
    products.iter().map(|product| product.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_keep_the_order_of_each_sort() {
    let shop = TestShop::start().await;
    // Includes equal prices and names, and products out of stock.
    let names = ["apple", "Banana", "ábaco", "Zebra", "zebra", "Éclair", "İstanbul", "😀", "_x", "apple"];
    for (at, name) in (0..).zip(names.iter().cycle().take(30)) {
        shop.create_named(name, 100 * (at % 4), at % 3, None).await;
    }
    let all = shop.pages(by(ProductSort::Newest), 100).await;
    assert_eq!(all.len(), 30);
    let orders: [(ProductSort, Key); 5] = [
        (ProductSort::Unspecified, |p| (0, String::new(), -p.id)),
        (ProductSort::Newest, |p| (0, String::new(), -p.id)),
        (ProductSort::PriceAsc, |p| (p.price, String::new(), p.id)),
        (ProductSort::PriceDesc, |p| (-p.price, String::new(), p.id)),
        (ProductSort::Name, |p| (0, p.name.to_lowercase(), p.id)),
    ];
    for (sort, key) in orders {
        let mut expected = all.clone();
        expected.sort_by_key(key);
        for limit in [1, 7, 30, 100] {
            assert_eq!(ids(&shop.pages(by(sort), limit).await), ids(&expected), "{sort:?} by {limit}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_exclude_products_that_do_not_match() {
    let shop = TestShop::start().await;
    let shoes = shop.category("shoes", None).await.id;
    let boots = shop.category("boots", Some(shoes)).await.id;
    let rubber = shop.category("rubber", Some(boots)).await.id;
    let other = shop.category("other", None).await.id;
    let mut created = Vec::new();
    for (at, category) in
        (0..40).zip([Some(shoes), Some(boots), Some(rubber), Some(other), None].iter().cycle())
    {
        created.push(shop.create_named(&format!("thing {at}"), at * 10, at % 2, *category).await);
    }
    shop.archive(created[0].id).await.unwrap();
    let below_shoes = move |p: &Product| p.category.as_ref().is_some_and(|c| c.id != other);
    let base = ListProductsRequest::default;
    let filters: Vec<Filter> = vec![
        (base(), Box::new(|_| true)),
        (ListProductsRequest { category: Some("shoes".into()), ..base() }, Box::new(below_shoes)),
        (
            ListProductsRequest { min_price: Some(100), max_price: Some(200), ..base() },
            Box::new(|p| (100..=200).contains(&p.price)),
        ),
        (ListProductsRequest { in_stock: Some(true), ..base() }, Box::new(|p| p.stock > 0)),
        (ListProductsRequest { in_stock: Some(false), ..base() }, Box::new(|p| p.stock == 0)),
        (
            ListProductsRequest {
                category: Some("shoes".into()),
                min_price: Some(100),
                in_stock: Some(true),
                ..base()
            },
            Box::new(move |p| below_shoes(p) && p.price >= 100 && p.stock > 0),
        ),
        (ListProductsRequest { category: Some("unknown".into()), ..base() }, Box::new(|_| false)),
        (ListProductsRequest { category: Some("\0".into()), ..base() }, Box::new(|_| false)),
        (ListProductsRequest { min_price: Some(i64::MAX), ..base() }, Box::new(|_| false)),
    ];
    for sort in [ProductSort::Newest, ProductSort::PriceAsc, ProductSort::PriceDesc, ProductSort::Name] {
        for (filter, fits) in &filters {
            let request = ListProductsRequest { sort: sort.into(), ..filter.clone() };
            let listed: HashSet<i64> = ids(&shop.pages(request, 7).await).into_iter().collect();
            let expected = created[1..].iter().filter(|p| fits(p)).map(|p| p.id).collect();
            assert_eq!(listed, expected, "{sort:?} {filter:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_skip_nor_repeat_while_products_are_added() {
    let shop = TestShop::start().await;
    for at in 0..20 {
        shop.create_named(&format!("m{at:02}"), 500 + at, 1, None).await;
    }
    for sort in [ProductSort::Newest, ProductSort::PriceAsc, ProductSort::PriceDesc, ProductSort::Name] {
        let before: HashSet<i64> = ids(&shop.pages(by(sort), 100).await).into_iter().collect();
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let page = ListProductsRequest { limit: Some(3), cursor, ..by(sort) };
            let page = shop.list(page).await.unwrap();
            listed.extend(ids(&page.items));
            shop.create_named("a", 1, 1, None).await;
            shop.create_named("z", 9999, 0, None).await;
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
async fn an_invalid_list_request_is_refused() {
    let shop = TestShop::start().await;
    for at in 0..3 {
        shop.create_named(&format!("m{at}"), at, 1, None).await;
    }
    let base = ListProductsRequest::default;
    let first = shop.list(ListProductsRequest { limit: Some(1), ..base() }).await.unwrap();
    let cursor = first.next_cursor;
    let invalid = [
        ListProductsRequest { limit: Some(0), ..base() },
        ListProductsRequest { limit: Some(101), ..base() },
        ListProductsRequest { min_price: Some(-1), ..base() },
        ListProductsRequest { max_price: Some(-1), ..base() },
        ListProductsRequest { min_price: Some(2), max_price: Some(1), ..base() },
        ListProductsRequest { sort: 99, ..base() },
        ListProductsRequest { cursor: Some(String::new()), ..base() },
        ListProductsRequest { cursor: Some("nonsense".into()), ..base() },
        // A cursor of another sort order, and with another filter.
        ListProductsRequest { cursor: cursor.clone(), ..by(ProductSort::Name) },
        ListProductsRequest { cursor: cursor.clone(), in_stock: Some(true), ..base() },
    ];
    for request in invalid {
        assert_eq!(reason(shop.list(request.clone()).await), "INVALID_REQUEST", "{request:?}");
    }
    // A cursor with a manipulated key.
    for (sort, key) in
        [(ProductSort::Name, json!("a\0b")), (ProductSort::Name, json!(7)), (ProductSort::Newest, json!("a"))]
    {
        let request = ListProductsRequest { limit: Some(1), ..by(sort) };
        let cursor = shop.list(request.clone()).await.unwrap().next_cursor.expect("more");
        let mut cursor_json: Value = cursor::decode(&cursor).unwrap();
        cursor_json["key"] = key;
        let cursor = Some(cursor::encode(&cursor_json));
        assert_eq!(reason(shop.list(ListProductsRequest { cursor, ..request }).await), "INVALID_REQUEST");
    }
    for key in [i64::MIN, -300_000_000_000_000_000, i64::MAX] {
        let mut cursor_json: Value = cursor::decode(cursor.as_ref().expect("more")).unwrap();
        cursor_json["key"] = json!(key);
        let cursor = Some(cursor::encode(&cursor_json));
        assert!(shop.list(ListProductsRequest { cursor, ..base() }).await.unwrap().items.is_empty(), "{key}");
    }
    // Another limit belongs to the same list.
    assert_eq!(
        shop.list(ListProductsRequest { cursor, limit: Some(2), ..base() }).await.unwrap().items.len(),
        2
    );
}
