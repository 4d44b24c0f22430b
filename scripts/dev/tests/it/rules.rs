//! The rules of structure: who may know what. Each test names the files that break its rule.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// The rules of the business: plain Rust, to be read without knowing any of the crates around them.
const RULES: [&str; 6] = [
    "services/auth/src/account.rs",
    "services/product/src/product.rs",
    "services/product/src/stock.rs",
    "services/order/src/order.rs",
    "services/order/src/country.rs",
    "services/order/src/decline.rs",
];
const LONGEST_FILE: usize = 450;
const LONGEST_MAIN: usize = 30;
const BUILT: [&str; 4] = ["target", ".git", "node_modules", ".sqlx"];
/// The beginning of the folders of systems that run, or that a failed run left.
const STATE: &str = ".shoppee";

#[derive(Clone)]
pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Without the tests in the file.
    pub fn code(&self) -> &str {
        self.text.split("#[cfg(test)]").next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/testing.rs")
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

pub fn sources(extensions: &[&str]) -> Vec<Source> {
    let (root, mut found) = (root(), Vec::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !BUILT.contains(&name) && !name.starts_with(STATE) {
                folders.push(path);
            } else if path.is_file() {
                let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                if extensions.contains(&extension) {
                    let text = fs::read_to_string(&path).expect("text");
                    let path = path.strip_prefix(&root).expect("below the root").display().to_string();
                    found.push(Source { path, text });
                }
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn rust() -> Vec<Source> {
    sources(&["rs"])
}

/// Fails with the names of all for which `breaks` says what is wrong.
fn nobody(sources: &[Source], breaks: impl Fn(&Source) -> Option<String>) {
    let broken: Vec<String> = sources
        .iter()
        .filter_map(|source| breaks(source).map(|why| format!("{}: {why}", source.path)))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

fn names(code: &str, words: &[&str]) -> Option<String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut hits = lines.filter_map(|line| words.iter().find(|word| line.contains(*word)));
    hits.next().map(|word| format!("names {word}"))
}

#[test]
fn the_rules_know_no_database_and_no_wire() {
    let sources = rust();
    for rules in RULES {
        assert!(sources.iter().any(|source| source.path == rules), "{rules} is gone: where are its rules?");
    }
    nobody(&sources, |source| {
        let outside = ["sqlx", "tonic", "prost", "shoppee_proto", "fred", "axum"];
        RULES.contains(&source.path.as_str()).then(|| names(source.code(), &outside))?
    });
}

#[test]
fn sql_stands_in_the_stores() {
    nobody(&rust(), |source| {
        let allowed = source.path.contains("/store/")
            || source.path.ends_with("/store.rs")
            || source.path.contains("/outbox")
            || source.path.starts_with("services/kit/src/pg")
            || source.path.starts_with("scripts/")
            || source.is_test();
        let queries = ["query!(", "query_as!(", "query_scalar!(", "sqlx::query", "raw_sql("];
        (!allowed).then(|| names(source.code(), &queries))?
    });
}

#[test]
fn only_the_errors_of_a_service_make_status_codes() {
    nobody(&rust(), |source| {
        let service = SERVICES.iter().any(|name| source.path.starts_with(&format!("services/{name}/src/")));
        // What another service answered may be looked at.
        let code = source.code().replace("tonic::Code::", "Code::").replace(".code() == Code::", "");
        (service && !source.path.ends_with("/error.rs"))
            .then(|| names(&code, &[" Code::", "(Code::", "Status::new("]))?
    });
}

#[test]
fn only_the_errors_of_the_gateway_make_http_errors() {
    nobody(&rust(), |source| {
        let refusals = [
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
        let edge = source.path.starts_with("gateway/src/") && source.path != "gateway/src/error.rs";
        edge.then(|| names(source.code(), &refusals))?
    });
}

#[test]
fn no_service_depends_on_another() {
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
fn files_can_be_read_in_one_go() {
    nobody(&sources(&["rs", "sql", "proto"]), |source| {
        let main = source.path.ends_with("src/main.rs");
        let (lines, most) = (source.text.lines().count(), if main { LONGEST_MAIN } else { LONGEST_FILE });
        (lines > most).then(|| format!("{lines} lines, more than {most}"))
    });
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let folders = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];
    nobody(&sources(&["rs", "sql", "proto", "toml", "md", "yml", "yaml", "json"]), |source| {
        names(&source.text, &folders)
    });
}

/// The names of the metrics that the code of a crate records.
fn recorded(folder: &str) -> BTreeSet<String> {
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
fn every_metric_has_a_help_text_and_every_help_text_a_metric() {
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
        let recorded = recorded(folder);
        assert!(!recorded.is_empty(), "{folder} records nothing");
        assert_eq!(recorded, described, "{folder} and {help}");
    }
}
