//! The categories as the search needs them: by slug, and by the words of their names.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::analyzer::index_terms;
use crate::category::Category;

/// An immutable snapshot of the category tree.
#[derive(Debug, Default)]
pub struct CategoryTree {
    /// The revision of the tree: the number of its changes.
    pub revision: i64,
    categories: HashMap<i64, Category>,
    children: HashMap<i64, Vec<i64>>,
    name_words: Vec<(BTreeSet<String>, i64)>,
}

impl CategoryTree {
    pub fn new(categories: Vec<Category>, revision: i64) -> Self {
        let name_words =
            categories.iter().map(|category| (index_terms(&category.name), category.id)).collect();
        let mut children = HashMap::<i64, Vec<i64>>::new();
        for category in &categories {
            if let Some(parent) = category.parent_id {
                children.entry(parent).or_default().push(category.id);
            }
        }
        let categories = categories.into_iter().map(|category| (category.id, category)).collect();
        Self { revision, categories, children, name_words }
    }

    pub fn get(&self, id: i64) -> Option<&Category> {
        self.categories.get(&id)
    }

    /// Returns the category with a slug and its descendants; empty if there is none.
    pub fn with_descendants(&self, slug: &str) -> HashSet<i64> {
        let mut ids = HashSet::new();
        let mut pending: Vec<i64> =
            self.categories.values().filter(|one| one.slug == slug).map(|one| one.id).collect();
        while let Some(id) = pending.pop() {
            if ids.insert(id) {
                pending.extend(self.children.get(&id).into_iter().flatten());
            }
        }
        ids
    }

    /// Returns a category and its ancestors.
    pub fn with_ancestors(&self, id: i64) -> impl Iterator<Item = &Category> {
        std::iter::successors(self.get(id), |category| self.get(category.parent_id?))
            // The depth of a tree is bounded; the bound also ends a cycle.
            .take(crate::category::MAX_DEPTH)
    }

    /// Returns the categories whose names have a word that `matches`.
    pub fn with_name_word(&self, matches: impl Fn(&str) -> bool) -> Vec<i64> {
        let matching = self.name_words.iter().filter(|(words, _)| words.iter().any(|word| matches(word)));
        matching.map(|(_, id)| *id).collect()
    }

    /// Returns the words of all names.
    pub fn name_words(&self) -> impl Iterator<Item = &str> {
        self.name_words.iter().flat_map(|(words, _)| words).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_category_includes_its_descendants() {
        let category = |id, slug: &str, parent_id| Category {
            id,
            slug: slug.to_owned(),
            name: slug.to_uppercase(),
            parent_id,
        };
        let all = vec![
            category(1, "home", None),
            category(2, "lamps", Some(1)),
            category(3, "desk-lamps", Some(2)),
            category(4, "toys", None),
        ];
        let tree = CategoryTree::new(all, 0);
        assert_eq!(tree.with_descendants("home"), HashSet::from([1, 2, 3]));
        assert_eq!(tree.with_descendants("toys"), HashSet::from([4]));
        assert!(tree.with_descendants("unknown").is_empty());
        let above: Vec<i64> = tree.with_ancestors(3).map(|one| one.id).collect();
        assert_eq!(above, [3, 2, 1]);
        assert_eq!(tree.with_name_word(|word| word == "lamps"), [2, 3]);
    }
}
