//! Query resolution: the terms of a query against the index, as exact terms, as a prefix while the last word
//! is typed, or corrected by edit distance.

use std::collections::{BTreeMap, BTreeSet};

use tantivy::Term;

use super::{
    analyzer::{self, query_terms},
    index::Snapshot,
    segment::{Docs, Segment},
};

/// The minimum length of a prefix of a SKU's part: shorter ones could match as many terms as there are
/// products. Characters.
const MIN_CODE_PREFIX_LEN: usize = 3;
/// The minimum length of a term, as typed or as meant, for one tolerated edit, and for two. Characters.
const MIN_LEN_FOR_ONE_EDIT: usize = 4;
const MIN_LEN_FOR_TWO_EDITS: usize = 8;

/// The documents of one segment that match a term; each set contains the one before.
#[derive(Clone, Debug, Default)]
pub struct SegmentMatches {
    /// Exact matches in the name or the SKU.
    pub exact: Docs,
    /// Exact, prefix or corrected matches in the name or the SKU.
    pub name: Docs,
    /// Matches in the name, the SKU or the description.
    pub text: Docs,
    /// Matches in any field, including the name of the category.
    pub any: Docs,
}

/// The matches of one query term, by segment.
pub type TermMatches = Vec<SegmentMatches>;

/// A token of the query, as it is matched.
#[derive(Debug)]
enum QueryToken {
    Exact(String),
    /// The last word, which may be incomplete.
    Prefix(String),
    /// The candidates of a spelling correction.
    Corrected(BTreeSet<String>),
}

/// Resolves the terms of a query. A term without matches and corrections is dropped.
pub fn resolve(snapshot: &Snapshot, query: &str) -> tantivy::Result<Vec<TermMatches>> {
    let is_prefix = query.chars().next_back().is_some_and(char::is_alphanumeric);
    let terms = query_terms(query);
    let last = terms.len().saturating_sub(1);
    let mut resolved = Vec::with_capacity(terms.len());
    for (at, term) in terms.into_iter().enumerate() {
        let token = match &term {
            analyzer::Term::Word(word) if at == last && is_prefix => QueryToken::Prefix(word.clone()),
            analyzer::Term::Word(text) | analyzer::Term::Ngram(text) => QueryToken::Exact(text.clone()),
        };
        let mut matches = match_segments(snapshot, &token)?;
        if is_empty(&matches)
            && let analyzer::Term::Word(text) = &term
            && let Some(corrected) = find_corrections(snapshot, text)?
        {
            matches = corrected;
        }
        if !is_empty(&matches) {
            resolved.push(matches);
        }
    }
    Ok(resolved)
}

fn is_empty(term: &TermMatches) -> bool {
    term.iter().all(|matches| matches.any.is_empty())
}

fn match_segments(snapshot: &Snapshot, token: &QueryToken) -> tantivy::Result<TermMatches> {
    let categories = match token {
        QueryToken::Exact(text) => snapshot.categories.with_name_word(|word| word == text),
        QueryToken::Prefix(text) => snapshot.categories.with_name_word(|word| word.starts_with(text)),
        QueryToken::Corrected(texts) => snapshot.categories.with_name_word(|word| texts.contains(word)),
    };
    snapshot.segments.iter().map(|segment| match_segment(snapshot, segment, token, &categories)).collect()
}

