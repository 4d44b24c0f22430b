//! The comments of the contract. Each method states its callers, its reasons and whether a call may be repeated, and the
//! code agrees. The general reasons stand once, at the head of the service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::rules::{Source, root, sources};

const SERVICES: [&str; 3] = ["auth", "product", "order"];
/// The reasons of every service, which the kit gives.
const KIT: [&str; 3] = ["status.rs", "idempotency.rs", "caller.rs"];
/// The reasons of `TokenError::reason`.
const TOKEN_REASONS: [&str; 3] = ["UNAUTHENTICATED", "TOKEN_EXPIRED", "SESSION_REVOKED"];
const LABELS: [&str; 3] = ["Callers: ", "Reasons: ", "Repeat: "];
const NO_REASONS: &str = "general only.";
const READS: [&str; 6] = ["Get", "List", "Search", "BatchGet", "Lookup", "Watch"];
const KEYED: &str = "by `idempotency_key`";

/// A reason with its status code, as in `("SKU_TAKEN", "ALREADY_EXISTS")`.
type Reason = (String, String);

#[derive(Debug)]
struct Method {
    /// `auth`, `product` or `order`.
    service: &'static str,
    name: String,
    request: String,
    /// The texts behind [`LABELS`], where the comment ends with these lines.
    stated: Option<[String; 3]>,
}

#[derive(Debug, Default)]
struct Contract {
    methods: Vec<Method>,
    /// The reasons at the heads of each service's proto services.
    general: BTreeMap<&'static str, BTreeSet<Reason>>,
    /// Messages that have an idempotency key.
    keyed: BTreeSet<String>,
}

impl Contract {
    fn read() -> Self {
        let mut contract = Self::default();
        for source in sources(&["proto"]) {
            let Some(service) =
                SERVICES.into_iter().find(|name| source.path.contains(&format!("/{name}/v1/")))
            else {
                continue;
            };
            contract.read_file(service, &source);
        }
        contract
    }

    fn read_file(&mut self, service: &'static str, source: &Source) {
        let (mut comment, mut message) = (Vec::new(), "");
        for line in source.text.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text.trim());
                continue;
            }
            if line.starts_with("service ") {
                self.general.entry(service).or_default().extend(reasons(&comment.join(" ")));
            } else if let Some((name, rest)) = line.strip_prefix("rpc ").and_then(|rpc| rpc.split_once('(')) {
                let request = rest.split(')').next().unwrap_or_default().trim_start_matches("stream ");
                let (name, request) = (name.to_owned(), request.to_owned());
                self.methods.push(Method { service, name, request, stated: stated(&comment) });
            } else if let Some(name) = line.strip_prefix("message ") {
                message = name.split(' ').next().unwrap_or_default();
            } else if line.contains(" idempotency_key = ") {
                self.keyed.insert(message.to_owned());
            }
            comment.clear();
        }
    }
}

/// Reads the three lines at the end of a comment, each of which may go on in the next.
fn stated(comment: &[&str]) -> Option<[String; 3]> {
    let starts: Vec<usize> =
        LABELS.iter().filter_map(|label| comment.iter().position(|line| line.starts_with(label))).collect();
    let [callers, reasons, repeat] = starts[..] else { return None };
    let text = |label: &str, lines: &[&str]| lines.join(" ")[label.len()..].to_owned();
    (callers < reasons && reasons < repeat).then(|| {
        [
            text(LABELS[0], &comment[callers..reasons]),
            text(LABELS[1], &comment[reasons..repeat]),
            text(LABELS[2], &comment[repeat..]),
        ]
    })
}

