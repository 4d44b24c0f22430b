//! An architecture test: the imports between sibling modules form no circle. A path such as `crate::a::b` or `super::b` in
//! the code of a module is an edge between the children of the modules' closest common parent. Edges between a module and
//! its own parent or children do not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::rules::{Source, rust_sources};

/// Bounds the re-exports that lead from a name to its definition.
const MAX_REEXPORTS: usize = 8;

/// The segments of a path below the root of its crate.
type Path = Vec<String>;
/// The imports between the children of one module: the importer, the imported, and the file and path of one import.
type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// A module of a crate: its paths and re-exports, as they are written, and the names of its modules for tests.
#[derive(Debug, Default)]
struct Module {
    file: String,
    paths: Vec<Path>,
    reexports: Vec<Path>,
    test_modules: Vec<String>,
}

/// Splits code into identifiers, `::` and other characters, without comments and literals.
fn tokens(code: &str) -> Vec<String> {
    let characters: Vec<char> = code.chars().collect();
    // The texts are ASCII.
    let starts_with =
        |at: usize, text: &str| text.chars().eq(characters[at..].iter().copied().take(text.len()));
    let position_after = |from: usize, text: &str| {
        (from..characters.len())
            .find(|at| starts_with(*at, text))
            .map_or(characters.len(), |at| at + text.len())
    };
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < characters.len() {
        let start = at;
        match characters[at] {
            '/' if starts_with(at, "//") => at = position_after(at, "\n"),
            'r' if let Some(end) = raw_string_end(&characters[at + 1..]) => {
                at = position_after(at + 1 + end.len(), &end);
            }
            '"' => {
                at += 1;
                while at < characters.len() && characters[at] != '"' {
                    at += if characters[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character, and not a lifetime.
            '\'' if starts_with(at, "'\\") => at = position_after(at + 3, "'"),
            '\'' if characters.get(at + 2) == Some(&'\'') => at += 3,
            character if character.is_alphanumeric() || character == '_' => {
                while characters.get(at).is_some_and(|next| next.is_alphanumeric() || *next == '_') {
                    at += 1;
                }
                tokens.push(characters[start..at].iter().collect());
            }
            character => {
                at += if starts_with(at, "::") { 2 } else { 1 };
                if !character.is_whitespace() {
                    tokens.push(characters[start..at].iter().collect());
                }
            }
        }
    }
    tokens
}

/// Returns the end of the raw string whose quote follows the `r`, if there is one.
fn raw_string_end(behind: &[char]) -> Option<String> {
    let hashes = behind.iter().take_while(|character| **character == '#').count();
    (behind.get(hashes) == Some(&'"')).then(|| format!("\"{}", "#".repeat(hashes)))
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Adds the paths of the use tree that begins at a token, and returns the position after it. A path may end anywhere in
/// code; its generic arguments are paths of their own.
fn read_tree(tokens: &[String], mut at: usize, mut path: Path, paths: &mut Vec<Path>) -> usize {
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                at = if is_identifier(&tokens[at]) || tokens[at] == "{" {
                    read_tree(tokens, at, path.clone(), paths)
                } else {
                    at + 1
                };
            }
            return at + 1;
        }
        if !is_identifier(token) {
            break;
        }
        path.push(token.clone());
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
    }
    // The new name of `as` is not part of the path.
    if tokens.get(at).is_some_and(|token| token == "as") {
        at += 2;
    }
    paths.push(path);
    at
}

/// Returns the position after the bracket that closes the first one.
fn closing_position(tokens: &[String], mut at: usize) -> usize {
    let mut depth = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Returns the position after the item that begins at a token: after its block, or its `;`.
fn item_end(tokens: &[String], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            ";" => return at + 1,
            "{" => return closing_position(tokens, at),
            "}" => return at,
            "(" | "[" => at = closing_position(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// Returns the position after an attribute such as `#[cfg(test)]`, with which an item exists in tests only.
fn test_attribute_end(tokens: &[String], at: usize) -> Option<usize> {
    let is_cfg = tokens[at..].iter().take(3).map(String::as_str).eq(["#", "[", "cfg"]);
    let end = closing_position(tokens, at + 1);
    let attribute = &tokens[at..end.min(tokens.len())];
    let has = |word: &str| attribute.iter().any(|token| token == word);
    (is_cfg && has("test") && !has("not")).then_some(end)
}

fn read_module(file: &str, code: &str) -> Module {
    let tokens = tokens(code);
    let mut module = Module { file: file.to_owned(), ..Module::default() };
    let mut at = 0;
    while at < tokens.len() {
        let (token, before) = (tokens[at].as_str(), at.checked_sub(1).map(|before| tokens[before].as_str()));
        if token == "#"
            && let Some(start) = test_attribute_end(&tokens, at)
        {
            at = item_end(&tokens, start);
            if let [.., keyword, name, end] = &tokens[start..at]
                && (keyword.as_str(), end.as_str()) == ("mod", ";")
            {
                module.test_modules.push(name.clone());
            }
            continue;
        }
        let is_path = matches!(token, "crate" | "super" | "self")
            && tokens.get(at + 1).is_some_and(|next| next == "::")
            && before != Some("::");
        if is_path {
            at = read_tree(&tokens, at, Path::new(), &mut module.paths);
            continue;
        }
        if token == "use" && matches!(before, Some("pub" | ")")) {
            read_tree(&tokens, at + 1, Path::new(), &mut module.reexports);
        }
        at += 1;
    }
    module
}

/// Resolves `crate`, `super` and `self` at the start of a path that stands in a module.
fn resolve(module: &Path, path: &Path) -> Path {
    let (mut resolved, mut rest) = (module.clone(), path.as_slice());
    while let Some((first, behind)) = rest.split_first() {
        match first.as_str() {
            "crate" => resolved.clear(),
            "super" => drop(resolved.pop()),
            "self" => {}
            _ => break,
        }
        rest = behind;
    }
    resolved.extend_from_slice(rest);
    // `self` at the end of a tree names the module before it.
    resolved.retain(|segment| segment != "self");
    resolved
}

/// Follows re-exports to the definition of a path.
fn follow(reexports: &BTreeMap<Path, Path>, mut path: Path) -> Path {
    for _ in 0..MAX_REEXPORTS {
        let target = (1..=path.len()).find_map(|end| Some((end, reexports.get(&path[..end])?)));
        let Some((end, target)) = target.filter(|(end, target)| **target != path[..*end]) else { break };
        path = [target.as_slice(), &path[end..]].concat();
    }
    path
}

/// Returns the crate's folder and the module's path of a file in `src`.
fn locate(file: &str) -> Option<(&str, Path)> {
    let (folder, file) = file.split_once("/src/")?;
    let mut path: Path = file.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|name| name == "mod") || matches!(file, "lib.rs" | "main.rs") {
        path.pop();
    }
    Some((folder, path))
}

/// Returns the modules of each crate, without those of tests.
fn read_crates(sources: &[Source]) -> BTreeMap<&str, BTreeMap<Path, Module>> {
    let mut crates: BTreeMap<&str, BTreeMap<Path, Module>> = BTreeMap::new();
    for source in sources {
        let Some((folder, path)) = locate(&source.path) else { continue };
        let Module { file, paths, reexports, test_modules } = read_module(&source.path, &source.text);
        // `lib.rs` and `main.rs` are one module here.
        let module = crates.entry(folder).or_default().entry(path).or_default();
        module.file = file;
        module.paths.extend(paths);
        module.reexports.extend(reexports);
        module.test_modules.extend(test_modules);
    }
    for modules in crates.values_mut() {
        let of_tests: BTreeSet<Path> = modules
            .iter()
            .flat_map(|(path, module)| {
                module.test_modules.iter().map(|name| [path.as_slice(), std::slice::from_ref(name)].concat())
            })
            .collect();
        modules.retain(|path, _| !(1..=path.len()).any(|end| of_tests.contains(&path[..end])));
    }
    crates
}

/// Returns the imports between siblings, by their parent.
fn sibling_edges(modules: &BTreeMap<Path, Module>) -> BTreeMap<Path, Edges> {
    let mut reexports = BTreeMap::new();
    for (path, module) in modules {
        for target in &module.reexports {
            if let Some(name) = target.last() {
                let target = resolve(path, target);
                reexports.insert([path.as_slice(), std::slice::from_ref(name)].concat(), target);
            }
        }
    }
    let mut graphs: BTreeMap<Path, Edges> = BTreeMap::new();
    for (importer, module) in modules {
        for written in &module.paths {
            let imported = follow(&reexports, resolve(importer, written));
            let common = importer.iter().zip(&imported).take_while(|(one, other)| one == other).count();
            let is_sibling = common < importer.len()
                && common < imported.len()
                && modules.contains_key(&imported[..=common]);
            if is_sibling {
                let edges = graphs.entry(importer[..common].to_vec()).or_default();
                let edges = edges.entry(importer[common].clone()).or_default();
                let example = || format!("{} uses {}", module.file, written.join("::"));
                edges.entry(imported[common].clone()).or_insert_with(example);
            }
        }
    }
    graphs
}

/// Returns the shortest circle through a module, without its repeated end.
fn shortest_circle<'a>(edges: &'a Edges, start: &'a str) -> Option<Vec<&'a str>> {
    let (mut queue, mut visited) = (VecDeque::from([vec![start]]), BTreeSet::new());
    while let Some(path) = queue.pop_front() {
        for next in edges.get(*path.last()?).into_iter().flatten().map(|(next, _)| next.as_str()) {
            if next == start {
                return Some(path);
            }
            if visited.insert(next) {
                queue.push_back([path.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

/// Describes the circles between the modules of all crates, each once.
fn find_circles(sources: &[Source]) -> Vec<String> {
    let mut circles = BTreeSet::new();
    for (folder, modules) in read_crates(sources) {
        for (parent, edges) in sibling_edges(&modules) {
            for circle in edges.keys().filter_map(|start| shortest_circle(&edges, start)) {
                // The circle begins with its first module by name.
                let first = circle.iter().enumerate().min_by_key(|(_, name)| **name).map_or(0, |(at, _)| at);
                let names: Vec<&str> =
                    circle.iter().cycle().skip(first).take(circle.len() + 1).copied().collect();
                let imports: Vec<&str> =
                    names.windows(2).map(|pair| edges[pair[0]][pair[1]].as_str()).collect();
                let place: Vec<&str> =
                    std::iter::once("crate").chain(parent.iter().map(String::as_str)).collect();
                circles.insert(format!(
                    "{folder}, {}: {}\n    {}",
                    place.join("::"),
                    names.join(" → "),
                    imports.join("\n    ")
                ));
            }
        }
    }
    circles.into_iter().collect()
}

#[test]
fn sibling_modules_import_each_other_in_no_circle() {
    let circles = find_circles(&rust_sources());
    assert!(circles.is_empty(), "move what both need to a place of its own:\n{}", circles.join("\n"));
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn a_circle_between_siblings_is_reported_with_its_path() {
    let sources = [
        source("shop/src/lib.rs", "mod a;\nmod b;\nmod c;\n"),
        source("shop/src/a.rs", "use crate::{d, b::{deep::One, two}};\n"),
        source("shop/src/b.rs", "mod deep;\n"),
        source("shop/src/b/deep.rs", "fn run(one: &[super::super::c::One<'_>]) {}\n"),
        source(
            "shop/src/c.rs",
            "#[cfg(test)]\nmod tests {}\npub fn r#call() -> char { crate::a::call('\\u{1f}') }\n",
        ),
    ];
    let circles = find_circles(&sources);
    assert_eq!(circles.len(), 1, "{circles:?}");
    let imports = [
        "shop, crate: a → b → c → a",
        "shop/src/a.rs uses crate::b::deep::One",
        "shop/src/b/deep.rs uses super::super::c::One",
        "shop/src/c.rs uses crate::a::call",
    ];
    assert!(imports.iter().all(|part| circles[0].contains(part)), "{circles:?}");
}

#[test]
fn a_reexport_does_not_hide_a_circle() {
    let sources = [
        source("shop/src/lib.rs", "mod state;\nmod auth;\npub use state::App;\n"),
        source("shop/src/state.rs", "use crate::auth::User;\n"),
        source("shop/src/auth.rs", "use crate::App;\n"),
    ];
    assert_eq!(find_circles(&sources).len(), 1);
}

#[test]
fn parents_comments_texts_and_tests_are_no_imports() {
    let b = r##"
// use crate::a;
const TEXT: &str = "crate::a \" '";
const RAW: &str = r#"crate::a" "#;
const QUOTE: char = '"';
#[cfg(test)]
pub(crate) mod tests {
    fn one() { crate::a::One }
}
#[cfg(test)]
use crate::a;
"##;
    let sources = [
        source("shop/src/lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod checks;\nuse a::One;\n"),
        source("shop/src/a.rs", "mod child;\nuse crate::{Settings, b};\nuse child::Two;\n"),
        source("shop/src/a/child.rs", "use super::One;\n"),
        source("shop/src/b.rs", b),
        source("shop/src/checks.rs", "use crate::{a, b};\n"),
    ];
    assert_eq!(find_circles(&sources), Vec::<String>::new());
}
