//! Text normalization for search: folding by Unicode, and the terms of a text.
//!
//! Words are what Unicode calls letters and digits. Scripts that put no spaces between words have no words here: their
//! runs become n-grams (one and two characters), so that any characters in a row are found without a dictionary.

use std::collections::BTreeSet;

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

/// The length of a term; of a longer word the beginning counts. Characters.
const MAX_TERM_LEN: usize = 200;
/// The length of a compound that is a term beside its parts. Characters.
const MAX_COMPOUND_LEN: usize = 64;

/// One term of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    Word(String),
    /// One or two characters of a script without spaces.
    Gram(String),
}

/// Folds what readers take for the same: compatibility forms and width (NFKC), case (`ß` is `ss`, every Turkish i is
/// `i`), accents and vowel points. Texts that are equal under NFC and NFD are equal here.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let cased = text
        .nfkd()
        .filter(|char| !is_ignored(*char))
        // Full case folding: `ß` has its second letter in upper case alone, and `ẞ` none there.
        .flat_map(char::to_lowercase)
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase);
    let mut folded = String::with_capacity(text.len());
    for char in cased {
        match char {
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            'þ' => folded.push_str("th"),
            'ø' => folded.push('o'),
            'đ' | 'ð' => folded.push('d'),
            'ħ' => folded.push('h'),
            'ł' => folded.push('l'),
            'ŧ' => folded.push('t'),
            // Written either way in Arabic: teh marbuta and heh, alef maksura and yeh.
            'ة' => folded.push('ه'),
            'ى' => folded.push('ي'),
            _ => folded.push(char),
        }
    }
    folded.nfc().collect()
}

/// Reports whether a character of a decomposed text counts for nothing: accents of alphabets, points of Arabic and
/// Hebrew, and what has no width. Vowel signs of Indic scripts and Thai, and the marks of kana, are letters.
const fn is_ignored(char: char) -> bool {
    matches!(
        char,
        '\u{00ad}'
            | '\u{0300}'..='\u{036f}'
            | '\u{0591}'..='\u{05bd}'
            | '\u{05bf}'..='\u{05c7}'
            | '\u{0610}'..='\u{061a}'
            | '\u{0640}'
            | '\u{064b}'..='\u{065f}'
            | '\u{0670}'
            | '\u{06d6}'..='\u{06ed}'
            | '\u{1ab0}'..='\u{1aff}'
            | '\u{1dc0}'..='\u{1dff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{20d0}'..='\u{20ff}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{fe20}'..='\u{fe2f}'
            | '\u{feff}'
    )
}

/// Reports whether a character is of a script that puts no spaces between words. Korean does, but joins particles to
/// them.
const fn is_unspaced(char: char) -> bool {
    matches!(
        char,
        '\u{0e00}'..='\u{0eff}' // Thai, Lao
            | '\u{0f00}'..='\u{109f}' // Tibetan, Burmese
            | '\u{1100}'..='\u{11ff}' // Jamo
            | '\u{1780}'..='\u{17ff}' // Khmer
            | '\u{1950}'..='\u{19df}' // Tai Le, New Tai Lue
            | '\u{1a20}'..='\u{1aaf}' // Tai Tham
            | '\u{3005}'..='\u{3007}'
            | '\u{3040}'..='\u{30ff}' // kana
            | '\u{3100}'..='\u{318f}' // Bopomofo, Jamo
            | '\u{31a0}'..='\u{31ff}'
            | '\u{3400}'..='\u{4dbf}' // Han
            | '\u{4e00}'..='\u{9fff}'
            | '\u{a960}'..='\u{a97f}'
            | '\u{aa60}'..='\u{aa7f}'
            | '\u{ac00}'..='\u{d7ff}' // Hangul
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}'
    )
}

/// Characters that belong together.
#[derive(Debug)]
struct Piece<'a> {
    text: &'a str,
    unspaced: bool,
}

fn pieces(folded: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut start: Option<(usize, bool)> = None;
    for (at, char) in folded.char_indices() {
        let kind = (char.is_alphanumeric() || is_combining_mark(char)).then(|| is_unspaced(char));
        if let Some((from, unspaced)) = start
            && kind != Some(unspaced)
        {
            pieces.push(Piece { text: &folded[from..at], unspaced });
            start = None;
        }
        if let (Some(unspaced), None) = (kind, start) {
            start = Some((at, unspaced));
        }
    }
    if let Some((from, unspaced)) = start {
        pieces.push(Piece { text: &folded[from..], unspaced });
    }
    pieces
}

fn word(text: &str) -> String {
    text.chars().take(MAX_TERM_LEN).collect()
}

/// The pairs of neighbours in a run.
fn pairs(run: &str) -> impl Iterator<Item = String> {
    run.chars().zip(run.chars().skip(1)).map(|(first, second)| String::from_iter([first, second]))
}

/// The terms that a text is found by. What stands without spaces around a joint (`T-Shirt`, `men's`) is a term as a
/// whole too (`tshirt`).
pub fn index_terms(text: &str) -> BTreeSet<String> {
    let folded = fold(text);
    let mut terms = BTreeSet::new();
    for chunk in folded.split_whitespace() {
        let pieces = pieces(chunk);
        for piece in &pieces {
            if piece.unspaced {
                terms.extend(piece.text.chars().map(String::from));
                terms.extend(pairs(piece.text));
            } else {
                terms.insert(word(piece.text));
            }
        }
        if pieces.len() > 1 && !pieces.iter().any(|piece| piece.unspaced) {
            let compound: String = pieces.iter().map(|piece| piece.text).collect();
            if compound.chars().count() <= MAX_COMPOUND_LEN {
                terms.insert(compound);
            }
        }
    }
    terms
}

