//! Tests of scripts without spaces and of Unicode folding.

use super::query;
use crate::test_shop::TestShop;

#[tokio::test(flavor = "multi_thread")]
async fn substrings_are_found_in_scripts_without_spaces() {
    let shop = TestShop::start().await;
    let products = [
        ("zh", "红色陶瓷茶杯 300毫升", "手工制作"),
        ("ja", "ラーメン丼ぶり", "陶器"),
        ("th", "แก้วกาแฟเซรามิก", ""),
        ("lo", "ຈອກກາເຟ", ""),
        ("km", "ពែងកាហ្វេ", ""),
        ("ko", "찻잔세트를", ""),
    ];
    for (sku, name, description) in products {
        shop.create_in_stock(sku, name, description, None).await;
    }
    for (sku, name, _) in products {
        for word in name.split(' ') {
            let chars: Vec<char> = word.chars().filter(|char| !char.is_ascii_digit()).collect();
            for from in 0..chars.len() {
                for to in from + 2..=chars.len() {
                    let part: String = chars[from..to].iter().collect();
                    let skus = shop.find(&part).await;
                    assert_eq!(skus.first().map(String::as_str), Some(sku), "{part} of {name}");
                }
            }
        }
    }
    assert_eq!(shop.find("茶杯").await, ["zh"]);
    assert_eq!(shop.find("茶").await, ["zh"], "one character");
    assert_eq!(shop.find("300毫升").await, ["zh"]);
    assert_eq!(shop.find("制作").await, ["zh"], "in a description");
    assert!(shop.find("杯茶").await.is_empty(), "the other way round");
}

#[tokio::test(flavor = "multi_thread")]
async fn equivalent_letters_match() {
    let shop = TestShop::start().await;
    for (sku, name) in [
        ("nfc", "Caf\u{e9} press"),
        ("nfd", "Cafe\u{301} filter"),
        ("plain", "Cafe stand"),
        ("street", "Straßenlampe"),
        ("elephant", "Stuffed \u{e9}l\u{e9}phant"),
        ("plainer", "Elephant vase"),
        ("wide", "ＬＥＤ　Ｓｔｒｉｐ"),
        ("turkish", "Işık İstanbul"),
        ("arabic", "مُصْحَف كبير"),
        ("norse", "Smørrebrød plate"),
        ("greek", "ΣΊΣΥΦΟΣ"),
    ] {
        shop.create_in_stock(sku, name, "", None).await;
    }
    for typed in ["café", "cafe\u{301}", "cafe", "CAFÉ", "Cafe\u{301}"] {
        assert_eq!(shop.find(typed).await, ["plain", "nfd", "nfc"], "{typed}");
    }
    for (typed, sku) in [
        ("strassenlampe", "street"),
        ("STRAßENLAMPE", "street"),
        ("strasse", "street"),
        ("led strip", "wide"),
        ("ｌｅｄ", "wide"),
        ("isik", "turkish"),
        ("ışık", "turkish"),
        ("IŞIK", "turkish"),
        ("istanbul", "turkish"),
        ("İSTANBUL", "turkish"),
        ("مصحف", "arabic"),
        ("كَبِير", "arabic"),
        ("smorrebrod", "norse"),
        ("σισυφος", "greek"),
    ] {
        assert_eq!(shop.find(typed).await, [sku], "{typed}");
    }
    for typed in ["elepha", "éléphant", "elephant"] {
        let mut skus = shop.find(typed).await;
        skus.sort();
        assert_eq!(skus, ["elephant", "plainer"], "{typed}");
    }
    // Category names are folded too.
    let category = shop.category("zubehor", None).await.id;
    let renamed = shoppee_proto::product::v1::UpdateCategoryRequest {
        id: category,
        name: Some("Zubehör".to_owned()),
        ..Default::default()
    };
    shop.change_category(&["name"], renamed).await.unwrap();
    shop.create_in_stock("part", "Screw", "", Some(category)).await;
    let page = shop.search(query("zubehor")).await.unwrap();
    assert_eq!(page.items[0].sku, "part");
}
