//! Which words a query is really about.

use crate::store::search::{LONGER, LOOKED_UP};

/// Words of a query that are looked for; the rest of a longer one is left out.
const MOST: usize = 8;
/// Characters of a beginning with which all words are found that begin so, where there are many: of a shorter one
/// there may be so many that finding them takes long.
const BEGINNING: usize = 3;
/// Corrections of one word that are looked for.
const CORRECTIONS: usize = 3;

/// One word of a query, as the catalogue knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// In lower case, as PostgreSQL takes the query apart.
    pub word: String,
    /// Its English stem; `None` for a word that says nothing, as `the`.
    pub stem: Option<String>,
    /// Whether the catalogue has it just so.
    pub known: bool,
    /// Whether the catalogue has another form of it.
    pub stem_known: bool,
    /// Words of the catalogue that begin with it, the shortest first.
    pub longer: Vec<String>,
    /// Words of the catalogue that look like it, the most similar first.
    pub similar: Vec<String>,
}

/// For each word that counts, the words that will do for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(Vec<Vec<Term>>);

/// What will do for a word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Word(String),
    /// All words that begin so.
    Beginning(String),
}

impl Term {
    /// As it stands in a tsquery, whatever it is made of.
    fn quoted(&self) -> String {
        let quote = |word: &str| word.replace('\\', "\\\\").replace('\'', "''");
        match self {
            Self::Word(word) => format!("'{}'", quote(word)),
            Self::Beginning(word) => format!("'{}':*", quote(word)),
        }
    }
}

impl Words {
    /// Decides by what the catalogue knows, in the order of the query; where it is `open` its last word may
    /// be a beginning. A word that nothing is like is left out, as are those that say nothing beside others
    /// that do. `None` where nothing is left.
    pub fn choose(asked: Vec<Asked>, open: bool) -> Option<Self> {
        let last = asked.len().saturating_sub(1);
        // Of more words than were looked up, the last is not among them.
        let open = open && asked.len() < LOOKED_UP as usize;
        let says_something = asked.iter().any(|asked| asked.stem.is_some());
        let chosen: Vec<Vec<Term>> = asked
            .into_iter()
            .enumerate()
            .filter(|(at, asked)| asked.stem.is_some() || !says_something || (*at == last && open))
            .filter_map(|(at, asked)| alternatives(asked, open && at == last))
            .take(MOST)
            .collect();
        (!chosen.is_empty()).then_some(Self(chosen))
    }

    /// A tsquery: all the words.
    pub fn all(&self) -> String {
        self.join(" & ")
    }

    /// A tsquery: any of the words.
    pub fn any(&self) -> String {
        self.join(" | ")
    }

    fn join(&self, operator: &str) -> String {
        let one = |terms: &Vec<Term>| {
            let quoted: Vec<String> = terms.iter().map(Term::quoted).collect();
            format!("({})", quoted.join(" | "))
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(operator)
    }
}

/// What will do for a word; `None` where nothing will.
fn alternatives(asked: Asked, open: bool) -> Option<Vec<Term>> {
    // The catalogue's list has no words with digits: a SKU, a size.
    let has_digits = asked.word.contains(|c: char| c.is_ascii_digit());
    let has_many_longer = has_digits || asked.longer.len() >= LONGER as usize;
    let mut words = Vec::new();
    if open && has_many_longer && asked.word.chars().count() >= BEGINNING {
        words.push(Term::Beginning(asked.word.clone()));
    } else if asked.known || has_digits {
        words.push(Term::Word(asked.word.clone()));
    }
    if asked.stem_known {
        words.extend(asked.stem.filter(|stem| *stem != asked.word).map(Term::Word));
    }
    if open && !matches!(words.first(), Some(Term::Beginning(_))) {
        let longer = asked.longer.into_iter().map(Term::Word);
        words.extend(longer.filter(|longer| !words.contains(longer)).collect::<Vec<_>>());
    }
    if words.is_empty() {
        let slips = asked.similar.into_iter().map(|similar| (slips(&asked.word, &similar), similar));
        let allowed = allowed_slips(&asked.word);
        let mut near: Vec<(usize, String)> = slips.filter(|(slips, _)| *slips <= allowed).collect();
        // The most similar of those with the fewest slips; the sort is stable.
        near.sort_by_key(|(slips, _)| *slips);
        words.extend(near.into_iter().take(CORRECTIONS).map(|(_, word)| Term::Word(word)));
    }
    (!words.is_empty()).then_some(words)
}

fn allowed_slips(word: &str) -> usize {
    match word.chars().count() {
        ..=2 => 0,
        3..=4 => 1,
        5..=8 => 2,
        _ => 3,
    }
}

/// How many letters were missed, added, changed or swapped between two words (optimal string alignment).
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
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