fn is_constant(word: &str) -> bool {
    word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The reasons in a text, as in `SKU_TAKEN, SLUG_TAKEN (ALREADY_EXISTS)`; other words are skipped.
fn reasons(text: &str) -> BTreeSet<Reason> {
    let (mut found, mut waiting) = (BTreeSet::new(), Vec::new());
    for word in text.split_whitespace().map(|word| word.trim_end_matches([',', ';', '.'])) {
        if let Some(code) = word.strip_prefix('(').and_then(|word| word.strip_suffix(')')) {
            found.extend(waiting.drain(..).map(|reason: &str| (reason.to_owned(), code.to_owned())));
        } else if is_constant(word) {
            waiting.push(word);
        } else {
            waiting.clear();
        }
    }
    found
}

/// Reports whether a text consists of reasons with their codes.
fn is_list_of_reasons(text: &str) -> bool {
    let is_part = |word: &str| is_constant(word.trim_matches(['(', ')', ',', ';']));
    let groups = text.strip_suffix('.').map(|list| list.split("; ").collect::<Vec<_>>());
    groups.is_some_and(|groups| {
        groups.iter().all(|group| group.ends_with(')') && group.split(' ').all(is_part) && group.len() > 2)
    })
}

/// The reasons that a source makes: `Code::AlreadyExists, "SKU_TAKEN"`.
fn made(code: &str) -> BTreeSet<Reason> {
    let calls = code.split("Code::").skip(1).filter_map(|call| {
        let (code, rest) = call.split_once(',')?;
        let (reason, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        is_constant(reason).then(|| (reason.to_owned(), constant(code)))
    });
    calls.collect()
}

/// `AlreadyExists` as `ALREADY_EXISTS`.
fn constant(name: &str) -> String {
    let mut constant = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !constant.is_empty() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}

fn read(path: &str) -> Source {
    let text = fs::read_to_string(root().join(path)).expect(path);
    Source { path: path.to_owned(), text }
}

fn of_kit() -> BTreeSet<Reason> {
    let sources = KIT.map(|file| read(&format!("services/kit/src/{file}")));
    let mut known: BTreeSet<Reason> = sources.iter().flat_map(|source| made(source.code())).collect();
    for reason in TOKEN_REASONS {
        assert!(sources[2].code().contains(&format!("=> \"{reason}\"")), "caller.rs gives {reason}");
        known.insert((reason.to_owned(), "UNAUTHENTICATED".to_owned()));
    }
    known
}

#[test]
fn every_method_states_callers_reasons_and_repeats() {
    let contract = Contract::read();
    assert!(contract.methods.len() > 40, "the contract is read");
    let mut wrong = Vec::new();
    for Method { name, request, stated, .. } in &contract.methods {
        let Some([callers, reasons, repeat]) = stated else {
            wrong.push(format!("{name}: the comment does not end with {LABELS:?}"));
            continue;
        };
        if reasons != NO_REASONS && !is_list_of_reasons(reasons) {
            wrong.push(format!("{name}: is no list of reasons: {reasons}"));
        }
        let expected: &[&str] = if READS.iter().any(|read| name.starts_with(read)) {
            &["always."]
        } else if contract.keyed.contains(request) {
            &[KEYED]
        } else {
            &["idempotent", "never"]
        };
        if !expected.iter().any(|beginning| repeat.starts_with(beginning)) || !repeat.ends_with('.') {
            wrong.push(format!("{name}: must begin with {expected:?}: {repeat}"));
        }
        if !callers.ends_with('.') {
            wrong.push(format!("{name}: does not end with a period: {callers}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_reasons_of_the_contract_are_those_of_the_code() {
    let (contract, kit) = (Contract::read(), of_kit());
    for service in SERVICES {
        let own = made(read(&format!("services/{service}/src/error.rs")).code());
        assert!(!own.is_empty(), "{service} refuses nothing");
        let mut told = contract.general[service].clone();
        for method in contract.methods.iter().filter(|method| method.service == service) {
            let stated = method.stated.iter().flat_map(|[_, list, _]| reasons(list)).collect::<BTreeSet<_>>();
            let unknown: Vec<_> =
                stated.iter().filter(|reason| !own.contains(reason) && !kit.contains(reason)).collect();
            assert!(unknown.is_empty(), "{}: the code gives no {unknown:?}", method.name);
            told.extend(stated);
        }
        let untold: Vec<_> = own.difference(&told).collect();
        assert!(untold.is_empty(), "no method of {service} states {untold:?}");
        let unknown: Vec<_> =
            contract.general[service].iter().filter(|reason| !kit.contains(reason)).collect();
        assert!(unknown.is_empty(), "the head of {service}: the code gives no {unknown:?}");
    }
}

/// The body of a method of a gRPC service.
fn body<'a>(sources: &'a [Source], name: &str) -> Option<&'a str> {
    let mut snake = constant(name);
    snake.make_ascii_lowercase();
    let head = format!("    async fn {snake}(");
    sources.iter().find_map(|source| {
        let (_, rest) = source.code().split_once(&head)?;
        rest.trim_start().starts_with("&self").then(|| rest.split("\n    }\n").next())?
    })
}

/// The callers that a method admits, by the names of the functions of `shoppee_kit::caller`.
fn admitted(body: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        body.split("caller::").skip(1).filter_map(|call| Some(call.split_once("(&request)")?.0)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn the_callers_of_the_contract_are_those_of_the_code() {
    let mut wrong = Vec::new();
    let sources = sources(&["rs"]);
    let of = |service: &str| -> Vec<Source> {
        let prefix = format!("services/{service}/src/grpc");
        sources.iter().filter(|source| source.path.starts_with(&prefix)).cloned().collect()
    };
    let code: BTreeMap<&str, Vec<Source>> = SERVICES.map(|service| (service, of(service))).into();
    for Method { service, name, stated, .. } in Contract::read().methods {
        let body = body(&code[service], &name).unwrap_or_else(|| panic!("{name} is not found"));
        let [callers, ..] = stated.unwrap_or_default();
        let admitted = admitted(body);
        let agrees = match admitted[..] {
            [] => callers == "open.",
            ["anyone"] => callers.starts_with("open; "),
            ["user"] => {
                ["a signed-in user, own things only.", "a signed-in user, own things only; an admin, all."]
                    .contains(&callers.as_str())
            }
            ["admin"] => callers == "an admin.",
            ["admin", "user"] => {
                callers == "a signed-in user, own things only; an admin, all with `everyone`."
            }
            ["service"] => callers == "a service token.",
            ["ticket"] => callers == "a ticket.",
            ["user_or_socket"] => callers == "a signed-in user or the token of a socket, own things only.",
            _ => false,
        };
        if !agrees {
            wrong.push(format!("{name}: the code admits {admitted:?}, the contract says: {callers}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