/// The terms of a query, each once, in the order of the query.
pub fn query_terms(query: &str) -> Vec<Term> {
    let folded = fold(query);
    let mut terms = Vec::new();
    for piece in pieces(&folded) {
        if !piece.unspaced {
            terms.push(Term::Word(word(piece.text)));
        } else if piece.text.chars().nth(1).is_none() {
            terms.push(Term::Gram(piece.text.to_owned()));
        } else {
            terms.extend(pairs(piece.text).map(Term::Gram));
        }
    }
    // The last one stays last: it may be going on.
    let mut seen = BTreeSet::new();
    let mut kept: Vec<Term> = Vec::with_capacity(terms.len());
    for term in terms.into_iter().rev() {
        let (Term::Word(text) | Term::Gram(text)) = &term;
        if seen.insert(text.clone()) {
            kept.push(term);
        }
    }
    kept.reverse();
    kept
}

/// A text by its letters and digits alone, a space between pieces: texts that differ in case, accents and punctuation
/// are equal.
pub fn normalize(text: &str) -> String {
    let folded = fold(text);
    pieces(&folded).iter().map(|piece| piece.text).collect::<Vec<_>>().join(" ")
}

/// A text by its letters and digits alone, without anything between: a SKU however it is separated.
pub fn squeeze(text: &str) -> String {
    let folded = fold(text);
    pieces(&folded).iter().map(|piece| piece.text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(words: [&str; N]) -> Vec<Term> {
        words.into_iter().map(|word| Term::Word(word.to_owned())).collect()
    }

    fn grams<const N: usize>(grams: [&str; N]) -> Vec<Term> {
        grams.into_iter().map(|gram| Term::Gram(gram.to_owned())).collect()
    }

    #[test]
    fn what_readers_take_for_the_same_folds_to_the_same() {
        for (one, other) in [
            ("Café", "cafe"),
            ("cafe\u{301}", "CAFÉ"),
            ("Straße", "STRASSE"),
            ("GROẞ", "gross"),
            ("İstanbul", "istanbul"),
            ("IŞIK", "ışık"),
            ("ışık", "isik"),
            ("ＬＥＤ　１００", "led 100"),
            ("ｱｲｽ", "アイス"),
            ("ﬁsh", "fish"),
            ("Łódź", "lodz"),
            ("smørrebrød", "SMORREBROD"),
            ("ΣΊΣΥΦΟΣ", "σισυφος"),
            ("مُحَمَّد", "محمد"),
            ("أحمد", "احمد"),
            ("مدرسة", "مدرسه"),
            ("שָׁלוֹם", "שלום"),
            ("soft\u{ad}ware", "software"),
            ("ㅎㅏㄴ", "ㅎㅏㄴ"),
            ("각", "\u{1100}\u{1161}\u{11a8}"),
        ] {
            assert_eq!(fold(one), fold(other), "{one} {other}");
        }
        // Other letters in Thai, Hindi and Japanese.
        for (one, other) in [("ชา", "ช"), ("कि", "क"), ("が", "か")] {
            assert_ne!(fold(one), fold(other), "{one} {other}");
        }
    }

    #[test]
    fn folding_twice_is_folding_once() {
        // Everything but Han, Hangul and what lies beyond.
        for code in (0..=0x33ff_u32).chain(0xf900..=0xffff) {
            let Some(char) = char::from_u32(code) else { continue };
            let once = fold(&format!("a{char}b"));
            assert_eq!(fold(&once), once, "U+{code:04X}");
        }
    }

    #[test]
    fn a_query_has_words_and_pairs_of_characters() {
        assert_eq!(query_terms("Red, T-Shirt!"), words(["red", "t", "shirt"]));
        assert_eq!(query_terms("茶杯"), grams(["茶杯"]));
        assert_eq!(query_terms("茶"), grams(["茶"]));
        assert_eq!(query_terms("陶瓷茶杯"), grams(["陶瓷", "瓷茶", "茶杯"]));
        assert_eq!(query_terms("300毫升"), [words(["300"]), grams(["毫升"])].concat());
        assert_eq!(query_terms("red blue red"), words(["blue", "red"]));
        assert_eq!(query_terms("😀 %"), []);
    }

    #[test]
    fn a_text_is_found_by_all_that_a_query_of_it_has() {
        for text in
            ["红色陶瓷茶杯 300毫升", "แก้วกาแฟ", "T-Shirt Größe XL", "ラーメン丼", "men's", "찻잔 세트"]
        {
            let terms = index_terms(text);
            let chars: Vec<char> = text.chars().collect();
            for from in 0..chars.len() {
                for to in from + 1..=chars.len() {
                    let part: String = chars[from..to].iter().collect();
                    for term in query_terms(&part) {
                        if let Term::Gram(gram) = term {
                            assert!(terms.contains(&gram), "{gram} of {part} in {text}");
                        }
                    }
                }
            }
            for term in query_terms(text) {
                let (Term::Word(term) | Term::Gram(term)) = term;
                assert!(terms.contains(&term), "{term} in {text}");
            }
        }
        assert!(index_terms("T-Shirt").contains("tshirt"));
        assert!(index_terms(&"x".repeat(9000)).contains(&"x".repeat(200)));
    }

    #[test]
    fn punctuation_does_not_part_equal_names_and_skus() {
        assert_eq!(normalize("Leather Sheath, 18 cm"), "leather sheath 18 cm");
        assert_eq!(normalize("  "), "");
        for sku in ["QWCGQ-RED-XL", "qwcgq_red.xl", "QWCGQ RED XL", "qwcgqredxl"] {
            assert_eq!(squeeze(sku), "qwcgqredxl");
        }
    }
}
