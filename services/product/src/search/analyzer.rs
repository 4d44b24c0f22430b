//! The text analyzer: Unicode folding, tokenization, and the terms of a text or a query.
//!
//! Words consist of Unicode letters and digits. Scripts without spaces between words are split into n-grams
//! of one and two characters, so that any substring is found without a dictionary.

use std::collections::BTreeSet;

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

/// The maximum length of a term; longer words are truncated. Characters.
const MAX_TERM_LEN: usize = 200;
/// The maximum length of a compound that is a term beside its parts. Characters.
const MAX_COMPOUND_LEN: usize = 64;

/// One term of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    Word(String),
    /// An n-gram: one or two characters of a script without spaces.
    Ngram(String),
}

/// Folds equivalent characters: compatibility forms and width (NFKC), case (`ß` is `ss`, every Turkish i is
/// `i`), accents and vowel points. Texts that are equal under NFC and NFD fold to the same text.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let cased = text
        .nfkd()
        .filter(|char| !is_ignored(*char))
        // Full case folding: `ß` expands only in upper case, and `ẞ` does not.
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
            // Arabic spelling variants: teh marbuta and heh, alef maksura and yeh.
            'ة' => folded.push('ه'),
            'ى' => folded.push('ي'),
            _ => folded.push(char),
        }
    }
    folded.nfc().collect()
}

/// Reports whether folding drops a character of a decomposed text: accents of alphabets, points of Arabic and
/// Hebrew, and zero-width characters. Vowel signs of Indic scripts and Thai, and the marks of kana, are kept
/// as letters.
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

/// Reports whether a character is of a script without spaces between words. Korean is treated as one, because
/// it joins particles to words.
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

/// A run of letters and digits, of one kind of script.
#[derive(Debug)]
struct Token<'a> {
    text: &'a str,
    unspaced: bool,
}

fn tokenize(folded: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut start: Option<(usize, bool)> = None;
    for (at, char) in folded.char_indices() {
        let kind = (char.is_alphanumeric() || is_combining_mark(char)).then(|| is_unspaced(char));
        if let Some((from, unspaced)) = start
            && kind != Some(unspaced)
        {
            tokens.push(Token { text: &folded[from..at], unspaced });
            start = None;
        }
        if let (Some(unspaced), None) = (kind, start) {
            start = Some((at, unspaced));
        }
    }
    if let Some((from, unspaced)) = start {
        tokens.push(Token { text: &folded[from..], unspaced });
    }
    tokens
}

fn truncate(text: &str) -> String {
    text.chars().take(MAX_TERM_LEN).collect()
}

/// Returns the pairs of adjacent characters in a run.
fn bigrams(run: &str) -> impl Iterator<Item = String> {
    run.chars().zip(run.chars().skip(1)).map(|(first, second)| String::from_iter([first, second]))
}

/// Returns the terms under which a text is indexed. A compound without spaces (`T-Shirt`, `men's`) is also
/// indexed as a whole (`tshirt`).
pub fn index_terms(text: &str) -> BTreeSet<String> {
    let folded = fold(text);
    let mut terms = BTreeSet::new();
    for chunk in folded.split_whitespace() {
        let tokens = tokenize(chunk);
        for token in &tokens {
            if token.unspaced {
                terms.extend(token.text.chars().map(String::from));
                terms.extend(bigrams(token.text));
            } else {
                terms.insert(truncate(token.text));
            }
        }
        if tokens.len() > 1 && !tokens.iter().any(|token| token.unspaced) {
            let compound: String = tokens.iter().map(|token| token.text).collect();
            if compound.chars().count() <= MAX_COMPOUND_LEN {
                terms.insert(compound);
            }
        }
    }
    terms
}

