//! The words of a query in the index: as they are, as beginnings while they are typed, else corrected.

use std::collections::{BTreeMap, BTreeSet};

use tantivy::Term;

use super::{
    fold::{self, query_terms},
    index::Snapshot,
    segment::{Docs, Segment},
};

/// The length of a beginning of a SKU's parts: of a shorter one there may be as many as products. Characters.
const MIN_CODE_PREFIX: usize = 3;
/// The length of a word, as it is typed or meant, in which one slip is forgiven, and two. Characters.
const ONE_SLIP: usize = 4;
const TWO_SLIPS: usize = 8;

/// The documents of one segment that one word of the query stands in; each set contains the one before.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// In the name or the SKU, as it is typed.
    pub exact: Docs,
    /// In the name or the SKU, as a beginning or misspelt too.
    pub name: Docs,
    /// There or in the description.
    pub near: Docs,
    /// There or in the name of the category.
    pub any: Docs,
}

/// One word of the query, with its matches in each segment.
pub type Word = Vec<Matches>;

/// How a word is looked for.
#[derive(Debug)]
enum Form {
    Exact(String),
    /// The last word, which may be going on.
    Open(String),
    /// The words that it may have meant.
    Corrected(BTreeSet<String>),
}

/// Finds the words of a query. A word that nothing is like is left out.
pub fn find(snapshot: &Snapshot, query: &str) -> tantivy::Result<Vec<Word>> {
    let is_open = query.chars().next_back().is_some_and(char::is_alphanumeric);
    let terms = query_terms(query);
    let last = terms.len().saturating_sub(1);
    let mut words = Vec::with_capacity(terms.len());
    for (at, term) in terms.into_iter().enumerate() {
        let form = match &term {
            fold::Term::Word(word) if at == last && is_open => Form::Open(word.clone()),
            fold::Term::Word(text) | fold::Term::Gram(text) => Form::Exact(text.clone()),
        };
        let mut word = in_all(snapshot, &form)?;
        if is_nowhere(&word)
            && let fold::Term::Word(text) = &term
            && let Some(corrected) = correct(snapshot, text)?
        {
            word = corrected;
        }
        if !is_nowhere(&word) {
            words.push(word);
        }
    }
    Ok(words)
}

fn is_nowhere(word: &Word) -> bool {
    word.iter().all(|matches| matches.any.is_empty())
}

fn in_all(snapshot: &Snapshot, form: &Form) -> tantivy::Result<Word> {
    let categories = match form {
        Form::Exact(text) => snapshot.tree.named(|word| word == text),
        Form::Open(text) => snapshot.tree.named(|word| word.starts_with(text)),
        Form::Corrected(texts) => snapshot.tree.named(|word| texts.contains(word)),
    };
    snapshot.segments.iter().map(|segment| in_one(snapshot, segment, form, &categories)).collect()
}

fn in_one(
    snapshot: &Snapshot,
    segment: &Segment,
    form: &Form,
    categories: &[i64],
) -> tantivy::Result<Matches> {
    let fields = snapshot.fields;
    let in_name = |text: &str| -> tantivy::Result<Docs> {
        Ok(segment.word(fields.name, text)? | segment.word(fields.code, text)?)
    };
    let mut matches = match form {
        Form::Exact(text) => {
            let exact = in_name(text)?;
            Matches {
                near: &exact | segment.word(fields.text, text)?,
                name: exact.clone(),
                exact,
                any: Docs::new(),
            }
        }
        Form::Open(text) => {
            let exact = in_name(text)?;
            let mut name = &exact | segment.prefix(fields.name, text)?;
            if text.chars().count() >= MIN_CODE_PREFIX {
                name |= segment.prefix(fields.code, text)?;
            }
            Matches { near: &name | segment.prefix(fields.text, text)?, name, exact, any: Docs::new() }
        }
        Form::Corrected(texts) => {
            let (mut name, mut near) = (Docs::new(), Docs::new());
            for text in texts {
                name |= in_name(text)?;
                near |= segment.word(fields.text, text)?;
            }
            near |= &name;
            Matches { name, near, ..Matches::default() }
        }
    };
    matches.any.clone_from(&matches.near);
    for category in categories {
        matches.any |= segment.term(&Term::from_field_i64(fields.category, *category))?;
    }
    Ok(matches)
}

/// Looks for the words that a misspelt one may have meant: those with the fewest slips that some product has now. A
/// number is looked for as it is.
fn correct(snapshot: &Snapshot, word: &str) -> tantivy::Result<Option<Word>> {
    let len = word.chars().count();
    if word.contains(|char: char| char.is_numeric()) {
        return Ok(None);
    }
    for distance in [1, 2] {
        // The word that is meant may be longer by as many letters.
        if len + usize::from(distance) < (if distance == 1 { ONE_SLIP } else { TWO_SLIPS }) {
            return Ok(None);
        }
        let mut found = BTreeMap::<usize, BTreeSet<String>>::new();
        let mut add = |candidate: &str| {
            if let Some(slips) = forgiven_slips(word, candidate) {
                found.entry(slips).or_default().insert(candidate.to_owned());
            }
        };
        let fields = snapshot.fields;
        for segment in &snapshot.segments {
            for field in [fields.name, fields.code, fields.text] {
                for candidate in segment.similar(field, word, distance)? {
                    add(&candidate);
                }
            }
        }
        snapshot.tree.words().for_each(add);
        for candidates in found.into_values() {
            let corrected = in_all(snapshot, &Form::Corrected(candidates))?;
            if !is_nowhere(&corrected) {
                return Ok(Some(corrected));
            }
        }
    }
    Ok(None)
}

/// The number of slips between a word as it is typed and one that may be meant, if the longer of them is long enough for
/// so many.
fn forgiven_slips(typed: &str, meant: &str) -> Option<usize> {
    let (typed, meant): (Vec<char>, Vec<char>) = (typed.chars().collect(), meant.chars().collect());
    let len = typed.len().max(meant.len());
    if typed.len().abs_diff(meant.len()) > 2 {
        return None;
    }
    let slips = slips(&typed, &meant);
    let allowed = match len {
        TWO_SLIPS.. => 2,
        ONE_SLIP.. => 1,
        _ => 0,
    };
    (slips <= allowed).then_some(slips)
}

/// How many letters were missed, added, changed or swapped between two words (optimal string alignment).
fn slips(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        for (a, b, count) in [
            ("", "", 0),
            ("abc", "", 3),
            ("sneakers", "sneakers", 0),
            ("sneakrs", "sneakers", 1),
            ("sneakesr", "sneakers", 1),
            ("snaekors", "sneakers", 2),
            ("grün", "grun", 1),
        ] {
            let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            assert_eq!(slips(&x, &y), count, "{a} {b}");
            assert_eq!(slips(&y, &x), count, "{b} {a}");
        }
    }

    #[test]
    fn slips_are_forgiven_by_the_length_of_the_word() {
        for (typed, meant, forgiven) in [
            ("lapm", "lamp", true),
            ("lmp", "lamp", true),
            ("lampp", "lamp", true),
            ("mug", "rug", false),
            ("mg", "mug", false),
            ("lmap", "lamps", false),
            ("elephnt", "elephant", true),
            ("elphnt", "elephant", true),
            ("elpnt", "elephant", false),
            ("kettles", "settled", false),
        ] {
            assert_eq!(forgiven_slips(typed, meant).is_some(), forgiven, "{typed} {meant}");
        }
    }
}
