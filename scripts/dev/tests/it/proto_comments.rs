//! The comments of the gRPC methods in `proto/`. Each states its error reasons and whether a call may be repeated, and
//! agrees with the code. The comment of a service states the general reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::rules::{Source, root, sources};

const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// The package of the kit, whose service each of them hosts.
const KIT_PACKAGE: &str = "audit";
/// The files of the kit with the reasons of every service.
const KIT_FILES: [&str; 4] = ["status.rs", "idempotency.rs", "access.rs", "caller.rs"];
/// The reasons of `TokenError::reason`.
const TOKEN_REASONS: [&str; 3] = ["UNAUTHENTICATED", "TOKEN_EXPIRED", "SESSION_REVOKED"];
const LABELS: [&str; 2] = ["Reasons: ", "Repeat: "];
/// The text of a method without specific reasons.
const NO_REASONS: &str = "general only.";
/// The prefixes of methods that only read.
const READ_PREFIXES: [&str; 6] = ["Get", "List", "Search", "BatchGet", "Lookup", "Watch"];
const REPEAT_BY_KEY: &str = "by `idempotency_key`";

/// A reason with its status code, as in `("SKU_TAKEN", "ALREADY_EXISTS")`.
type Reason = (String, String);

#[derive(Debug)]
struct Method {
    /// `auth`, `product`, `order` or [`KIT_PACKAGE`].
    service: &'static str,
    name: String,
    request: String,
    /// The texts after [`LABELS`], if the comment ends with these lines.
    statements: Option<[String; 2]>,
}

#[derive(Debug, Default)]
struct Comments {
    methods: Vec<Method>,
    /// The reasons in the comments of each service.
    general: BTreeMap<&'static str, BTreeSet<Reason>>,
    /// The messages with an idempotency key.
    messages_with_key: BTreeSet<String>,
}

impl Comments {
    fn read() -> Self {
        let mut comments = Self::default();
        for source in sources(&["proto"]) {
            let mut packages = SERVICES.into_iter().chain([KIT_PACKAGE]);
            let Some(service) = packages.find(|name| source.path.contains(&format!("/{name}/v1/"))) else {
                continue;
            };
            comments.read_file(service, &source);
        }
        comments
    }

    fn read_file(&mut self, service: &'static str, source: &Source) {
        let (mut comment, mut message) = (Vec::new(), "");
        for line in source.text.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text.trim());
                continue;
            }
            if line.starts_with("service ") {
                self.general.entry(service).or_default().extend(parse_reasons(&comment.join(" ")));
            } else if let Some((name, rest)) = line.strip_prefix("rpc ").and_then(|rpc| rpc.split_once('(')) {
                let request = rest.split(')').next().unwrap_or_default().trim_start_matches("stream ");
                let (name, request) = (name.to_owned(), request.to_owned());
                self.methods.push(Method { service, name, request, statements: parse_statements(&comment) });
            } else if let Some(name) = line.strip_prefix("message ") {
                message = name.split(' ').next().unwrap_or_default();
            } else if line.contains(" idempotency_key = ") {
                self.messages_with_key.insert(message.to_owned());
            }
            comment.clear();
        }
    }
}

/// Parses the two statements at the end of a comment, each of which may span several lines.
fn parse_statements(comment: &[&str]) -> Option<[String; 2]> {
    let starts: Vec<usize> =
        LABELS.iter().filter_map(|label| comment.iter().position(|line| line.starts_with(label))).collect();
    let [reasons, repeat] = starts[..] else { return None };
    let text = |label: &str, lines: &[&str]| lines.join(" ")[label.len()..].to_owned();
    (reasons < repeat)
        .then(|| [text(LABELS[0], &comment[reasons..repeat]), text(LABELS[1], &comment[repeat..])])
}

