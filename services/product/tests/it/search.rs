//! Search: what is found, in which order, with slips and nonsense in the query.

use std::collections::HashSet;

use prost_types::FieldMask;
use shoppee_kit::testing::eventually;
use shoppee_proto::product::v1::{
    BatchUpdateProductsRequest, CreateProductRequest, ListProductsResponse, OnError, ProductChange,
    SearchProductsRequest, UpdateCategoryRequest, UpdateProductRequest,
};
use sqlx::AssertSqlSafe;
use tonic::Status;

use crate::shop::{Shop, reason};

impl Shop {
    async fn search(&self, request: SearchProductsRequest) -> Result<ListProductsResponse, Status> {
        self.products.clone().search_products(request).await.map(tonic::Response::into_inner)
    }

    /// The SKUs of the first page.
    async fn find(&self, q: &str) -> Vec<String> {
        let found = self.search(of(q)).await.expect("found");
        found.items.into_iter().map(|product| product.sku).collect()
    }

    async fn stocked(&self, sku: &str, name: &str, description: &str, category_id: Option<i64>) {
        let request = CreateProductRequest {
            sku: sku.to_owned(),
            name: name.to_owned(),
            description: Some(description.to_owned()),
            category_id,
            price: 100,
            stock: 1,
            ..CreateProductRequest::default()
        };
        self.create(request).await;
    }

    async fn run(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }

    /// Products that are loaded past the service.
    async fn load(&self, sku: &str, name: &str, description: &str, count: i32) {
        self.run(&format!(
            "with loaded as (
                 insert into product.product (sku, name, description, price, in_stock, created_at, updated_at)
                 select '{sku}-' || n, '{name}', {description}, 100, false, now(), now()
                 from generate_series(1, {count}) n
                 returning id
             )
             insert into product.stock (product_id, available) select id, 0 from loaded"
        ))
        .await;
    }
}

fn of(q: &str) -> SearchProductsRequest {
    SearchProductsRequest { q: q.to_owned(), ..SearchProductsRequest::default() }
}

