//! What people see: plain text into files and pipes, a little colour on a terminal.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Notice,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Notice => "36",
        }
    }
}

/// The text in that ink, where the output is a terminal whose owner has not asked for none (<https://no-color.org>).
pub fn ink(ink: Ink, text: &str) -> String {
    let coloured = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if coloured && ink != Ink::Plain { format!("\x1b[{}m{text}\x1b[0m", ink.code()) } else { text.to_owned() }
}

/// A line. Whoever reads it may have gone away: that stops nothing.
pub fn say(line: &str) {
    let _ = writeln!(stdout().lock(), "{line}");
}

/// A part of a line, shown at once.
pub fn begin(text: &str) {
    let mut out = stdout().lock();
    let _ = write!(out, "{text}");
    let _ = out.flush();
}

/// A step that was taken.
pub fn done(what: &str, detail: &str) {
    say(&format!("  {} {what} {}", ink(Ink::Good, "✓"), ink(Ink::Dim, detail)));
}

/// The last words of a command that failed.
pub fn complain(why: &str) {
    let _ = writeln!(stderr().lock(), "{}", why.trim_end());
}
