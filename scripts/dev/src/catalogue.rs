//! The demo shop's products. Each is made from its number alone: the same number is the same product for ever, however
//! many there are. To sell something new, add a line to [`words`].

mod words;

use serde_json::{Value, json};

pub use words::CATEGORIES;
use words::{COLOURS, LEAVES, Leaf, SERIES};

#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub description: String,
    /// Index into [`CATEGORIES`].
    pub category: usize,
    /// Minor units.
    pub price: u64,
    pub stock: u64,
    pub attributes: Value,
    /// For how long it has been sold. Minutes.
    pub age: i64,
}

/// Another seed is another shop.
const SEED: u64 = 0x5133_7093_e11a_7e57;
/// The oldest product came a bit more than a year ago. Minutes.
const OLDEST: u64 = 400 * 24 * 60;

/// The name a product is known by among all shops' things; unique, as the number is in it.
pub fn sku(number: u32) -> String {
    let mut dice = Dice::of(number);
    let leaf = dice.pick(LEAVES);
    format!("{}-{:05}", leaf.code, u64::from(number) + 1)
}

pub fn product(number: u32) -> Product {
    let mut dice = Dice::of(number);
    // First, as in `sku`.
    let leaf = dice.pick(LEAVES);
    let kind = dice.pick(leaf.kinds);
    let series = dice.pick(SERIES);
    let material = dice.pick(leaf.materials);
    let colour = dice.pick(COLOURS);
    let size = dice.pick(kind.sizes);
    let price = dice.price(kind.from, kind.to);

    let mut name = format!("{series} {material} {}", kind.noun);
    if !size.is_empty() {
        name = format!("{name}, {size}");
    }
    let description = description(&mut dice, &leaf, kind.noun, material, colour);
    let mut attributes = json!({
        "brand": series,
        "material": material,
        "colour": colour,
        "weight_g": 50 * dice.between(1, 80),
    });
    if !size.is_empty() {
        attributes["size"] = json!(size);
    }
    Product {
        sku: sku(number),
        name,
        description,
        category: leaf.category,
        price,
        stock: dice.stock(),
        attributes,
        age: i64::try_from(dice.between(0, OLDEST)).unwrap_or_default(),
    }
}

fn description(dice: &mut Dice, leaf: &Leaf, noun: &str, material: &str, colour: &str) -> String {
    let noun = noun.to_lowercase();
    let opening = match dice.between(0, 3) {
        0 => format!("A {noun} in {} and {}.", material.to_lowercase(), colour.to_lowercase()),
        1 => format!("Our {} {noun}, made to be used every day.", colour.to_lowercase()),
        2 => format!("{material}, {}, and nothing superfluous.", colour.to_lowercase()),
        _ => format!("The {noun} we always wanted for ourselves."),
    };
    let first = dice.pick(leaf.praises);
    let second = dice.pick(leaf.praises);
    let closing = dice.pick(words::CLOSINGS);
    if first == second {
        format!("{opening} {first} {closing}")
    } else {
        format!("{opening} {first} {second} {closing}")
    }
}

/// A row of random numbers that begins with a product's number: splitmix64 (Steele, Lea, Flood: Fast Splittable
/// Pseudorandom Number Generators, 2014).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn of(number: u32) -> Self {
        let mut dice = Self(SEED ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Neighbours begin alike.
        dice.roll();
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Both ends are possible.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    fn pick<T: Copy>(&mut self, from: &'static [T]) -> T {
        let index = self.roll() % from.len() as u64;
        from[usize::try_from(index).unwrap_or_default()]
    }

    /// More cheap ones than dear ones, and an end as shops like it: 4.95, 27.90, 149.00. Minor units.
    fn price(&mut self, from: u64, to: u64) -> u64 {
        let reach = self.between(0, 100) * self.between(0, 100);
        let raw = from + (to - from) * reach / 10_000;
        match raw {
            0..1_000 => raw / 50 * 50 + 45,
            1_000..10_000 => raw / 100 * 100 + 90,
            _ => raw / 500 * 500 + 400,
        }
    }

    /// Some are sold out, some nearly; most are not.
    fn stock(&mut self) -> u64 {
        match self.between(0, 99) {
            0..3 => 0,
            3..10 => self.between(1, 5),
            10..85 => self.between(10, 250),
            _ => self.between(250, 2_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const MANY: u32 = 20_000;

    #[test]
    fn a_product_is_the_same_every_time() {
        assert_eq!(product(41), product(41));
        assert_eq!(product(41).sku, sku(41));
        assert_ne!(product(41).name, product(42).name);
    }

    #[test]
    fn every_product_keeps_the_rules_of_the_catalogue() {
        let mut skus = HashSet::new();
        for number in 0..MANY {
            let product = product(number);
            assert!(product.name.len() <= 200 && !product.name.is_empty());
            assert!(product.description.len() <= 10_000);
            assert!(product.price > 0 && product.price < 1_000_000, "{product:?}");
            assert!(product.sku.len() <= 64, "{product:?}");
            assert!(skus.insert(product.sku.clone()), "{product:?}");
        }
    }

    #[test]
    fn every_category_has_something_and_most_of_it_can_be_bought() {
        let shop: Vec<Product> = (0..1_000).map(product).collect();
        for leaf in LEAVES {
            assert!(shop.iter().filter(|product| product.category == leaf.category).count() > 20);
        }
        let sold_out = shop.iter().filter(|product| product.stock == 0).count();
        assert!((5..100).contains(&sold_out), "{sold_out}");
        let names: HashSet<&str> = shop.iter().map(|product| product.name.as_str()).collect();
        assert!(names.len() > 950, "{}", names.len());
    }

    #[test]
    fn categories_stand_after_their_parents() {
        for (index, category) in CATEGORIES.iter().enumerate() {
            assert!(category.parent.is_none_or(|parent| parent < index), "{}", category.slug);
        }
    }
}
