//! The categories as the search needs them: by slug, and by the words of their names.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::fold::index_terms;
use crate::category::Category;

/// The category tree as of one moment.
#[derive(Debug, Default)]
pub struct Tree {
    /// The number of changes of the tree so far.
    pub revision: i64,
    categories: HashMap<i64, Category>,
    children: HashMap<i64, Vec<i64>>,
    words: Vec<(BTreeSet<String>, i64)>,
}

impl Tree {
    pub fn new(categories: Vec<Category>, revision: i64) -> Self {
        let words = categories.iter().map(|category| (index_terms(&category.name), category.id)).collect();
        let mut children = HashMap::<i64, Vec<i64>>::new();
        for category in &categories {
            if let Some(parent) = category.parent_id {
                children.entry(parent).or_default().push(category.id);
            }
        }
        let categories = categories.into_iter().map(|category| (category.id, category)).collect();
        Self { revision, categories, children, words }
    }

    pub fn get(&self, id: i64) -> Option<&Category> {
        self.categories.get(&id)
    }

    /// The category with a slug and all below it; empty where there is none.
    pub fn with_descendants(&self, slug: &str) -> HashSet<i64> {
        let mut found = HashSet::new();
        let mut open: Vec<i64> =
            self.categories.values().filter(|one| one.slug == slug).map(|one| one.id).collect();
        while let Some(id) = open.pop() {
            if found.insert(id) {
                open.extend(self.children.get(&id).into_iter().flatten());
            }
        }
        found
    }

    /// A category and all above it.
    pub fn with_ancestors(&self, id: i64) -> impl Iterator<Item = &Category> {
        std::iter::successors(self.get(id), |category| self.get(category.parent_id?))
            // A tree is no deeper; a circle would be endless.
            .take(crate::category::DEEPEST)
    }

    /// The categories whose names have a word that `fits`.
    pub fn named(&self, fits: impl Fn(&str) -> bool) -> Vec<i64> {
        let fitting = self.words.iter().filter(|(words, _)| words.iter().any(|word| fits(word)));
        fitting.map(|(_, id)| *id).collect()
    }

    /// The words of all names.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().flat_map(|(words, _)| words).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_category_counts_with_all_below_it() {
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
        let tree = Tree::new(all, 0);
        assert_eq!(tree.with_descendants("home"), HashSet::from([1, 2, 3]));
        assert_eq!(tree.with_descendants("toys"), HashSet::from([4]));
        assert!(tree.with_descendants("unknown").is_empty());
        let above: Vec<i64> = tree.with_ancestors(3).map(|one| one.id).collect();
        assert_eq!(above, [3, 2, 1]);
        assert_eq!(tree.named(|word| word == "lamps"), [2, 3]);
    }
}
