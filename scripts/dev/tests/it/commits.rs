//! The form of commit messages: a subject of at most 72 characters, a blank line, and a body.

use std::process::Command;

use crate::rules::root;

/// The last commit before the rule.
const RULE_SINCE: &str = "d904c3011412ff8f454ebd80c241587c0e93b4b5";
const MAX_SUBJECT_CHARS: usize = 72;

/// Returns the violation of a message, if any.
fn violation(message: &str) -> Option<String> {
    let (subject, rest) = message.trim_end().split_once('\n').unwrap_or((message.trim_end(), ""));
    let length = subject.chars().count();
    if length > MAX_SUBJECT_CHARS {
        return Some(format!("the subject has {length} characters, more than {MAX_SUBJECT_CHARS}"));
    }
    match rest.split_once('\n') {
        _ if rest.trim().is_empty() => Some("has no body".to_owned()),
        Some(("", _)) => None,
        _ => Some("has no blank line after the subject".to_owned()),
    }
}

/// Returns the output of git; `None` without git, a repository or the commits.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn new_commits_have_a_short_subject_and_a_body() {
    let range = format!("{RULE_SINCE}..HEAD");
    let Some(log) = git(&["log", "--no-merges", "--format=%h%x00%B%x01", &range]) else {
        eprintln!("skipped: this checkout has no history back to {RULE_SINCE}");
        return;
    };
    let commits = log.split('\u{1}').filter_map(|commit| commit.trim_start().split_once('\0'));
    let violations: Vec<String> = commits
        .filter_map(|(id, message)| {
            let subject = message.lines().next().unwrap_or_default();
            Some(format!("{id} {subject}: {}", violation(message)?))
        })
        .collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn a_long_subject_and_a_missing_body_are_violations() {
    let subject = "s".repeat(MAX_SUBJECT_CHARS);
    assert_eq!(violation(&format!("{subject}\n\nIt says why.\n")), None);
    for (message, expected) in [
        (format!("{subject}s\n\nIt says why.\n"), "73 characters"),
        (subject.clone(), "no body"),
        (format!("{subject}\n\n\n"), "no body"),
        (format!("{subject}\nIt says why.\n"), "no blank line"),
        (format!("{subject}\nIt says why.\n\nMore.\n"), "no blank line"),
    ] {
        assert!(violation(&message).is_some_and(|violation| violation.contains(expected)), "{message:?}");
    }
}
