//! Typing slips.

use super::shop;
use crate::shop::Shop;

/// Every word that is one slip from another: a letter missing, extra, wrong, or swapped with its neighbour.
fn slips(word: &str) -> Vec<String> {
    let chars: Vec<char> = word.chars().collect();
    let mut slips = Vec::new();
    for at in 0..=chars.len() {
        let with = |change: &dyn Fn(&mut Vec<char>)| {
            let mut slip = chars.clone();
            change(&mut slip);
            slip.into_iter().collect::<String>()
        };
        slips.push(with(&|slip| slip.insert(at, 'q')));
        if at < chars.len() {
            slips.push(with(&|slip| {
                slip.remove(at);
            }));
            slips.push(with(&|slip| slip[at] = 'q'));
        }
        if at + 1 < chars.len() && chars[at] != chars[at + 1] {
            slips.push(with(&|slip| slip.swap(at, at + 1)));
        }
    }
    slips
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slip_is_forgiven_anywhere_in_a_word_of_four_letters_or_more() {
    let shop = Shop::open().await;
    for word in ["lamp", "sneaker", "grün", "чайник"] {
        shop.stocked(
            word.strip_prefix("gr").map_or(if word.is_ascii() { word } else { "tea" }, |_| "green"),
            word,
            "",
            None,
        )
        .await;
    }
    for (word, sku) in [("lamp", "lamp"), ("sneaker", "sneaker"), ("grun", "green"), ("чайник", "tea")]
    {
        for slip in slips(word) {
            for typed in [slip.clone(), format!("{slip} "), format!("{slip} zzzzzz")] {
                assert_eq!(shop.find(&typed).await, [sku], "{typed:?} for {word}");
            }
        }
    }
    shop.stocked("mug", "Mug", "", None).await;
    for typed in ["mqg ", "gum "] {
        assert!(shop.find(typed).await.is_empty(), "{typed:?}: three letters are too few");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_slips_are_forgiven_in_a_word_of_eight_letters_or_more() {
    let shop = Shop::open().await;
    shop.stocked("kb", "Keyboard", "", None).await;
    shop.stocked("seven", "Lantern", "", None).await;
    for first in slips("keyb") {
        for second in slips("oard").iter().step_by(3) {
            let typed = format!("{first}{second} ");
            assert_eq!(shop.find(&typed).await, ["kb"], "{typed:?}");
        }
    }
    assert!(shop.find("lqntqrn ").await.is_empty(), "seven letters forgive one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_is_corrected_to_words_that_some_product_has() {
    let shop = shop().await;
    for slip in ["sneakrs", "sneekers", "snaekers", "snneakers", "traill sneakers", "sneakers trial"] {
        assert_eq!(shop.find(slip).await[0], "run-1", "{slip}");
    }
    assert_eq!(shop.find("lether boots").await[0], "boot-1");
    assert_eq!(shop.find("lantren").await, ["lamp-2"]);
    // One bad word never empties the page; nothing but bad words does.
    assert_eq!(shop.find("xyzzyq sneakers").await, ["run-1", "boot-1"]);
    assert_eq!(shop.find("desk sneakers").await.len(), 3);
    assert!(shop.find("xyzzyq").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_is_gone_from_the_catalogue_is_gone_from_the_search() {
    let shop = Shop::open().await;
    for at in 0..5 {
        shop.stocked(&format!("b-{at}"), "Bamboo bowl", "", None).await;
    }
    let wrong = shop.stocked("wrong", "Bambooo tray", "", None).await;
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
