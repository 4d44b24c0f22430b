//! A JSON formatter of log lines, with the ids of the current trace and request. It writes straight into the line: the
//! subscriber's own formatter serialises a map, which cost each request 5 µs.

use std::fmt::{self, Debug, Write as _};

use opentelemetry::trace::TraceContextExt as _;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

use crate::request_id::RequestId;

/// Formats an event as `timestamp`, `level`, its fields, `trace_id` within a trace, `request_id` within a request, and
/// `target`.
#[derive(Clone, Copy, Debug)]
pub struct JsonFormat;

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        line.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut line)?;
        write!(line, "\",\"level\":\"{}\"", event.metadata().level())?;
        let mut fields = Fields { line: &mut line, outcome: Ok(()) };
        event.record(&mut fields);
        fields.outcome?;
        let trace = super::current().span().span_context().trace_id();
        if trace != opentelemetry::TraceId::INVALID {
            write!(line, ",\"trace_id\":\"{trace}\"")?;
        }
        if let Some(id) = RequestId::current() {
            // The characters of an id need no escape.
            write!(line, ",\"request_id\":\"{}\"", id.as_str())?;
        }
        line.write_str(",\"target\":\"")?;
        Escaped(&mut line).write_str(event.metadata().target())?;
        line.write_str("\"}\n")
    }
}

struct Fields<'a, 'b> {
    line: &'a mut Writer<'b>,
    outcome: fmt::Result,
}

impl Fields<'_, '_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let mut write = || {
            self.line.write_str(",\"")?;
            Escaped(self.line).write_str(field.name())?;
            self.line.write_str("\":")
        };
        self.outcome = self.outcome.and_then(|()| write()).and_then(|()| value(self.line));
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, |line| {
            line.write_char('"')?;
            write!(Escaped(line), "{value:?}")?;
            line.write_char('"')
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, |line| {
            line.write_char('"')?;
            Escaped(line).write_str(value)?;
            line.write_char('"')
        });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no literals for NaN and infinity.
        self.write(
            field,
            |line| if value.is_finite() { write!(line, "{value}") } else { line.write_str("null") },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |line| write!(line, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, |line| write!(line, "{value}"));
    }
}

/// A writer that escapes text for a JSON string (RFC 8259 §7), so that no text can end the string or the line.
struct Escaped<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|char: char| matches!(char, '"' | '\\') || char.is_control()) {
            let (plain, odd) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = odd.chars();
            match chars.next() {
                Some(char @ ('"' | '\\')) => write!(self.0, "\\{char}")?,
                Some(char) => write!(self.0, "\\u{:04x}", u32::from(char))?,
                None => {}
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::Span;
    use tracing_subscriber::{Layer as _, layer::SubscriberExt as _};

    use crate::{
        request_id::{HEADER, RequestId},
        telemetry::{Trace, json},
    };

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Buffer {
        /// Captures the log lines of this thread.
        fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
            let buffer = Self::default();
            let writer = buffer.clone();
            let layer = json(move || writer.clone()).boxed();
            (buffer, tracing::subscriber::set_default(tracing_subscriber::registry().with(layer)))
        }

        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
        }
    }

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_line_within_a_request_has_the_ids_of_trace_and_request() {
        let (buffer, _guard) = Buffer::capture();
        let headers = http::HeaderMap::from_iter([(HEADER, http::HeaderValue::from_static("request-7"))]);
        let trace =
            Trace::from_headers(Span::none(), &headers).with_request_id(RequestId::from_headers(&headers));
        tracing::info!("before");
        trace.instrument(async { tracing::info!("within") }).await;
        // A task of its own continues the request.
        let with_task = async {
            let task = Trace::current().instrument(async { tracing::info!("task") });
            tokio::spawn(task).await.unwrap();
        };
        trace.instrument(with_task).await;
        let lines = buffer.lines();
        assert_eq!((lines[0].get("trace_id"), lines[0].get("request_id")), (None, None));
        for line in &lines[1..] {
            assert_eq!(line["trace_id"], trace.id());
            assert_eq!(line["request_id"], "request-7");
        }
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_line_is_one_json_object_for_any_text() {
        let (buffer, _guard) = Buffer::capture();
        let odd = "a \"quote\", a \\, a\nnew line, \u{0}, \u{1b}[31m, \u{85}, ü, 🦀";
        tracing::warn!(
            target: "odd \"target\"",
            text = odd, shown = %odd, number = -7_i64, large = u64::MAX, half = 0.5, none = f64::NAN, yes = true,
            absent = None::<i64>,
            "{odd}"
        );
        let line = &buffer.lines()[0];
        for (field, expected) in [
            ("message", odd.into()),
            ("text", odd.into()),
            ("shown", odd.into()),
            ("number", Value::from(-7)),
            ("large", u64::MAX.into()),
            ("half", 0.5.into()),
            ("none", Value::Null),
            ("yes", true.into()),
            ("level", "WARN".into()),
            ("target", "odd \"target\"".into()),
        ] {
            assert_eq!(line[field], expected, "{field}");
        }
        assert_eq!(line.get("absent"), None);
        let at = line["timestamp"].as_str().unwrap();
        time::OffsetDateTime::parse(at, &time::format_description::well_known::Rfc3339).expect(at);
    }
}