fn match_segment(
    snapshot: &Snapshot,
    segment: &Segment,
    token: &QueryToken,
    categories: &[i64],
) -> tantivy::Result<SegmentMatches> {
    let fields = snapshot.fields;
    let in_name = |text: &str| -> tantivy::Result<Docs> {
        Ok(segment.word(fields.name, text)? | segment.word(fields.code, text)?)
    };
    let mut matches = match token {
        QueryToken::Exact(text) => {
            let exact = in_name(text)?;
            SegmentMatches {
                text: &exact | segment.word(fields.text, text)?,
                name: exact.clone(),
                exact,
                any: Docs::new(),
            }
        }
        QueryToken::Prefix(text) => {
            let exact = in_name(text)?;
            let mut name = &exact | segment.prefix(fields.name, text)?;
            if text.chars().count() >= MIN_CODE_PREFIX_LEN {
                name |= segment.prefix(fields.code, text)?;
            }
            SegmentMatches { text: &name | segment.prefix(fields.text, text)?, name, exact, any: Docs::new() }
        }
        QueryToken::Corrected(texts) => {
            let (mut name, mut any_text) = (Docs::new(), Docs::new());
            for text in texts {
                name |= in_name(text)?;
                any_text |= segment.word(fields.text, text)?;
            }
            any_text |= &name;
            SegmentMatches { name, text: any_text, ..SegmentMatches::default() }
        }
    };
    matches.any.clone_from(&matches.text);
    for category in categories {
        matches.any |= segment.term(&Term::from_field_i64(fields.category, *category))?;
    }
    Ok(matches)
}

/// Finds the matches of a misspelt word: those of the terms with the smallest edit distance that a product
/// has now. Terms with digits are not corrected.
fn find_corrections(snapshot: &Snapshot, word: &str) -> tantivy::Result<Option<TermMatches>> {
    let len = word.chars().count();
    if word.contains(|char: char| char.is_numeric()) {
        return Ok(None);
    }
    for edits in [1, 2] {
        // The intended word may be longer by as many letters.
        if len + usize::from(edits) < (if edits == 1 { MIN_LEN_FOR_ONE_EDIT } else { MIN_LEN_FOR_TWO_EDITS })
        {
            return Ok(None);
        }
        let mut candidates = BTreeMap::<usize, BTreeSet<String>>::new();
        let mut add = |candidate: &str| {
            if let Some(distance) = allowed_distance(word, candidate) {
                candidates.entry(distance).or_default().insert(candidate.to_owned());
            }
        };
        let fields = snapshot.fields;
        for segment in &snapshot.segments {
            for field in [fields.name, fields.code, fields.text] {
                for candidate in segment.fuzzy_terms(field, word, edits)? {
                    add(&candidate);
                }
            }
        }
        snapshot.categories.name_words().for_each(add);
        for words in candidates.into_values() {
            let corrected = match_segments(snapshot, &QueryToken::Corrected(words))?;
            if !is_empty(&corrected) {
                return Ok(Some(corrected));
            }
        }
    }
    Ok(None)
}

/// Returns the edit distance between a typed and an intended word, if the longer one tolerates so many edits.
fn allowed_distance(typed: &str, intended: &str) -> Option<usize> {
    let (typed, intended): (Vec<char>, Vec<char>) = (typed.chars().collect(), intended.chars().collect());
    let len = typed.len().max(intended.len());
    if typed.len().abs_diff(intended.len()) > 2 {
        return None;
    }
    let distance = edit_distance(&typed, &intended);
    (distance <= max_edits(len)).then_some(distance)
}

/// Returns the number of edits that a term of this length tolerates. Characters.
const fn max_edits(len: usize) -> usize {
    match len {
        MIN_LEN_FOR_TWO_EDITS.. => 2,
        MIN_LEN_FOR_ONE_EDIT.. => 1,
        _ => 0,
    }
}

/// Returns the edit distance between two words (optimal string alignment): insertions, deletions,
/// substitutions and transpositions.
fn edit_distance(a: &[char], b: &[char]) -> usize {
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
    fn edit_distance_counts_edits_and_transpositions() {
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
            assert_eq!(edit_distance(&x, &y), count, "{a} {b}");
            assert_eq!(edit_distance(&y, &x), count, "{b} {a}");
        }
    }

    #[test]
    fn tolerated_edits_depend_on_the_word_length() {
        for (typed, intended, is_allowed) in [
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
            assert_eq!(allowed_distance(typed, intended).is_some(), is_allowed, "{typed} {intended}");
        }
    }
}