fn is_upper_case(word: &str) -> bool {
    word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Parses the reasons in a text, as in `SKU_TAKEN, SLUG_TAKEN (ALREADY_EXISTS)`, and skips other words.
fn parse_reasons(text: &str) -> BTreeSet<Reason> {
    let (mut reasons, mut pending) = (BTreeSet::new(), Vec::new());
    for word in text.split_whitespace().map(|word| word.trim_end_matches([',', ';', '.'])) {
        if let Some(code) = word.strip_prefix('(').and_then(|word| word.strip_suffix(')')) {
            reasons.extend(pending.drain(..).map(|reason: &str| (reason.to_owned(), code.to_owned())));
        } else if is_upper_case(word) {
            pending.push(word);
        } else {
            pending.clear();
        }
    }
    reasons
}

/// Reports whether a text consists of reasons with their codes.
fn is_list_of_reasons(text: &str) -> bool {
    let is_part = |word: &str| is_upper_case(word.trim_matches(['(', ')', ',', ';']));
    let groups = text.strip_suffix('.').map(|list| list.split("; ").collect::<Vec<_>>());
    groups.is_some_and(|groups| {
        groups.iter().all(|group| group.ends_with(')') && group.split(' ').all(is_part) && group.len() > 2)
    })
}

/// Returns the reasons in a source file, as in `Code::AlreadyExists, "SKU_TAKEN"`.
fn code_reasons(code: &str) -> BTreeSet<Reason> {
    let calls = code.split("Code::").skip(1).filter_map(|call| {
        let (code, rest) = call.split_once(',')?;
        let (reason, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        is_upper_case(reason).then(|| (reason.to_owned(), to_upper_snake_case(code)))
    });
    calls.collect()
}

/// Converts `AlreadyExists` to `ALREADY_EXISTS`.
fn to_upper_snake_case(name: &str) -> String {
    let mut upper = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !upper.is_empty() {
            upper.push('_');
        }
        upper.push(letter.to_ascii_uppercase());
    }
    upper
}

fn read(path: &str) -> Source {
    let text = fs::read_to_string(root().join(path)).expect(path);
    Source { path: path.to_owned(), text }
}

fn kit_reasons() -> BTreeSet<Reason> {
    let sources = KIT_FILES.map(|file| read(&format!("services/kit/src/{file}")));
    let mut reasons: BTreeSet<Reason> =
        sources.iter().flat_map(|source| code_reasons(source.code())).collect();
    for reason in TOKEN_REASONS {
        assert!(sources[3].code().contains(&format!("=> \"{reason}\"")), "caller.rs gives {reason}");
        reasons.insert((reason.to_owned(), "UNAUTHENTICATED".to_owned()));
    }
    reasons
}

#[test]
fn every_method_documents_reasons_and_repeats() {
    let comments = Comments::read();
    assert!(comments.methods.len() > 40, "the comments are parsed");
    let mut problems = Vec::new();
    for Method { name, request, statements, .. } in &comments.methods {
        let Some([reasons, repeat]) = statements else {
            problems.push(format!("{name}: the comment does not end with {LABELS:?}"));
            continue;
        };
        if reasons != NO_REASONS && !is_list_of_reasons(reasons) {
            problems.push(format!("{name}: is no list of reasons: {reasons}"));
        }
        let expected: &[&str] = if READ_PREFIXES.iter().any(|read| name.starts_with(read)) {
            &["always."]
        } else if comments.messages_with_key.contains(request) {
            &[REPEAT_BY_KEY]
        } else {
            &["idempotent", "never"]
        };
        if !expected.iter().any(|beginning| repeat.starts_with(beginning)) || !repeat.ends_with('.') {
            problems.push(format!("{name}: must begin with {expected:?}: {repeat}"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_documented_reasons_are_those_of_the_code() {
    let (comments, kit) = (Comments::read(), kit_reasons());
    for service in SERVICES.into_iter().chain([KIT_PACKAGE]) {
        let own = if service == KIT_PACKAGE {
            BTreeSet::new()
        } else {
            code_reasons(read(&format!("services/{service}/src/error.rs")).code())
        };
        assert!(service == KIT_PACKAGE || !own.is_empty(), "{service} has no reasons");
        let mut documented = comments.general[service].clone();
        for method in comments.methods.iter().filter(|method| method.service == service) {
            let reasons =
                method.statements.iter().flat_map(|[list, _]| parse_reasons(list)).collect::<BTreeSet<_>>();
            let unknown: Vec<_> =
                reasons.iter().filter(|reason| !own.contains(reason) && !kit.contains(reason)).collect();
            assert!(unknown.is_empty(), "{}: the code gives no {unknown:?}", method.name);
            documented.extend(reasons);
        }
        let undocumented: Vec<_> = own.difference(&documented).collect();
        assert!(undocumented.is_empty(), "no method of {service} states {undocumented:?}");
        let unknown: Vec<_> =
            comments.general[service].iter().filter(|reason| !kit.contains(reason)).collect();
        assert!(unknown.is_empty(), "the head of {service}: the code gives no {unknown:?}");
    }
}
