//! Tests of search: results and their order.

mod freshness;
mod paging;
mod scripts;
mod typos;

use std::time::{Duration, Instant};

use shoppee_proto::product::v1::{
    CreateProductRequest, Product, SearchProductsRequest, SearchProductsResponse,
};
use sqlx::AssertSqlSafe;
use tonic::{Code, Status};

use crate::test_shop::{Products, TestShop, reason};

/// The time for which an admin's search waits for earlier writes.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

impl TestShop {
    /// Searches as an admin, so that earlier writes are included.
    async fn search(&self, request: SearchProductsRequest) -> Result<SearchProductsResponse, Status> {
        loop {
            let started_at = Instant::now();
            let page = self.products.clone().search_products(self.admin(request.clone())).await;
            match page {
                // The index is built after the start.
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // On a busy machine the wait may have timed out before the writes were indexed.
                Ok(_) if started_at.elapsed() >= CATCH_UP_TIMEOUT => {}
                page => return page.map(tonic::Response::into_inner),
            }
        }
    }

    /// Returns the SKUs of the first page.
    async fn find(&self, q: &str) -> Vec<String> {
        skus(&self.search(query(q)).await.expect("found"))
    }

    async fn create_in_stock(
        &self,
        sku: &str,
        name: &str,
        description: &str,
        category_id: Option<i64>,
    ) -> Product {
        self.create(CreateProductRequest {
            sku: sku.to_owned(),
            name: name.to_owned(),
            description: Some(description.to_owned()),
            category_id,
            price: 100,
            stock: 1,
            ..CreateProductRequest::default()
        })
        .await
    }

    async fn run(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }

    /// Loads products by SQL, as the first migration describes: `{sku}-1`, `{sku}-2` and so on.
    async fn load(&self, sku: &str, name: &str, description: &str, count: i32, stock: i32) {
        self.run(&format!(
            "with loaded as (
                 insert into product.product (sku, name, description, price, in_stock, created_at, updated_at)
                 select '{sku}-' || n, {name}, {description}, 100, {stock} > 0, now(), now()
                 from generate_series(1, {count}) n
                 returning id
             ),
             stocked as (insert into product.stock (product_id, available) select id, {stock} from loaded)
             insert into product.stock_ledger (product_id, kind, quantity, at)
             select id, 'supply', {stock}, now() from loaded where {stock} > 0"
        ))
        .await;
    }
}

fn query(q: &str) -> SearchProductsRequest {
    SearchProductsRequest { q: q.to_owned(), ..SearchProductsRequest::default() }
}

fn skus(page: &SearchProductsResponse) -> Vec<String> {
    page.items.iter().map(|product| product.sku.clone()).collect()
}

/// Returns the SKUs that an anonymous caller finds in a process now; empty on errors.
async fn find_in(products: &Products, q: &str) -> Vec<String> {
    let page = products.clone().search_products(query(q)).await;
    page.map(|page| skus(page.get_ref())).unwrap_or_default()
}

