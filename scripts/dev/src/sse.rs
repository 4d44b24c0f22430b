//! A parser of Server-Sent Events (HTML Living Standard, 9.2.6). It remembers the last id, with which a client resumes.

/// Bounds an unfinished event. A frame of the shop takes a few hundred bytes.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// The state of a stream.
#[derive(Debug, Default)]
pub struct Parser {
    /// The bytes after the last whole line.
    line: Vec<u8>,
    data: String,
    id: Option<String>,
    /// The id of the last block.
    pub last_id: Option<String>,
}

impl Parser {
    /// Creates a parser of a stream that begins after `last_id`.
    pub fn new(last_id: Option<String>) -> Self {
        Self { id: last_id.clone(), last_id, ..Self::default() }
    }

    /// Parses the next bytes of the stream, and returns the data of the events that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                events.extend(self.end_line(std::str::from_utf8(&line)?.trim_end_matches('\r')));
            } else {
                self.line.push(*byte);
            }
            anyhow::ensure!(self.line.len() + self.data.len() <= MAX_EVENT_BYTES, "an event has no end");
        }
        Ok(events)
    }

    /// Returns the data of an event that the line ends. A block without data is no event, but sets the id.
    fn end_line(&mut self, line: &str) -> Option<String> {
        if line.is_empty() {
            self.last_id.clone_from(&self.id);
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" => self.id = Some(value.to_owned()),
            // A comment, `event` and `retry`.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 2000\n\nid: 7\ndata: {\"one\":1}\n\n: alive\n\nid:8\r\ndata:two\r\ndata: lines\r\n\r\n\
                          id: 9\n\ndata: cut";

    #[test]
    fn events_are_complete_however_the_stream_is_cut() {
        for size in [1, 3, 1000] {
            let mut parser = Parser::new(Some("6".to_owned()));
            let mut events = Vec::new();
            for part in STREAM.as_bytes().chunks(size) {
                events.extend(parser.feed(part).unwrap());
            }
            assert_eq!(events, ["{\"one\":1}", "two\nlines"]);
            assert_eq!(parser.last_id.as_deref(), Some("9"), "a block without data moves the id");
        }
    }

    #[test]
    fn an_id_counts_after_its_event_is_complete() {
        let mut parser = Parser::new(Some("6".to_owned()));
        assert_eq!(parser.feed(b"id: 7\ndata: x\n").unwrap(), Vec::<String>::new());
        assert_eq!(parser.last_id.as_deref(), Some("6"));
        assert_eq!(parser.feed(b"\n").unwrap(), ["x"]);
        assert_eq!(parser.last_id.as_deref(), Some("7"));
    }

    #[test]
    fn an_event_without_an_end_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.feed(&vec![b'x'; MAX_EVENT_BYTES + 1]).is_err());
    }
}
