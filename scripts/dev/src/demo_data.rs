//! Generates the demo products. A product depends on its number alone, so that the same number always gives the same
//! product. To add a kind of product, add a line to [`words`].

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
    /// The time since the product was created. Minutes.
    pub age: i64,
}

/// Seeds all generators: another value gives other products.
const SEED: u64 = 0x5133_7093_e11a_7e57;
/// A bit more than a year. Minutes.
const MAX_AGE_MINUTES: u64 = 400 * 24 * 60;

/// Returns the SKU of a product, which is unique because it contains the number.
pub fn sku(number: u32) -> String {
    let mut rng = SplitMix64::from_number(number);
    let leaf = rng.choose(LEAVES);
    format!("{}-{:05}", leaf.code, u64::from(number) + 1)
}

pub fn product(number: u32) -> Product {
    let mut rng = SplitMix64::from_number(number);
    // The first choice of the generator, as in `sku`.
    let leaf = rng.choose(LEAVES);
    let kind = rng.choose(leaf.kinds);
    let series = rng.choose(SERIES);
    let material = rng.choose(leaf.materials);
    let colour = rng.choose(COLOURS);
    let size = rng.choose(kind.sizes);
    let price = rng.price(kind.from, kind.to);

    let mut name = format!("{series} {material} {}", kind.noun);
    if !size.is_empty() {
        name = format!("{name}, {size}");
    }
    let description = description(&mut rng, &leaf, kind.noun, material, colour);
    let mut attributes = json!({
        "brand": series,
        "material": material,
        "colour": colour,
        "weight_g": 50 * rng.between(1, 80),
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
        stock: rng.stock(),
        attributes,
        age: i64::try_from(rng.between(0, MAX_AGE_MINUTES)).unwrap_or_default(),
    }
}

fn description(rng: &mut SplitMix64, leaf: &Leaf, noun: &str, material: &str, colour: &str) -> String {
    let noun = noun.to_lowercase();
    let opening = match rng.between(0, 3) {
        0 => format!("A {noun} in {} and {}.", material.to_lowercase(), colour.to_lowercase()),
        1 => format!("Our {} {noun}, made to be used every day.", colour.to_lowercase()),
        2 => format!("{material}, {}, and nothing superfluous.", colour.to_lowercase()),
        _ => format!("The {noun} we always wanted for ourselves."),
    };
    let first = rng.choose(leaf.praises);
    let second = rng.choose(leaf.praises);
    let closing = rng.choose(words::CLOSINGS);
    if first == second {
        format!("{opening} {first} {closing}")
    } else {
        format!("{opening} {first} {second} {closing}")
    }
}

/// The generator SplitMix64, seeded with a product's number (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014).
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn from_number(number: u32) -> Self {
        let mut rng = Self(SEED ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first outputs of similar seeds are similar.
        rng.next_u64();
        rng
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number of the inclusive range.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next_u64() % (high - low + 1)
    }

    fn choose<T: Copy>(&mut self, from: &'static [T]) -> T {
        let index = self.next_u64() % from.len() as u64;
        from[usize::try_from(index).unwrap_or_default()]
    }

    /// Returns a price in minor units, skewed to the cheap end, with a typical ending: 4.95, 27.90, 149.00.
    fn price(&mut self, from: u64, to: u64) -> u64 {
        let reach = self.between(0, 100) * self.between(0, 100);
        let raw = from + (to - from) * reach / 10_000;
        match raw {
            0..1_000 => raw / 50 * 50 + 45,
            1_000..10_000 => raw / 100 * 100 + 90,
            _ => raw / 500 * 500 + 400,
        }
    }

    /// Returns a stock: 3 % are sold out, 7 % nearly.
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

    const SAMPLE_SIZE: u32 = 20_000;

    #[test]
    fn a_number_always_gives_the_same_product() {
        assert_eq!(product(41), product(41));
        assert_eq!(product(41).sku, sku(41));
        assert_ne!(product(41).name, product(42).name);
    }

    #[test]
    fn every_product_is_valid_and_has_a_unique_sku() {
        let mut skus = HashSet::new();
        for number in 0..SAMPLE_SIZE {
            let product = product(number);
            assert!(product.name.len() <= 200 && !product.name.is_empty());
            assert!(product.description.len() <= 10_000);
            assert!(product.price > 0 && product.price < 1_000_000, "{product:?}");
            assert!(product.sku.len() <= 64, "{product:?}");
            assert!(skus.insert(product.sku.clone()), "{product:?}");
        }
    }

    #[test]
    fn every_category_has_products_and_most_are_in_stock() {
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
    fn every_kind_has_a_drawing_in_the_storefront() {
        let drawings = include_str!("../../../gateway/assets/drawings.txt");
        for kind in LEAVES.iter().flat_map(|leaf| leaf.kinds) {
            // The slug of `pictures.js`.
            let name =
                kind.noun.to_lowercase().replace(|character: char| !character.is_ascii_alphanumeric(), "-");
            assert!(drawings.contains(&format!("\n{name} = <")), "{name}");
        }
    }

    #[test]
    fn categories_follow_their_parents() {
        for (index, category) in CATEGORIES.iter().enumerate() {
            assert!(category.parent.is_none_or(|parent| parent < index), "{}", category.slug);
        }
    }
}
