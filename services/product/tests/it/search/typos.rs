//! Tests of spelling corrections.

use super::sample_shop;
use crate::test_shop::TestShop;

/// Returns all words at edit distance 1: a deleted, inserted or substituted letter, or two transposed
/// neighbours.
fn misspellings(word: &str) -> Vec<String> {
    let chars: Vec<char> = word.chars().collect();
    let mut misspellings = Vec::new();
    for at in 0..=chars.len() {
        let with = |change: &dyn Fn(&mut Vec<char>)| {
            let mut slip = chars.clone();
            change(&mut slip);
            slip.into_iter().collect::<String>()
        };
        misspellings.push(with(&|slip| slip.insert(at, 'q')));
        if at < chars.len() {
            misspellings.push(with(&|slip| {
                slip.remove(at);
            }));
            misspellings.push(with(&|slip| slip[at] = 'q'));
        }
        if at + 1 < chars.len() && chars[at] != chars[at + 1] {
            misspellings.push(with(&|slip| slip.swap(at, at + 1)));
        }
    }
    misspellings
}

#[tokio::test(flavor = "multi_thread")]
async fn one_edit_is_tolerated_in_words_of_four_letters_or_more() {
    let shop = TestShop::start().await;
    for word in ["lamp", "sneaker", "grün", "чайник"] {
        shop.create_in_stock(
            word.strip_prefix("gr").map_or(if word.is_ascii() { word } else { "tea" }, |_| "green"),
            word,
            "",
            None,
        )
        .await;
    }
    for (word, sku) in [("lamp", "lamp"), ("sneaker", "sneaker"), ("grun", "green"), ("чайник", "tea")]
    {
        for slip in misspellings(word) {
            for typed in [slip.clone(), format!("{slip} "), format!("{slip} zzzzzz")] {
                assert_eq!(shop.find(&typed).await, [sku], "{typed:?} for {word}");
            }
        }
    }
    shop.create_in_stock("mug", "Mug", "", None).await;
    for typed in ["mqg ", "gum "] {
        assert!(shop.find(typed).await.is_empty(), "{typed:?}: three letters are too few");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_edits_are_tolerated_in_words_of_eight_letters_or_more() {
    let shop = TestShop::start().await;
    shop.create_in_stock("kb", "Keyboard", "", None).await;
    shop.create_in_stock("seven", "Lantern", "", None).await;
    for first in misspellings("keyb") {
        for second in misspellings("oard").iter().step_by(3) {
            let typed = format!("{first}{second} ");
            assert_eq!(shop.find(&typed).await, ["kb"], "{typed:?}");
        }
    }
    assert!(shop.find("lqntqrn ").await.is_empty(), "seven letters forgive one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_word_is_corrected_to_an_indexed_word() {
    let shop = sample_shop().await;
    for slip in ["sneakrs", "sneekers", "snaekers", "snneakers", "traill sneakers", "sneakers trial"] {
        assert_eq!(shop.find(slip).await[0], "run-1", "{slip}");
    }
    assert_eq!(shop.find("lether boots").await[0], "boot-1");
    assert_eq!(shop.find("lantren").await, ["lamp-2"]);
    // A word without matches is dropped, unless no other word matches.
    assert_eq!(shop.find("xyzzyq sneakers").await, ["run-1", "boot-1"]);
    assert_eq!(shop.find("desk sneakers").await.len(), 3);
    assert!(shop.find("xyzzyq").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_without_products_is_no_correction() {
    let shop = TestShop::start().await;
    for at in 0..5 {
        shop.create_in_stock(&format!("b-{at}"), "Bamboo bowl", "", None).await;
    }
    let wrong = shop.create_in_stock("wrong", "Bambooo tray", "", None).await;
    assert_eq!(shop.find("bambooo").await, ["wrong"]);
    let request = shoppee_proto::product::v1::UpdateProductRequest {
        id: wrong.id,
        name: Some("Bamboo tray".to_owned()),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".to_owned()] }),
        ..Default::default()
    };
    shop.products.clone().update_product(shop.admin(request)).await.expect("renamed");
    assert_eq!(shop.find("bambooo").await.len(), 6, "a slip again");
    shop.archive(wrong.id).await.expect("archived");
    assert_eq!(shop.find("tray").await, [""; 0]);
    assert_eq!(shop.find("bambooo").await.len(), 5);
}
