//! The rules of a category.

use serde::{Deserialize, Serialize};

use crate::validation::{ValidationError, single_line};

/// A category, a node of a forest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    pub id: i64,
    pub slug: String,
    pub name: String,
    pub parent_id: Option<i64>,
}

/// A slug: the name of a category in URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slug(String);

impl Slug {
    const MAX_LEN: usize = 64;

    pub fn parse(slug: String) -> Result<Self, ValidationError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=Self::MAX_LEN).contains(&slug.len()) && slug.bytes().all(allowed) {
            Ok(Self(slug))
        } else {
            Err("must be 1 to 64 of the characters a-z 0-9 -")
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CategoryName(String);

impl CategoryName {
    const MAX_LEN: usize = 100;

    pub fn parse(name: String) -> Result<Self, ValidationError> {
        single_line(name, Self::MAX_LEN).map(Self).ok_or("must be one line of 1 to 100 characters, not blank")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug)]
pub struct NewCategory {
    pub slug: Slug,
    pub name: CategoryName,
    pub parent_id: Option<i64>,
}

/// The changes of a category by an admin; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct CategoryChanges {
    pub slug: Option<Slug>,
    pub name: Option<CategoryName>,
    /// The inner `None` makes it a root.
    pub parent_id: Option<Option<i64>>,
}

/// The maximum depth of a tree, including the root. It bounds the query for a category with its descendants.
pub const MAX_DEPTH: usize = 16;

/// Checks whether `category` may have the parent `parent` in the tree of `all`: no cycle, and not too deep.
pub fn validate_parent(all: &[Category], category: Option<i64>, parent: i64) -> Result<(), ValidationError> {
    let mut above = 0;
    let mut at = Some(parent);
    while let Some(id) = at {
        if Some(id) == category {
            return Err("must not be the category itself or one below it");
        }
        above += 1;
        if above > MAX_DEPTH {
            break;
        }
        let ancestor = all.iter().find(|one| one.id == id).ok_or("no such category")?;
        at = ancestor.parent_id;
    }
    let below = category.map_or(1, |id| height(all, id, MAX_DEPTH));
    if above + below > MAX_DEPTH { Err("would make the tree deeper than 16 levels") } else { Ok(()) }
}

/// Returns the height of the tree that starts at `id`, at most `limit` levels.
fn height(all: &[Category], id: i64, limit: usize) -> usize {
    if limit == 0 {
        return 0;
    }
    let below = all.iter().filter(|one| one.parent_id == Some(id));
    1 + below.map(|one| height(all, one.id, limit - 1)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the categories 1 > 2 > … > `depth`.
    fn chain(depth: i64) -> Vec<Category> {
        (1..=depth)
            .map(|id| Category {
                id,
                slug: format!("c{id}"),
                name: format!("C{id}"),
                parent_id: (id > 1).then_some(id - 1),
            })
            .collect()
    }

    #[test]
    fn a_slug_with_invalid_characters_or_length_is_refused() {
        assert!(Slug::parse("shoes-2".to_owned()).is_ok());
        for invalid in ["", "Shoes", "a_b", "ä", &"x".repeat(65)] {
            assert!(Slug::parse(invalid.to_owned()).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_category_below_itself_is_refused() {
        let all = chain(3);
        assert!(validate_parent(&all, Some(1), 1).is_err());
        assert!(validate_parent(&all, Some(1), 3).is_err());
        assert!(validate_parent(&all, Some(3), 1).is_ok());
        assert!(validate_parent(&all, None, 3).is_ok());
        assert!(validate_parent(&all, None, 9).is_err());
    }

    #[test]
    fn a_tree_deeper_than_sixteen_levels_is_refused() {
        assert!(validate_parent(&chain(15), None, 15).is_ok());
        assert!(validate_parent(&chain(16), None, 16).is_err());
        // A tree of two levels below a deep one.
        let mut all = chain(15);
        all.push(Category { id: 20, slug: "a".to_owned(), name: "A".to_owned(), parent_id: None });
        all.push(Category { id: 21, slug: "b".to_owned(), name: "B".to_owned(), parent_id: Some(20) });
        assert!(validate_parent(&all, Some(20), 14).is_ok());
        assert!(validate_parent(&all, Some(20), 15).is_err());
    }
}