async fn sample_shop() -> TestShop {
    let shop = TestShop::start().await;
    let shoes = shop.category("footwear", None).await.id;
    let lamps = shop.category("lighting", None).await.id;
    shop.create_in_stock("run-1", "Trail running sneakers", "Light and fast.", Some(shoes)).await;
    shop.create_in_stock("boot-1", "Leather boots", "Warm, as comfortable as sneakers.", Some(shoes)).await;
    shop.create_in_stock("lamp-1", "Desk lamp", "For the desk of a reader.", Some(lamps)).await;
    shop.create_in_stock("lamp-2", "Reading lantern", "A lamp for the night.", Some(lamps)).await;
    shop.create_in_stock("tee-x200", "T-Shirt Größe XL", "Cotton.", None).await;
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn name_matches_rank_before_description_and_category_matches() {
    let shop = sample_shop().await;
    assert_eq!(shop.find("sneakers").await, ["run-1", "boot-1"]);
    // The SKU matches too.
    assert_eq!(shop.find("lamp").await, ["lamp-2", "lamp-1"]);
    assert_eq!(shop.find("leather footwear").await, ["boot-1", "run-1"]);
    assert_eq!(shop.find("footwear").await, ["boot-1", "run-1"]);
    shop.create_in_stock("foot-1", "Footwear polish", "Shines.", None).await;
    assert_eq!(shop.find("footwear").await[0], "foot-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_matches_as_a_prefix() {
    let shop = sample_shop().await;
    for typed in ["sn", "sneak", "sneaker", "SNEAKERS", "trail sne"] {
        assert_eq!(shop.find(typed).await[0], "run-1", "{typed}");
    }
    assert_eq!(shop.find("s").await, ["tee-x200", "run-1", "boot-1"], "one letter");
    for form in ["boot", "desks", "readers"] {
        assert!(!shop.find(form).await.is_empty(), "{form}");
    }
    assert_eq!(shop.find("grö").await, ["tee-x200"]);
    for typed in ["T-Shirt", "tshirt", "t shirt", "tee-x200", "x200", "x20"] {
        assert_eq!(shop.find(typed).await, ["tee-x200"], "{typed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_sku_ranks_first_in_any_case_and_with_any_separator() {
    let shop = sample_shop().await;
    shop.create_in_stock("QWCGQ-RED-XL", "Wool jumper", "", None).await;
    shop.create_in_stock("CN-1", "Cone", "", None).await;
    shop.create_in_stock("W-100", "Wire", "", None).await;
    shop.create_in_stock("tee-1", "Tee", "", None).await;
    shop.create_in_stock("TEE-1", "Tee", "", None).await;
    // Newer products with similar names.
    shop.create_in_stock("OTHER-1", "A tin can for QWCGQ in red, XL", "CN 1 and W 100 and tee 1", None).await;
    shop.load("W", "'Wire, W-100'", "''", 25, 1).await;
    shop.run("update product.product set sku = 'W-10' || substring(sku from 3) where sku ~ '^W-[0-9]{1,2}$'")
        .await;
    for typed in ["QWCGQ-RED-XL", "qwcgq-red-xl", "qwcgqredxl", "QWCGQ RED XL", "qwcgq_red.xl"] {
        assert_eq!(shop.find(typed).await[0], "QWCGQ-RED-XL", "{typed}");
    }
    assert_eq!(shop.find("qwcgqr").await[0], "QWCGQ-RED-XL", "while it is typed");
    for typed in ["CN-1", "cn1", "cn 1"] {
        assert_eq!(shop.find(typed).await[0], "CN-1", "{typed}");
    }
    assert_eq!(shop.find("W-100").await[0], "W-100");
    assert_eq!(shop.find("tee-1").await[0], "tee-1");
    assert_eq!(shop.find("TEE-1").await[0], "TEE-1");
    assert!(shop.find("TEE1").await.starts_with(&["TEE-1".to_owned(), "tee-1".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_name_ranks_before_products_with_its_words() {
    let shop = sample_shop().await;
    shop.create_in_stock("exact", "W Lamp", "", None).await;
    shop.create_in_stock("sheath", "Böhler Leather Sheath, 18 cm", "", None).await;
    shop.load("shade", "'W Lampshade'", "'W lamp'", 600, 1).await;
    shop.load("size", "'Böhler Leather Sheath, ' || n || ' cm, 18'", "''", 600, 1).await;
    assert_eq!(shop.find("W Lamp").await[0], "exact");
    for typed in ["Böhler Leather Sheath, 18 cm", "bohler leather sheath 18 CM"] {
        assert_eq!(shop.find(typed).await[0], "sheath", "{typed}");
    }
    let page = shop.search(SearchProductsRequest { limit: Some(1), ..query("w lamp") }).await.unwrap();
    assert_eq!((page.total >= 601, page.total_is_exact), (true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_words_of_a_long_query_count() {
    let shop = TestShop::start().await;
    let words =
        "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar";
    shop.create_in_stock("all", &format!("{words} papa"), "", None).await;
    for (at, last) in ["quebec", "romeo", "sierra"].into_iter().enumerate() {
        shop.create_in_stock(&format!("other-{at}"), &format!("{words} {last}"), "", None).await;
    }
    for (at, word) in words.split(' ').enumerate() {
        shop.create_in_stock(&format!("one-{at}"), word, "", None).await;
    }
    let skus = shop.find(&format!("{words} papa")).await;
    assert_eq!(skus[..4], ["all", "other-2", "other-1", "other-0"]);
    assert_eq!(skus.len(), 19);
    assert_eq!(shop.find(&format!("papa {words}")).await[0], "all");
    assert_eq!(shop.find("alpha bravo zulu papa").await[0], "all", "a word that nothing has is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_queries_are_plain_text() {
    let shop = sample_shop().await;
    let long = "sneakers ".repeat(22);
    for hostile in [
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
        &"ﷺ".repeat(200),
        "\u{301}",
        &"茶".repeat(200),
        "0x1F",
        "NaN",
    ] {
        let page = shop.search(query(hostile)).await;
        assert!(page.is_ok(), "{hostile:?}: {page:?}");
    }
    for with_word in ["!sneakers", "\"sneakers", "sneakers:*", "<b>sneakers", &long[..198]] {
        assert_eq!(shop.find(with_word).await[0], "run-1", "{with_word}");
    }
    for invalid in ["", "\0", "sneakers\0", &"x".repeat(201)] {
        assert_eq!(reason(shop.search(query(invalid)).await), "INVALID_REQUEST", "{invalid:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_finds_all_words_with_it() {
    let shop = sample_shop().await;
    for letter in 'a'..='t' {
        shop.create_in_stock(&format!("back-{letter}"), &format!("Back{letter}"), "", None).await;
    }
    shop.create_in_stock("pack", "backpackersfavouritecompanion", "", None).await;
    let page = shop.search(SearchProductsRequest { limit: Some(100), ..query("back") }).await.unwrap();
    assert_eq!((page.items.len(), page.total), (21, 21));
    let monster = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft";
    shop.create_in_stock("long", monster, "", None).await;
    assert_eq!(shop.find(monster).await, ["long"]);
}
