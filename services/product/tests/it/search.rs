//! Search: what is found, and in which order.

mod freshness;
mod paging;
mod scripts;
mod slips;

use std::time::{Duration, Instant};

use shoppee_proto::product::v1::{
    CreateProductRequest, Product, SearchProductsRequest, SearchProductsResponse,
};
use sqlx::AssertSqlSafe;
use tonic::{Code, Status};

use crate::shop::{Products, Shop, reason};

/// How long an admin's search waits for what was written before.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

impl Shop {
    /// As the admin, who finds what was written before.
    async fn search(&self, request: SearchProductsRequest) -> Result<SearchProductsResponse, Status> {
        loop {
            let asked_at = Instant::now();
            let found = self.products.clone().search_products(self.admin(request.clone())).await;
            match found {
                // The index is built once, after the start.
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // On a busy machine it has waited in vain for the index to have what was written.
                Ok(_) if asked_at.elapsed() >= CATCH_UP_TIMEOUT => {}
                found => return found.map(tonic::Response::into_inner),
            }
        }
    }

    /// The SKUs of the first page.
    async fn find(&self, q: &str) -> Vec<String> {
        skus(&self.search(of(q)).await.expect("found"))
    }

    async fn stocked(&self, sku: &str, name: &str, description: &str, category_id: Option<i64>) -> Product {
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

    /// Products that are loaded past the service, as the first migration says: `{sku}-1`, `{sku}-2` and so on.
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

fn of(q: &str) -> SearchProductsRequest {
    SearchProductsRequest { q: q.to_owned(), ..SearchProductsRequest::default() }
}

fn skus(found: &SearchProductsResponse) -> Vec<String> {
    found.items.iter().map(|product| product.sku.clone()).collect()
}

/// What anybody finds in a process now; nothing while it answers nothing.
async fn find_in(products: &Products, q: &str) -> Vec<String> {
    let found = products.clone().search_products(of(q)).await;
    found.map(|found| skus(found.get_ref())).unwrap_or_default()
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
    // By its SKU too.
    assert_eq!(shop.find("lamp").await, ["lamp-2", "lamp-1"]);
    assert_eq!(shop.find("leather footwear").await, ["boot-1", "run-1"]);
    assert_eq!(shop.find("footwear").await, ["boot-1", "run-1"]);
    shop.stocked("foot-1", "Footwear polish", "Shines.", None).await;
    assert_eq!(shop.find("footwear").await[0], "foot-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_completed_while_they_are_typed() {
    let shop = shop().await;
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
async fn an_exact_sku_comes_first_in_any_case_and_however_it_is_separated() {
    let shop = shop().await;
    shop.stocked("QWCGQ-RED-XL", "Wool jumper", "", None).await;
    shop.stocked("CN-1", "Cone", "", None).await;
    shop.stocked("W-100", "Wire", "", None).await;
    shop.stocked("tee-1", "Tee", "", None).await;
    shop.stocked("TEE-1", "Tee", "", None).await;
    // Newer ones that look like them.
    shop.stocked("OTHER-1", "A tin can for QWCGQ in red, XL", "CN 1 and W 100 and tee 1", None).await;
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
async fn an_exact_name_comes_before_hundreds_that_have_its_words() {
    let shop = shop().await;
    shop.stocked("exact", "W Lamp", "", None).await;
    shop.stocked("sheath", "Böhler Leather Sheath, 18 cm", "", None).await;
    shop.load("shade", "'W Lampshade'", "'W lamp'", 600, 1).await;
    shop.load("size", "'Böhler Leather Sheath, ' || n || ' cm, 18'", "''", 600, 1).await;
    assert_eq!(shop.find("W Lamp").await[0], "exact");
    for typed in ["Böhler Leather Sheath, 18 cm", "bohler leather sheath 18 CM"] {
        assert_eq!(shop.find(typed).await[0], "sheath", "{typed}");
    }
    let found = shop.search(SearchProductsRequest { limit: Some(1), ..of("w lamp") }).await.unwrap();
    assert_eq!((found.total >= 601, found.total_is_exact), (true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_words_count_however_many_there_are() {
    let shop = Shop::open().await;
    let words =
        "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar";
    shop.stocked("all", &format!("{words} papa"), "", None).await;
    for (at, last) in ["quebec", "romeo", "sierra"].into_iter().enumerate() {
        shop.stocked(&format!("other-{at}"), &format!("{words} {last}"), "", None).await;
    }
    for (at, word) in words.split(' ').enumerate() {
        shop.stocked(&format!("one-{at}"), word, "", None).await;
    }
    let found = shop.find(&format!("{words} papa")).await;
    assert_eq!(found[..4], ["all", "other-2", "other-1", "other-0"]);
    assert_eq!(found.len(), 19);
    assert_eq!(shop.find(&format!("papa {words}")).await[0], "all");
    assert_eq!(shop.find("alpha bravo zulu papa").await[0], "all", "a word that nothing has is left out");
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
        &"ﷺ".repeat(200),
        "\u{301}",
        &"茶".repeat(200),
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_finds_all_that_begins_so() {
    let shop = shop().await;
    for letter in 'a'..='t' {
        shop.stocked(&format!("back-{letter}"), &format!("Back{letter}"), "", None).await;
    }
    shop.stocked("pack", "backpackersfavouritecompanion", "", None).await;
    let found = shop.search(SearchProductsRequest { limit: Some(100), ..of("back") }).await.unwrap();
    assert_eq!((found.items.len(), found.total), (21, 21));
    let monster = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft";
    shop.stocked("long", monster, "", None).await;
    assert_eq!(shop.find(monster).await, ["long"]);
}