    fn word(word: &str) -> Asked {
        Asked { word: word.to_owned(), stem: Some(word.to_owned()), ..Asked::default() }
    }

    fn known(text: &str) -> Asked {
        Asked { known: true, ..word(text) }
    }

    fn chosen(asked: Vec<Asked>, open: bool) -> String {
        Words::choose(asked, open).map(|words| words.all()).unwrap_or_default()
    }

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
            assert_eq!(slips(a, b), count, "{a} {b}");
            assert_eq!(slips(b, a), count, "{b} {a}");
        }
    }

    #[test]
    fn the_last_word_goes_on_while_it_is_typed() {
        let sne = || Asked { longer: vec!["sneaker".to_owned(), "sneakers".to_owned()], ..word("sne") };
        assert_eq!(chosen(vec![known("red"), sne()], true), "('red') & ('sneaker' | 'sneakers')");
        assert_eq!(chosen(vec![known("red"), sne()], false), "('red')");
        let many = (0..LONGER).map(|at| format!("back{at}")).collect();
        let backs = Asked { longer: many, stem: Some("back".to_owned()), stem_known: true, ..word("backs") };
        assert_eq!(chosen(vec![backs], true), "('backs':* | 'back')");
    }

    #[test]
    fn what_was_not_looked_up_cannot_be_a_beginning() {
        let mut asked = vec![word("xyzzy"); LOOKED_UP as usize - 1];
        asked.push(word("x20"));
        assert_eq!(chosen(asked[1..].to_vec(), true), "('x20':*)");
        assert_eq!(chosen(asked, true), "('x20')");
    }

    #[test]
    fn a_slip_is_corrected_and_a_bad_word_left_out() {
        let similar = vec!["speakers".to_owned(), "sneakers".to_owned(), "snacks".to_owned()];
        let slip = Asked { similar, ..word("sneakrs") };
        assert_eq!(chosen(vec![slip], true), "('sneakers' | 'speakers')");
        assert_eq!(chosen(vec![known("red"), word("xyzzy")], true), "('red')");
        assert_eq!(Words::choose(vec![word("xyzzy")], true), None);
    }

    #[test]
    fn words_that_say_nothing_count_only_alone() {
        let the = || Asked { stem: None, ..known("the") };
        assert_eq!(chosen(vec![the(), known("lamp")], true), "('lamp')");
        assert_eq!(chosen(vec![the()], true), "('the')");
    }

    #[test]
    fn another_form_of_a_word_will_do() {
        let walked = Asked { stem: Some("walk".to_owned()), stem_known: true, ..word("walked") };
        assert_eq!(chosen(vec![walked], false), "('walk')");
    }

    #[test]
    fn a_number_is_looked_for_as_it_is() {
        assert_eq!(chosen(vec![word("x200")], false), "('x200')");
        assert_eq!(chosen(vec![word("x2")], true), "('x2')");
        assert_eq!(chosen(vec![word("x20")], true), "('x20':*)");
    }

    #[test]
    fn no_word_gets_out_of_its_quotes() {
        assert_eq!(chosen(vec![known("o'\\1")], true), r"('o''\\1':*)");
    }
}