async fn shop() -> Shop {
    let shop = Shop::open().await;
    let shoes = shop.category("footwear", None).await.id;
    let lamps = shop.category("lighting", None).await.id;
    shop.stocked("run-1", "Trail running sneakers", "Light and fast.", Some(shoes)).await;
    shop.stocked("boot-1", "Leather boots", "Warm, as comfortable as sneakers.", Some(shoes)).await;
    shop.stocked("lamp-1", "Desk lamp", "For the desk of a reader.", Some(lamps)).await;
    shop.stocked("lamp-2", "Reading lantern", "A lamp for the night.", Some(lamps)).await;
    shop.stocked("tee-x200", "T-Shirt Größe XL", "Cotton.", None).await;
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_comes_before_a_description_before_a_category() {
    let shop = shop().await;
    assert_eq!(shop.find("sneakers").await, ["run-1", "boot-1"]);
    assert_eq!(shop.find("lamp").await, ["lamp-1", "lamp-2"]);
    assert_eq!(shop.find("leather footwear").await, ["boot-1", "run-1"]);
    let mut footwear = shop.find("footwear").await;
    footwear.sort();
    assert_eq!(footwear, ["boot-1", "run-1"]);
    shop.stocked("foot-1", "Footwear polish", "Shines.", None).await;
    assert_eq!(shop.find("footwear").await[0], "foot-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_completed_and_forms_do_not_matter() {
    let shop = shop().await;
    for typed in ["sn", "sneak", "sneaker", "SNEAKERS", "trail sne", "s"] {
        assert_eq!(shop.find(typed).await[0], "run-1", "{typed}");
    }
    for form in ["boot", "runs", "desks", "readers"] {
        assert!(!shop.find(form).await.is_empty(), "{form}");
    }
    assert_eq!(shop.find("grö").await, ["tee-x200"]);
    assert_eq!(shop.find("T-Shirt").await, ["tee-x200"]);
    for sku in ["tee-x200", "x200"] {
        assert_eq!(shop.find(sku).await, ["tee-x200"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slips_are_forgiven() {
    let shop = shop().await;
    for slip in ["sneakrs", "sneekers", "snaekers", "snneakers", "traill sneakers", "sneakers trial"] {
        assert_eq!(shop.find(slip).await[0], "run-1", "{slip}");
    }
    assert_eq!(shop.find("lether boots").await[0], "boot-1");
    assert_eq!(shop.find("lantren").await, ["lamp-2"]);
    // One bad word never empties the page; nothing but bad words does.
    assert_eq!(shop.find("xyzzyq sneakers").await[0], "run-1");
    assert_eq!(shop.find("desk sneakers").await.len(), 3);
    assert!(shop.find("xyzzyq").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nasty_queries_are_only_queries() {
    let shop = shop().await;
    let long = "sneakers ".repeat(22);
    for nasty in [
        "%",
        "_",
        "'",
        "''; drop table product.product; --",
        "& | ! ( ) <-> :*",
        "\\",
        "\"sneakers",
        "😀",
        "a",
        " ",
        "\u{202e}",
        "<b>",
        "a:*b",
        "!sneakers",
        "sneakers:*",
        "((((((",
        "\n\t",
        long.trim(),
        &"x".repeat(200),
        &"a ".repeat(100),
        &"%".repeat(200),
        "-1",
        "http://x/?a=b&c",
        "ﷺ",
        "0x1F",
        "NaN",
    ] {
        let found = shop.search(of(nasty)).await;
        assert!(found.is_ok(), "{nasty:?}: {found:?}");
    }
    for holds in ["!sneakers", "\"sneakers", "sneakers:*", "<b>sneakers", &long[..198]] {
        assert_eq!(shop.find(holds).await[0], "run-1", "{holds}");
    }
    for odd in ["", "\0", "sneakers\0", &"x".repeat(201)] {
        assert_eq!(reason(shop.search(of(odd)).await), "INVALID_REQUEST", "{odd:?}");
    }
    assert_eq!(
        reason(shop.search(SearchProductsRequest { limit: Some(0), ..of("a") }).await),
        "INVALID_REQUEST"
    );
    let cursor = Some("nonsense".to_owned());
    assert_eq!(reason(shop.search(SearchProductsRequest { cursor, ..of("a") }).await), "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_pages_work_as_in_lists() {
    let shop = Shop::open().await;
    let toys = shop.category("toys", None).await.id;
    for at in 0..30 {
        let request = CreateProductRequest {
            sku: format!("ball-{at}"),
            name: if at % 3 == 0 { "Blue ball".to_owned() } else { "Red ball".to_owned() },
            price: at,
            stock: at % 2,
            category_id: (at % 5 == 0).then_some(toys),
            ..CreateProductRequest::default()
        };
        shop.create(request).await;
    }
    let archived = shop.search(SearchProductsRequest { limit: Some(1), ..of("red ball") }).await.unwrap();
    shop.archive(archived.items[0].id).await.unwrap();

    // All 29, the red ones first, in pages of every kind.
    for limit in [1, 4, 29, 100] {
        let (mut names, mut ids, mut cursor) = (Vec::new(), Vec::new(), None);
        loop {
            let page = SearchProductsRequest { limit: Some(limit), cursor, ..of("red ball") };
            let page = shop.search(page).await.unwrap();
            names.extend(page.items.iter().map(|product| product.name.clone()));
            ids.extend(page.items.iter().map(|product| product.id));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), names.len()), (29, 29), "by {limit}");
        assert!(names[..19].iter().all(|name| name == "Red ball"), "by {limit}");
        assert!(names[19..].iter().all(|name| name == "Blue ball"), "by {limit}");
    }

    let filtered = SearchProductsRequest {
        category: Some("toys".to_owned()),
        min_price: Some(5),
        max_price: Some(25),
        in_stock: Some(true),
        ..of("ball")
    };
    let found = shop.search(filtered).await.unwrap();
    let mut prices: Vec<i64> = found.items.iter().map(|product| product.price).collect();
    prices.sort_unstable();
    assert_eq!(prices, [5, 15, 25]);
    let unknown = SearchProductsRequest { category: Some("unknown".to_owned()), ..of("ball") };
    assert!(shop.search(unknown).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_category_is_found_by_its_new_name() {
    let shop = shop().await;
    let lighting = "select id from product.category where slug = 'lighting'";
    let id = shop.count(lighting).await;
    let renamed = UpdateCategoryRequest { id, name: Some("Illumination".to_owned()), ..Default::default() };
    shop.change_category(&["name"], renamed).await.unwrap();
    eventually("the new name is found", || async { shop.find("illumination").await.len() == 2 }).await;
    eventually("it is settled", || async {
        shop.count("select count(*) from product.category where renamed").await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_is_known_whichever_way_it_came() {
    let shop = shop().await;
    // By a move into a category,
    let attic = shop.category("attic", None).await.id;
    let moved = shop.product("moved", 1).await.id;
    let request = UpdateProductRequest {
        id: moved,
        category_id: Some(attic),
        update_mask: Some(FieldMask { paths: vec!["category_id".to_owned()] }),
        ..UpdateProductRequest::default()
    };
    shop.products.clone().update_product(shop.admin(request)).await.expect("moved");
    assert_eq!(shop.find("attic").await, ["moved"]);
    // by a batch,
    let cellar = shop.category("cellar", None).await.id;
    let change = ProductChange { id: Some(moved), category_id: Some(cellar), ..ProductChange::default() };
    let request = BatchUpdateProductsRequest {
        on_error: OnError::Abort.into(),
        items: vec![change],
        idempotency_key: None,
    };
    shop.products.clone().batch_update_products(shop.admin(request)).await.expect("moved");
    assert_eq!(shop.find("cellar").await, ["moved"]);
    // by a load which commits after another one of higher ids,
    let mut late = shop.pool.begin().await.unwrap();
    let product = "insert into product.product (sku, name, price, created_at, updated_at)
                   values ('late', 'Kaleidoscope', 1, now(), now())";
    sqlx::query(product).execute(&mut *late).await.unwrap();
    let stock = "insert into product.stock (product_id, available)
                 select id, 0 from product.product where sku = 'late'";
    sqlx::query(stock).execute(&mut *late).await.unwrap();
    shop.load("early", "Gramophone", "''", 1).await;
    eventually("the one is found", || async { shop.find("gramophone").await == ["early-1"] }).await;
    late.commit().await.unwrap();
    eventually("the other too", || async { shop.find("kaleidoscope").await == ["late"] }).await;
    // by a service that was killed before it had read them.
    shop.run("update product.product set name = 'Xylophone' where sku = 'late'").await;
    eventually("the new name is found", || async { shop.find("xylophone").await == ["late"] }).await;
    assert_eq!(shop.count("select count(*) from product.words_unread").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_finds_all_that_begins_so() {
    let shop = shop().await;
    let longest = "backpackersfavouritecompanion";
    for letter in 'a'..='t' {
        shop.stocked(&format!("back-{letter}"), &format!("Back{letter}"), "", None).await;
    }
    shop.stocked("pack", longest, "", None).await;
    let found = shop.search(SearchProductsRequest { limit: Some(100), ..of("back") }).await.unwrap();
    assert_eq!(found.items.len(), 21);
    // What is too long for the list of words,
    let monster = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft";
    shop.stocked("long", monster, "", None).await;
    assert_eq!(shop.find(monster).await, ["long"]);
    // and a SKU while it is typed.
    assert_eq!(shop.find("x20").await, ["tee-x200"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_common_word_the_same_is_found_each_time() {
    let shop = shop().await;
    // A table that PostgreSQL would go on scanning where it stopped the last time.
    let words =
        "'Common. ' || (select string_agg(md5((n * 100 + k)::text), ' ') from generate_series(1, 20) k)";
    shop.load("thing", "Thing", words, 4000).await;
    shop.run("analyze product.product").await;
    let unread = "select count(*) from product.words_unread";
    eventually("all words are read", || async { shop.count(unread).await == 0 }).await;
    let pages = || async {
        let (mut ids, mut cursor) = (Vec::new(), None);
        for _ in 0..5 {
            let page = SearchProductsRequest { limit: Some(100), cursor, ..of("common") };
            let page = shop.search(page).await.unwrap();
            ids.extend(page.items.into_iter().map(|product| product.id));
            cursor = page.next_cursor;
        }
        ids
    };
    let first = pages().await;
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 500);
    for _ in 0..3 {
        assert_eq!(pages().await, first);
    }
}
