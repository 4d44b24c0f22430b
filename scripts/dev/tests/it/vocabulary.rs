//! The vocabulary of the code: constants that say what they bound, and doc comments in the usual form. The counts of each
//! crate are printed by `cargo test -p shoppee-dev --test it vocabulary -- --nocapture`.

use crate::rules::{Source, assert_no_violation, rust_sources};

/// Words that no constant has as its name or as the first part of its name.
const BANNED_PREFIXES: [&str; 8] =
    ["PATIENCE", "REST", "LOOK", "MOST", "LONGEST", "LARGEST", "SOON", "AGAIN"];
/// First words of a doc comment that asks or hints instead of stating.
const INTERROGATIVES: [&str; 10] =
    ["What", "Who", "How", "Whether", "Where", "When", "Whoever", "Whatever", "Those", "Everything"];
/// Words that stand in for the name of a component.
const PERSONAL_PRONOUNS: [&str; 5] = ["who", "whoever", "somebody", "nobody", "anybody"];
const MAX_INTERROGATIVE_PERCENT: usize = 3;
const MAX_PRONOUNS_PER_THOUSAND_WORDS: usize = 1;
const CRATES: [&str; 8] = [
    "proto",
    "services/kit",
    "services/auth",
    "services/product",
    "services/order",
    "gateway",
    "scripts/dev",
    "scripts/benchmark",
];

/// The counts of the doc comments of a crate.
#[derive(Debug, Default)]
struct Counts {
    comments: usize,
    interrogatives: usize,
    words: usize,
    pronouns: usize,
}

impl Counts {
    fn add(&mut self, comment: &str) {
        let mut words = comment
            .split(|letter: char| !letter.is_alphanumeric() && letter != '\'')
            .filter(|word| !word.is_empty())
            .peekable();
        self.comments += 1;
        self.interrogatives += usize::from(words.peek().is_some_and(|word| INTERROGATIVES.contains(word)));
        for word in words {
            self.words += 1;
            self.pronouns += usize::from(PERSONAL_PRONOUNS.contains(&word.to_lowercase().as_str()));
        }
    }

    fn are_too_high(&self) -> bool {
        self.interrogatives * 100 > self.comments * MAX_INTERROGATIVE_PERCENT
            || self.pronouns * 1000 > self.words * MAX_PRONOUNS_PER_THOUSAND_WORDS
    }
}

/// Returns the doc comments of a file: each run of `///` or `//!` lines is one.
fn doc_comments(text: &str) -> Vec<String> {
    let (mut comments, mut comment) = (Vec::new(), Vec::new());
    for line in text.lines().chain([""]) {
        let line = line.trim_start();
        let documentation = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        if let Some(text) = documentation {
            comment.push(text.trim());
        } else if !comment.is_empty() {
            comments.push(comment.join(" "));
            comment.clear();
        }
    }
    comments
}

/// Returns the name of the constant that a line defines.
fn constant_name(line: &str) -> Option<&str> {
    let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
    let definition = line.strip_prefix("const ").or_else(|| line.strip_prefix("static "))?;
    definition.split_once(':').map(|(name, _)| name.trim())
}

fn is_banned(name: &str) -> bool {
    let prefix = name.split('_').next().unwrap_or_default();
    BANNED_PREFIXES.contains(&prefix)
}

#[test]
fn no_constant_has_a_banned_name() {
    assert_no_violation(&rust_sources(), |source: &Source| {
        let names = source.text.lines().filter_map(constant_name).filter(|name| is_banned(name));
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| names.join(", "))
    });
}

#[test]
fn doc_comments_state_facts_about_components() {
    let sources = rust_sources();
    let mut violations = Vec::new();
    for name in CRATES {
        let mut counts = Counts::default();
        let prefix = format!("{name}/");
        for source in sources.iter().filter(|source| source.path.starts_with(&prefix)) {
            for comment in doc_comments(&source.text) {
                counts.add(&comment);
            }
        }
        assert!(counts.comments > 0, "{name} has no doc comments: update CRATES");
        let Counts { comments, interrogatives, words, pronouns } = counts;
        let line = format!(
            "{name}: {interrogatives} of {comments} doc comments begin with an interrogative; {pronouns} personal \
             pronouns in {words} words"
        );
        eprintln!("{line}");
        if counts.are_too_high() {
            violations.push(line);
        }
    }
    assert!(
        violations.is_empty(),
        "at most {MAX_INTERROGATIVE_PERCENT} % and {MAX_PRONOUNS_PER_THOUSAND_WORDS} per 1 000 words:\n{}",
        violations.join("\n")
    );
}

#[test]
fn comments_and_constants_are_recognised() {
    let text = "//! One\n//! comment.\n\n/// Who asks.\nconst REST_OF: u8 = 1;\n// Plain.\n";
    assert_eq!(doc_comments(text), ["One comment.", "Who asks."]);
    let mut counts = Counts::default();
    counts.add("Who asks.");
    assert_eq!((counts.interrogatives, counts.pronouns, counts.words), (1, 1, 2));
    assert_eq!(constant_name("    pub const REST_OF: u8 = 1;"), Some("REST_OF"));
    assert!(is_banned("REST_OF") && is_banned("LOOK") && !is_banned("RESTART_TIMEOUT"));
    assert_eq!(constant_name("const fn of(name: &str) {"), Some("fn of(name"));
}
