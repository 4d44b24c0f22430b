//! Architecture tests: the dependencies between layers, and the structure of files. Each test names the files that violate
//! its rule.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// The files with the business rules: plain Rust that uses no infrastructure crate.
const BUSINESS_RULES: [&str; 6] = [
    "services/auth/src/account.rs",
    "services/product/src/product.rs",
    "services/product/src/stock.rs",
    "services/order/src/order.rs",
    "services/order/src/country.rs",
    "services/order/src/decline.rs",
];
const MAX_FILE_LINES: usize = 450;
const MAX_MAIN_LINES: usize = 30;
/// Folders without sources.
const SKIPPED_FOLDERS: [&str; 4] = ["target", ".git", "node_modules", ".sqlx"];
/// The prefix of the state folders of running systems and failed runs.
const STATE_PREFIX: &str = ".shoppee";

#[derive(Clone)]
pub struct Source {
    /// The path from the root of the repository, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Returns the text before the test module, which clippy keeps last in its file (`items_after_test_module`). Other
    /// items with `#[cfg(test)]` do not end the code.
    pub fn code(&self) -> &str {
        let test_module = self.text.match_indices("\nmod tests").find_map(|(end, _)| {
            let start = self.text[..end].rfind('\n').map_or(0, |newline| newline + 1);
            let attribute = &self.text[start..end];
            (attribute.starts_with("#[cfg(") && attribute.contains("test")).then_some(start)
        });
        test_module.map_or(&self.text, |start| &self.text[..start])
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/testing.rs")
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

pub fn sources(extensions: &[&str]) -> Vec<Source> {
    let (root, mut sources) = (root(), Vec::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !SKIPPED_FOLDERS.contains(&name) && !name.starts_with(STATE_PREFIX) {
                folders.push(path);
            } else if path.is_file() {
                let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                if extensions.contains(&extension) {
                    let text = fs::read_to_string(&path).expect("text");
                    let path = path.strip_prefix(&root).expect("below the root").display().to_string();
                    sources.push(Source { path, text });
                }
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

pub fn rust_sources() -> Vec<Source> {
    sources(&["rs"])
}

/// Fails with the paths and violations of all sources that violate a rule.
pub fn assert_no_violation(sources: &[Source], violation: impl Fn(&Source) -> Option<String>) {
    let violations: Vec<String> = sources
        .iter()
        .filter_map(|source| violation(source).map(|reason| format!("{}: {reason}", source.path)))
        .collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Returns a violation if a line of code, not of a comment, contains one of the words.
fn find_word(code: &str, words: &[&str]) -> Option<String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut matches = lines.filter_map(|line| words.iter().find(|word| line.contains(*word)));
    matches.next().map(|word| format!("contains {word}"))
}

#[test]
fn business_rules_use_no_infrastructure() {
    let sources = rust_sources();
    for rules in BUSINESS_RULES {
        assert!(
            sources.iter().any(|source| source.path == rules),
            "{rules} is missing: update BUSINESS_RULES"
        );
    }
    assert_no_violation(&sources, |source| {
        let infrastructure = ["sqlx", "tonic", "prost", "shoppee_proto", "fred", "axum"];
        BUSINESS_RULES.contains(&source.path.as_str()).then(|| find_word(source.code(), &infrastructure))?
    });
}

#[test]
fn only_stores_contain_sql() {
    assert_no_violation(&rust_sources(), |source| {
        let allowed = source.path.contains("/store/")
            || source.path.ends_with("/store.rs")
            || source.path.contains("/outbox")
            || source.path.starts_with("services/kit/src/pg")
            || source.path.starts_with("scripts/")
            || source.is_test();
        let queries = ["query!(", "query_as!(", "query_scalar!(", "sqlx::query", "raw_sql("];
        (!allowed).then(|| find_word(source.code(), &queries))?
    });
}

#[test]
fn only_the_error_module_of_a_service_creates_status_codes() {
    assert_no_violation(&rust_sources(), |source| {
        let is_service =
            SERVICES.iter().any(|name| source.path.starts_with(&format!("services/{name}/src/")));
        // Comparing the status of another service's response is allowed.
        let code = source.code().replace("tonic::Code::", "Code::").replace(".code() == Code::", "");
        (is_service && !source.path.ends_with("/error.rs"))
            .then(|| find_word(&code, &[" Code::", "(Code::", "Status::new("]))?
    });
}

#[test]
fn only_the_error_module_of_the_gateway_creates_http_errors() {
    assert_no_violation(&rust_sources(), |source| {
        let error_codes = [
            "StatusCode::BAD_",
            "StatusCode::UNAUTHORIZED",
            "StatusCode::FORBIDDEN",
            "StatusCode::NOT_FOUND",
            "StatusCode::CONFLICT",
            "StatusCode::UNPROCESSABLE",
            "StatusCode::TOO_MANY",
            "StatusCode::INTERNAL",
            "StatusCode::SERVICE_UNAVAILABLE",
            "StatusCode::GATEWAY_TIMEOUT",
            "StatusCode::from_u16",
        ];
        let is_checked =
            source.path.starts_with("gateway/src/") && !source.path.starts_with("gateway/src/error");
        is_checked.then(|| find_word(source.code(), &error_codes))?
    });
}

#[test]
fn services_do_not_depend_on_each_other() {
    for service in SERVICES {
        let manifest =
            fs::read_to_string(root().join(format!("services/{service}/Cargo.toml"))).expect("manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).expect("dependencies");
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for other in SERVICES.into_iter().filter(|other| *other != service).chain(["gateway"]) {
            assert!(!dependencies.contains(&format!("shoppee-{other}")), "{service} depends on {other}");
        }
    }
}

#[test]
fn files_do_not_exceed_the_maximum_length() {
    assert_no_violation(&sources(&["rs", "sql", "proto"]), |source| {
        let is_main = source.path.ends_with("src/main.rs");
        let (lines, max) =
            (source.text.lines().count(), if is_main { MAX_MAIN_LINES } else { MAX_FILE_LINES });
        (lines > max).then(|| format!("{lines} lines, more than {max}"))
    });
}

#[test]
fn no_file_contains_a_path_of_a_developers_machine() {
    let folders = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];
    assert_no_violation(&sources(&["rs", "sql", "proto", "toml", "md", "yml", "yaml", "json"]), |source| {
        find_word(&source.text, &folders)
    });
}

/// Returns the names of the metrics that the code of a crate records.
fn recorded_metrics(folder: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources(&["rs"]).iter().filter(|source| source.path.starts_with(folder)) {
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            let calls =
                source.code().split(kind).skip(1).filter_map(|call| call.trim_start().strip_prefix('"'));
            names.extend(calls.filter_map(|call| Some(call.split_once('"')?.0.to_owned())));
        }
    }
    names
}

#[test]
fn recorded_metrics_and_help_texts_agree() {
    for (folder, help) in [
        ("services/kit/src", "services/kit/src/telemetry/help.rs"),
        ("services/auth/src", "services/auth/src/metric_help.rs"),
        ("services/product/src", "services/product/src/metric_help.rs"),
        ("services/order/src", "services/order/src/metric_help.rs"),
        ("gateway/src", "gateway/src/metric_help.rs"),
    ] {
        let text = fs::read_to_string(root().join(help)).expect(help);
        let entries = text.lines().filter_map(|line| line.trim().strip_prefix("(\""));
        let described: BTreeSet<String> =
            entries.filter_map(|entry| Some(entry.split_once('"')?.0.to_owned())).collect();
        let recorded = recorded_metrics(folder);
        assert!(!recorded.is_empty(), "{folder} records nothing");
        assert_eq!(recorded, described, "{folder} and {help}");
    }
}

#[test]
fn code_ends_at_the_test_module_and_not_at_other_test_items() {
    let text = "before\n#[cfg(test)]\nuse one;\nafter\n\n#[cfg(test)]\nmod tests {\n}\n";
    let source = Source { path: String::new(), text: text.to_owned() };
    assert_eq!(source.code(), "before\n#[cfg(test)]\nuse one;\nafter\n\n");
    let source = Source { path: String::new(), text: "no tests\n".to_owned() };
    assert_eq!(source.code(), "no tests\n");
}
