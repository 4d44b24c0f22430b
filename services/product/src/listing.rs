//! The rules of lists: what may be asked for, in which order it comes, and where a page begins. Lists are
//! read by position, not by offset: what is added meanwhile neither repeats a product nor skips one.

use serde::{Deserialize, Serialize};
use shoppee_kit::{cursor, status::Violations};

use crate::product::Product;

/// Products of a page.
pub const LONGEST_PAGE: i32 = 100;
const PAGE: i32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Sort {
    Newest,
    PriceAsc,
    PriceDesc,
    Name,
}

/// Which products a list is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Filters {
    /// A slug; its descendants count too.
    pub category: Option<String>,
    /// Inclusive.
    pub min_price: i64,
    /// Inclusive.
    pub max_price: i64,
    pub in_stock: Option<bool>,
}

impl Filters {
    pub fn parse(
        category: Option<String>,
        min_price: Option<i64>,
        max_price: Option<i64>,
        in_stock: Option<bool>,
    ) -> Result<Self, Violations> {
        let mut bad = Violations::default();
        bad.require(min_price.is_none_or(|price| price >= 0), "min_price", "must not be negative");
        bad.require(max_price.is_none_or(|price| price >= 0), "max_price", "must not be negative");
        let (min_price, max_price) = (min_price.unwrap_or(0), max_price.unwrap_or(i64::MAX));
        bad.require(min_price <= max_price, "min_price", "must not be above max_price");
        bad.finish()?;
        Ok(Self { category, min_price, max_price, in_stock })
    }

    /// Whether a product fits, but for its category.
    pub fn fit(&self, product: &Product) -> bool {
        (self.min_price..=self.max_price).contains(&product.price)
            && self.in_stock.is_none_or(|in_stock| in_stock == (product.stock > 0))
    }

    /// Whether products in stock are wanted.
    pub fn wants_in_stock(&self) -> bool {
        self.in_stock != Some(false)
    }

    /// Whether products out of stock are wanted.
    pub fn wants_sold_out(&self) -> bool {
        self.in_stock != Some(true)
    }
}

/// How many products a page has: 1..100, 20 where nothing is said.
pub fn limit(asked: Option<i32>) -> Result<i64, Violations> {
    let limit = asked.unwrap_or(PAGE);
    if (1..=LONGEST_PAGE).contains(&limit) {
        Ok(i64::from(limit))
    } else {
        Err(Violations::from(("limit", "must be 1 to 100")))
    }
}

/// What a list is ordered by, of one product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Key {
    /// A price, a negated price, microseconds since the Unix epoch, a score.
    Number(i64),
    /// A name as it is sorted.
    Text(String),
}

/// The product a page begins behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Of the question the list answers.
    of: u64,
    pub key: Key,
    pub id: i64,
}

impl Position {
    pub fn new(question: &impl Serialize, key: Key, id: i64) -> Self {
        Self { of: fingerprint(question), key, id }
    }

    /// Reads a cursor, which must be of the same question.
    pub fn parse(cursor: &str, question: &impl Serialize) -> Result<Self, Violations> {
        let position: Self = cursor::decode(cursor)?;
        if position.of == fingerprint(question) {
            Ok(position)
        } else {
            Err(Violations::from(("cursor", "is of another list: filters and sort must stay the same")))
        }
    }

    pub fn cursor(&self) -> String {
        cursor::encode(self)
    }
}

impl Sort {
    /// The key of a position, where it is one of this order.
    pub fn fits(self, key: &Key) -> bool {
        match self {
            // PostgreSQL knows no NUL, and no name has one.
            Self::Name => matches!(key, Key::Text(name) if !name.contains('\0')),
            Self::Newest | Self::PriceAsc | Self::PriceDesc => matches!(key, Key::Number(_)),
        }
    }

    /// Before the first product that may fit: a list by price begins where its range does.
    pub fn start(self, filters: &Filters) -> (Key, i64) {
        match self {
            // Microseconds of the last day that a date can name, 9999-12-31.
            Self::Newest => (Key::Number(253_402_214_400_000_000), i64::MAX),
            Self::PriceAsc => (Key::Number(filters.min_price), 0),
            Self::PriceDesc => (Key::Number(-filters.max_price), 0),
            Self::Name => (Key::Text(String::new()), 0),
        }
    }
}

/// Part of a list, and where it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub items: Vec<Product>,
    pub next_cursor: Option<String>,
}

/// FNV-1a, the same in every version of this program: a cursor outlives a rolling restart.
fn fingerprint(question: &impl Serialize) -> u64 {
    // A question is strings, numbers and words; it always serialises.
    let text = serde_json::to_vec(question).unwrap_or_default();
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(category: Option<&str>) -> Filters {
        Filters::parse(category.map(ToOwned::to_owned), None, None, None).unwrap()
    }

    #[test]
    fn a_cursor_is_of_one_question() {
        let question = (Sort::Name, filters(Some("shoes")));
        let position = Position::new(&question, Key::Text("ü".repeat(200)), 7);
        assert_eq!(Position::parse(&position.cursor(), &question).unwrap(), position);
        for other in [(Sort::Newest, filters(Some("shoes"))), (Sort::Name, filters(None))] {
            assert!(Position::parse(&position.cursor(), &other).is_err());
        }
        assert!(Position::parse("nonsense", &question).is_err());
    }

    #[test]
    fn the_longest_name_fits_into_a_cursor() {
        let question = (Sort::Name, filters(None));
        let position = Position::new(&question, Key::Text("😀".repeat(200)), i64::MAX);
        assert!(Position::parse(&position.cursor(), &question).is_ok());
    }

    #[test]
    fn prices_are_in_order() {
        let parse = |min, max| Filters::parse(None, min, max, None).is_ok();
        assert!(parse(None, None) && parse(Some(0), Some(0)) && parse(Some(5), None));
        assert!(!parse(Some(2), Some(1)) && !parse(Some(-1), None) && !parse(None, Some(-1)));
    }

    #[test]
    fn a_page_has_one_to_a_hundred() {
        assert_eq!(limit(None).unwrap(), 20);
        assert_eq!(limit(Some(100)).unwrap(), 100);
        for odd in [0, -1, 101] {
            assert!(limit(Some(odd)).is_err(), "{odd}");
        }
    }
}
