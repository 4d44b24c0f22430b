//! The parts that the rules of all values share.

/// The message of a refused value, for the client.
pub type ValidationError = &'static str;

/// Returns a text if it is one line, not blank, without control characters and not longer than `max_len`
/// characters.
pub fn single_line(text: String, max_len: usize) -> Option<String> {
    let is_valid =
        !text.trim().is_empty() && text.chars().count() <= max_len && !text.chars().any(char::is_control);
    is_valid.then_some(text)
}
