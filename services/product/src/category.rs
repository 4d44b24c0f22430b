//! The rules of a category.

use serde::{Deserialize, Serialize};

use crate::product::{Fault, line};

/// A category, a node of a forest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    pub id: i64,
    pub slug: String,
    pub name: String,
    pub parent_id: Option<i64>,
}

/// What stands for a category in an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slug(String);

impl Slug {
    const LONGEST: usize = 64;

    pub fn parse(slug: String) -> Result<Self, Fault> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=Self::LONGEST).contains(&slug.len()) && slug.bytes().all(allowed) {
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
    const LONGEST: usize = 100;

    pub fn parse(name: String) -> Result<Self, Fault> {
        line(name, Self::LONGEST).map(Self).ok_or("must be one line of 1 to 100 characters, not blank")
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

/// What an admin changes; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct CategoryChanges {
    pub slug: Option<Slug>,
    pub name: Option<CategoryName>,
    /// The inner `None` makes it a root.
    pub parent_id: Option<Option<i64>>,
}

/// How deep a tree may be, roots included: a list with its descendants must stay one quick query.
pub const DEEPEST: usize = 16;

/// Whether `category` may hang below `parent` in the tree of `all`: no circle, and not too deep.
pub fn may_hang(all: &[Category], category: Option<i64>, parent: i64) -> Result<(), Fault> {
    let mut above = 0;
    let mut at = Some(parent);
    while let Some(id) = at {
        if Some(id) == category {
            return Err("must not be the category itself or one below it");
        }
        above += 1;
        if above > DEEPEST {
            break;
        }
        let found = all.iter().find(|one| one.id == id).ok_or("no such category")?;
        at = found.parent_id;
    }
    let below = category.map_or(1, |id| height(all, id, DEEPEST));
    if above + below > DEEPEST { Err("would make the tree deeper than 16 levels") } else { Ok(()) }
}

/// Levels of the tree that begins with `id`, itself included; `most` at most.
fn height(all: &[Category], id: i64, most: usize) -> usize {
    if most == 0 {
        return 0;
    }
    let below = all.iter().filter(|one| one.parent_id == Some(id));
    1 + below.map(|one| height(all, one.id, most - 1)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 > 2 > … > `depth`.
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
    fn a_slug_is_lower_case() {
        assert!(Slug::parse("shoes-2".to_owned()).is_ok());
        for odd in ["", "Shoes", "a_b", "ä", &"x".repeat(65)] {
            assert!(Slug::parse(odd.to_owned()).is_err(), "{odd}");
        }
    }

    #[test]
    fn no_category_hangs_below_itself() {
        let all = chain(3);
        assert!(may_hang(&all, Some(1), 1).is_err());
        assert!(may_hang(&all, Some(1), 3).is_err());
        assert!(may_hang(&all, Some(3), 1).is_ok());
        assert!(may_hang(&all, None, 3).is_ok());
        assert!(may_hang(&all, None, 9).is_err());
    }

    #[test]
    fn a_tree_has_sixteen_levels_at_most() {
        assert!(may_hang(&chain(15), None, 15).is_ok());
        assert!(may_hang(&chain(16), None, 16).is_err());
        // A tree of two levels below one of many.
        let mut all = chain(15);
        all.push(Category { id: 20, slug: "a".to_owned(), name: "A".to_owned(), parent_id: None });
        all.push(Category { id: 21, slug: "b".to_owned(), name: "B".to_owned(), parent_id: Some(20) });
        assert!(may_hang(&all, Some(20), 14).is_ok());
        assert!(may_hang(&all, Some(20), 15).is_err());
    }
}
