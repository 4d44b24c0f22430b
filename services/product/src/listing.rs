//! The rules of lists: filters, sort orders and page cursors. Lists use keyset pagination: products that are
//! added meanwhile cause neither duplicates nor gaps.

use serde::{Deserialize, Serialize};
use shoppee_kit::{cursor, status::Violations};

use crate::product::Product;

/// The maximum page size. Products.
pub const MAX_PAGE_SIZE: i32 = 100;
const DEFAULT_PAGE_SIZE: i32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Sort {
    Newest,
    PriceAsc,
    PriceDesc,
    Name,
}

/// The filters of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Filters {
    /// A slug; its descendants are included.
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

    /// Reports whether a product matches, except for its category.
    pub fn matches(&self, product: &Product) -> bool {
        (self.min_price..=self.max_price).contains(&product.price)
            && self.in_stock.is_none_or(|in_stock| in_stock == (product.stock > 0))
    }

    /// Reports whether products in stock are included.
    pub fn includes_in_stock(&self) -> bool {
        self.in_stock != Some(false)
    }

    /// Reports whether products out of stock are included.
    pub fn includes_sold_out(&self) -> bool {
        self.in_stock != Some(true)
    }
}

/// Parses a page size: 1..100, 20 by default.
pub fn parse_limit(limit: Option<i32>) -> Result<i64, Violations> {
    let limit = limit.unwrap_or(DEFAULT_PAGE_SIZE);
    if (1..=MAX_PAGE_SIZE).contains(&limit) {
        Ok(i64::from(limit))
    } else {
        Err(Violations::from(("limit", "must be 1 to 100")))
    }
}

/// The sort key of a product in a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SortKey {
    /// A price, a negated price, microseconds since the Unix epoch, or a tier.
    Number(i64),
    /// A name in its sortable form.
    Text(String),
}

/// The cursor of a page: the product behind which it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCursor {
    #[serde(rename = "of")]
    list: cursor::List,
    pub key: SortKey,
    pub id: i64,
}

impl PageCursor {
    pub fn new(query: &impl Serialize, key: SortKey, id: i64) -> Self {
        Self { list: cursor::List::new(query), key, id }
    }

    /// Parses a cursor, which must belong to the same query.
    pub fn parse(cursor: &str, query: &impl Serialize) -> Result<Self, Violations> {
        let cursor: Self = cursor::decode(cursor)?;
        cursor::List::new(query).check(cursor.list)?;
        Ok(cursor)
    }

    pub fn encode(&self) -> String {
        cursor::encode(self)
    }
}

impl Sort {
    /// Reports whether a cursor of this order can have such a key.
    pub fn accepts(self, key: &SortKey) -> bool {
        match self {
            // PostgreSQL stores no NUL, and no name has one.
            Self::Name => matches!(key, SortKey::Text(name) if !name.contains('\0')),
            Self::Newest | Self::PriceAsc | Self::PriceDesc => matches!(key, SortKey::Number(_)),
        }
    }

    /// Returns the key before the first matching product: a list by price starts at its price range.
    pub fn start(self, filters: &Filters) -> (SortKey, i64) {
        match self {
            // The last day that a date can name, 9999-12-31, in microseconds.
            Self::Newest => (SortKey::Number(253_402_214_400_000_000), i64::MAX),
            Self::PriceAsc => (SortKey::Number(filters.min_price), 0),
            Self::PriceDesc => (SortKey::Number(-filters.max_price), 0),
            Self::Name => (SortKey::Text(String::new()), 0),
        }
    }
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub items: Vec<Product>,
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(category: Option<&str>) -> Filters {
        Filters::parse(category.map(ToOwned::to_owned), None, None, None).unwrap()
    }

    #[test]
    fn a_cursor_of_another_query_is_refused() {
        let query = (Sort::Name, filters(Some("shoes")));
        let cursor = PageCursor::new(&query, SortKey::Text("ü".repeat(200)), 7);
        assert_eq!(PageCursor::parse(&cursor.encode(), &query).unwrap(), cursor);
        for other in [(Sort::Newest, filters(Some("shoes"))), (Sort::Name, filters(None))] {
            assert!(PageCursor::parse(&cursor.encode(), &other).is_err());
        }
        assert!(PageCursor::parse("nonsense", &query).is_err());
    }

    #[test]
    fn a_cursor_holds_the_longest_name() {
        let query = (Sort::Name, filters(None));
        let cursor = PageCursor::new(&query, SortKey::Text("😀".repeat(200)), i64::MAX);
        assert!(PageCursor::parse(&cursor.encode(), &query).is_ok());
    }

    #[test]
    fn a_price_range_must_be_ordered_and_not_negative() {
        let parse = |min, max| Filters::parse(None, min, max, None).is_ok();
        assert!(parse(None, None) && parse(Some(0), Some(0)) && parse(Some(5), None));
        assert!(!parse(Some(2), Some(1)) && !parse(Some(-1), None) && !parse(None, Some(-1)));
    }

    #[test]
    fn a_page_size_out_of_bounds_is_refused() {
        assert_eq!(parse_limit(None).unwrap(), 20);
        assert_eq!(parse_limit(Some(100)).unwrap(), 100);
        for invalid in [0, -1, 101] {
            assert!(parse_limit(Some(invalid)).is_err(), "{invalid}");
        }
    }
}