/// Returns the terms of a query, each once, in their order.
pub fn query_terms(query: &str) -> Vec<Term> {
    let folded = fold(query);
    let mut terms = Vec::new();
    for token in tokenize(&folded) {
        if !token.unspaced {
            terms.push(Term::Word(truncate(token.text)));
        } else if token.text.chars().nth(1).is_none() {
            terms.push(Term::Ngram(token.text.to_owned()));
        } else {
            terms.extend(bigrams(token.text).map(Term::Ngram));
        }
    }
    // Of duplicates the last one is kept, so that the last term stays last: it may be a prefix.
    let mut unique = BTreeSet::new();
    let mut terms_once: Vec<Term> = Vec::with_capacity(terms.len());
    for term in terms.into_iter().rev() {
        let (Term::Word(text) | Term::Ngram(text)) = &term;
        if unique.insert(text.clone()) {
            terms_once.push(term);
        }
    }
    terms_once.reverse();
    terms_once
}

/// Returns the letters and digits of a text, with one space between tokens. Texts that differ in case,
/// accents and punctuation become equal.
pub fn normalize(text: &str) -> String {
    let folded = fold(text);
    tokenize(&folded).iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
}

/// Returns the letters and digits of a text without separators, as for a SKU.
pub fn strip_separators(text: &str) -> String {
    let folded = fold(text);
    tokenize(&folded).iter().map(|token| token.text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(words: [&str; N]) -> Vec<Term> {
        words.into_iter().map(|word| Term::Word(word.to_owned())).collect()
    }

    fn grams<const N: usize>(grams: [&str; N]) -> Vec<Term> {
        grams.into_iter().map(|gram| Term::Ngram(gram.to_owned())).collect()
    }

    #[test]
    fn equivalent_texts_fold_to_the_same_text() {
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
        // These are distinct letters in Thai, Hindi and Japanese.
        for (one, other) in [("ชา", "ช"), ("कि", "क"), ("が", "か")] {
            assert_ne!(fold(one), fold(other), "{one} {other}");
        }
    }

    #[test]
    fn folding_is_idempotent() {
        // All characters except Han, Hangul and the supplementary planes.
        for code in (0..=0x33ff_u32).chain(0xf900..=0xffff) {
            let Some(char) = char::from_u32(code) else { continue };
            let once = fold(&format!("a{char}b"));
            assert_eq!(fold(&once), once, "U+{code:04X}");
        }
    }

    #[test]
    fn a_query_is_split_into_words_and_bigrams() {
        assert_eq!(query_terms("Red, T-Shirt!"), words(["red", "t", "shirt"]));
        assert_eq!(query_terms("茶杯"), grams(["茶杯"]));
        assert_eq!(query_terms("茶"), grams(["茶"]));
        assert_eq!(query_terms("陶瓷茶杯"), grams(["陶瓷", "瓷茶", "茶杯"]));
        assert_eq!(query_terms("300毫升"), [words(["300"]), grams(["毫升"])].concat());
        assert_eq!(query_terms("red blue red"), words(["blue", "red"]));
        assert_eq!(query_terms("😀 %"), []);
    }

    #[test]
    fn the_terms_of_a_text_include_the_query_terms_of_its_substrings() {
        for text in
            ["红色陶瓷茶杯 300毫升", "แก้วกาแฟ", "T-Shirt Größe XL", "ラーメン丼", "men's", "찻잔 세트"]
        {
            let terms = index_terms(text);
            let chars: Vec<char> = text.chars().collect();
            for from in 0..chars.len() {
                for to in from + 1..=chars.len() {
                    let part: String = chars[from..to].iter().collect();
                    for term in query_terms(&part) {
                        if let Term::Ngram(gram) = term {
                            assert!(terms.contains(&gram), "{gram} of {part} in {text}");
                        }
                    }
                }
            }
            for term in query_terms(text) {
                let (Term::Word(term) | Term::Ngram(term)) = term;
                assert!(terms.contains(&term), "{term} in {text}");
            }
        }
        assert!(index_terms("T-Shirt").contains("tshirt"));
        assert!(index_terms(&"x".repeat(9000)).contains(&"x".repeat(200)));
    }

    #[test]
    fn normalization_ignores_punctuation() {
        assert_eq!(normalize("Leather Sheath, 18 cm"), "leather sheath 18 cm");
        assert_eq!(normalize("  "), "");
        for sku in ["QWCGQ-RED-XL", "qwcgq_red.xl", "QWCGQ RED XL", "qwcgqredxl"] {
            assert_eq!(strip_separators(sku), "qwcgqredxl");
        }
    }
}
