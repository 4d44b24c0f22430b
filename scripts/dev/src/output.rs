//! Terminal output: plain text into files and pipes, with colours on a terminal.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Notice,
}

impl Style {
    /// Returns the parameter of the ANSI escape sequence (SGR).
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

/// Returns the text with a style, if the output is a terminal and `NO_COLOR` is unset (<https://no-color.org>).
pub fn styled(style: Style, text: &str) -> String {
    let has_colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if has_colours && style != Style::Plain {
        format!("\x1b[{}m{text}\x1b[0m", style.code())
    } else {
        text.to_owned()
    }
}

/// Prints a line. A closed output is ignored, so that its reader may exit earlier.
pub fn print_line(line: &str) {
    let _ = writeln!(stdout().lock(), "{line}");
}

/// Prints a part of a line and flushes it.
pub fn print_partial(text: &str) {
    let mut out = stdout().lock();
    let _ = write!(out, "{text}");
    let _ = out.flush();
}

/// Prints a completed step.
pub fn print_step(step: &str, detail: &str) {
    print_line(&format!("  {} {step} {}", styled(Style::Good, "✓"), styled(Style::Dim, detail)));
}

/// Prints the error of a failed command to stderr.
pub fn print_error(message: &str) {
    let _ = writeln!(stderr().lock(), "{}", message.trim_end());
}
