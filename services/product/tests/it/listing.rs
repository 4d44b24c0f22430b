//! Lists: filters, sorts, and pages that stay together while the catalogue grows.

use std::collections::HashSet;

use serde_json::{Value, json};
use shoppee_kit::cursor;
use shoppee_proto::product::v1::{
    CreateProductRequest, ListProductsRequest, ListProductsResponse, Product, ProductSort,
};
use tonic::Status;

use crate::shop::{Shop, reason};

impl Shop {
    async fn list(&self, request: ListProductsRequest) -> Result<ListProductsResponse, Status> {
        self.products.clone().list_products(request).await.map(tonic::Response::into_inner)
    }

    /// All pages of a list, `limit` products each.
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

    async fn named(&self, name: &str, price: i64, stock: i64, category_id: Option<i64>) -> Product {
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

/// What a sort goes by.
type Key = fn(&Product) -> (i64, String, i64);
/// A question, and which products it is about.
type Filter = (ListProductsRequest, Box<dyn Fn(&Product) -> bool>);

fn by(sort: ProductSort) -> ListProductsRequest {
    ListProductsRequest { sort: sort.into(), ..ListProductsRequest::default() }
}

fn ids(products: &[Product]) -> Vec<i64> {
    products.iter().map(|product| product.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sort_is_its_order_page_by_page() {
    let shop = Shop::open().await;
    // Equal prices and names among them; some out of stock, which are merged in.
    let names = ["apple", "Banana", "ábaco", "Zebra", "zebra", "Éclair", "İstanbul", "😀", "_x", "apple"];
    for (at, name) in (0..).zip(names.iter().cycle().take(30)) {
        shop.named(name, 100 * (at % 4), at % 3, None).await;
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
async fn filters_leave_out_what_does_not_fit() {
    let shop = Shop::open().await;
    let shoes = shop.category("shoes", None).await.id;
    let boots = shop.category("boots", Some(shoes)).await.id;
    let rubber = shop.category("rubber", Some(boots)).await.id;
    let other = shop.category("other", None).await.id;
    let mut made = Vec::new();
    for (at, category) in
        (0..40).zip([Some(shoes), Some(boots), Some(rubber), Some(other), None].iter().cycle())
    {
        made.push(shop.named(&format!("thing {at}"), at * 10, at % 2, *category).await);
    }
    shop.archive(made[0].id).await.unwrap();
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
            let found: HashSet<i64> = ids(&shop.pages(request, 7).await).into_iter().collect();
            let expected = made[1..].iter().filter(|p| fits(p)).map(|p| p.id).collect();
            assert_eq!(found, expected, "{sort:?} {filter:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_skip_nor_repeat_while_products_are_added() {
    let shop = Shop::open().await;
    for at in 0..20 {
        shop.named(&format!("m{at:02}"), 500 + at, 1, None).await;
    }
    for sort in [ProductSort::Newest, ProductSort::PriceAsc, ProductSort::PriceDesc, ProductSort::Name] {
        let before: HashSet<i64> = ids(&shop.pages(by(sort), 100).await).into_iter().collect();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = ListProductsRequest { limit: Some(3), cursor, ..by(sort) };
            let page = shop.list(page).await.unwrap();
            seen.extend(ids(&page.items));
            shop.named("a", 1, 1, None).await;
            shop.named("z", 9999, 0, None).await;
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
async fn a_bad_question_is_not_well_formed() {
    let shop = Shop::open().await;
    for at in 0..3 {
        shop.named(&format!("m{at}"), at, 1, None).await;
    }
    let base = ListProductsRequest::default;
    let first = shop.list(ListProductsRequest { limit: Some(1), ..base() }).await.unwrap();
    let cursor = first.next_cursor;
    let odd = [
        ListProductsRequest { limit: Some(0), ..base() },
        ListProductsRequest { limit: Some(101), ..base() },
        ListProductsRequest { min_price: Some(-1), ..base() },
        ListProductsRequest { max_price: Some(-1), ..base() },
        ListProductsRequest { min_price: Some(2), max_price: Some(1), ..base() },
        ListProductsRequest { sort: 99, ..base() },
        ListProductsRequest { cursor: Some(String::new()), ..base() },
        ListProductsRequest { cursor: Some("nonsense".into()), ..base() },
        // Of another sort, and with another filter.
        ListProductsRequest { cursor: cursor.clone(), ..by(ProductSort::Name) },
        ListProductsRequest { cursor: cursor.clone(), in_stock: Some(true), ..base() },
    ];
    for request in odd {
        assert_eq!(reason(shop.list(request.clone()).await), "INVALID_REQUEST", "{request:?}");
    }
    // A cursor of that list in which somebody has written something else.
    for (sort, key) in
        [(ProductSort::Name, json!("a\0b")), (ProductSort::Name, json!(7)), (ProductSort::Newest, json!("a"))]
    {
        let of = ListProductsRequest { limit: Some(1), ..by(sort) };
        let cursor = shop.list(of.clone()).await.unwrap().next_cursor.expect("more");
        let mut position: Value = cursor::decode(&cursor).unwrap();
        position["key"] = key;
        let cursor = Some(cursor::encode(&position));
        assert_eq!(reason(shop.list(ListProductsRequest { cursor, ..of }).await), "INVALID_REQUEST");
    }
    for moment in [i64::MIN, -300_000_000_000_000_000, i64::MAX] {
        let mut position: Value = cursor::decode(cursor.as_ref().expect("more")).unwrap();
        position["key"] = json!(moment);
        let cursor = Some(cursor::encode(&position));
        assert!(
            shop.list(ListProductsRequest { cursor, ..base() }).await.unwrap().items.is_empty(),
            "{moment}"
        );
    }
    // Another limit is the same list.
    assert_eq!(
        shop.list(ListProductsRequest { cursor, limit: Some(2), ..base() }).await.unwrap().items.len(),
        2
    );
}
