//! The frames that the gateway sends: `{"type","content","user_id","time","seq"?}`. An event is serialised once and
//! shared by all sockets that receive it.

use std::sync::Arc;

use serde::Serialize;
use shoppee_kit::telemetry;
use shoppee_proto::{
    Timestamp,
    json::json_name_or,
    order::v1::{OrderEvent, OrderStatus},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::Span;

use super::close_code::CloseReason;

/// A serialised event.
#[derive(Debug)]
pub struct Frame {
    pub seq: i64,
    pub text: Utf8Bytes,
    /// The time of the commit.
    committed: Timestamp,
    /// Lasts from the arrival here until the last socket has sent the event, in the trace of the request that caused it.
    /// None in a replay.
    _span: Span,
}

impl Frame {
    /// Serialises an event of a replay; `None` if the event is invalid or its values are unknown.
    pub fn from_event(event: &OrderEvent) -> Option<Self> {
        Self::build(Span::none(), event)
    }

    /// Does the same for a live event, and continues the trace that the event carries.
    pub fn from_live_event(event: &OrderEvent) -> Option<Self> {
        let span = tracing::info_span!(
            "event.deliver",
            otel.kind = "consumer",
            user.id = event.user_id,
            event.seq = event.seq,
            order.id = %event.order_id,
        );
        telemetry::continue_traceparent(&span, &event.traceparent);
        Self::build(span, event)
    }

    /// Returns the seconds since the commit.
    pub fn age(&self, now: Timestamp) -> f64 {
        let fraction = |time: Timestamp| f64::from(time.nanos) * 1e-9;
        #[expect(clippy::cast_precision_loss, reason = "below 2^53 for millions of years")]
        let seconds = now.seconds.saturating_sub(self.committed.seconds) as f64;
        // The clock of another machine may be a little ahead.
        (seconds + fraction(now) - fraction(self.committed)).max(0.0)
    }

    fn build(span: Span, event: &OrderEvent) -> Option<Self> {
        let committed = event.at?;
        let previous_status = match event.previous_status {
            Some(previous) => Some(json_name_or::<OrderStatus>(previous, &event.previous_status_word)?),
            None => None,
        };
        let content = Content {
            order_id: &event.order_id,
            status: json_name_or::<OrderStatus>(event.status, &event.status_word)?,
            previous_status,
            total: event.total,
            currency: &event.currency,
            version: event.version,
        };
        let text = write("order", content, event.user_id, committed.seconds, Some(event.seq));
        Some(Self { seq: event.seq, text, committed, _span: span })
    }
}

/// The first frame: the position from which the socket goes on.
pub fn ready(user_id: i64, now: i64, seq: i64, recovered: bool) -> Utf8Bytes {
    write("ready", Ready { seq, recovered }, user_id, now, None)
}

/// The answer to a client's ping.
pub fn pong(user_id: i64, now: i64) -> Utf8Bytes {
    write("pong", Empty {}, user_id, now, None)
}

/// The last event of a stream over HTTP, which has no close frame.
pub fn close(user_id: i64, now: i64, reason: CloseReason) -> Utf8Bytes {
    write("close", Close { code: reason.code(), reason: reason.as_str() }, user_id, now, None)
}

/// The answer to a long poll: the frames of events, and the position after them.
pub fn batch(seq: i64, recovered: bool, frames: &[Arc<Frame>]) -> String {
    let items: Vec<&str> = frames.iter().map(|frame| frame.text.as_str()).collect();
    format!(r#"{{"items":[{}],"seq":{seq},"recovered":{recovered}}}"#, items.join(","))
}

/// The answer to an invalid or refused command; `code` is a problem code.
pub fn error(user_id: i64, now: i64, code: &str) -> Utf8Bytes {
    write("error", Error { code }, user_id, now, None)
}

#[derive(Serialize)]
struct Content<'a> {
    order_id: &'a str,
    status: String,
    previous_status: Option<String>,
    total: i64,
    currency: &'a str,
    version: i64,
}

#[derive(Serialize)]
struct Ready {
    seq: i64,
    recovered: bool,
}

#[derive(Serialize)]
struct Close {
    code: u16,
    reason: &'static str,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
}

fn write(
    kind: &'static str,
    content: impl Serialize,
    user_id: i64,
    time: i64,
    seq: Option<i64>,
) -> Utf8Bytes {
    #[derive(Serialize)]
    struct Envelope<C> {
        #[serde(rename = "type")]
        kind: &'static str,
        content: C,
        user_id: i64,
        time: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<i64>,
    }

    // Strings and numbers serialise without errors.
    let text = serde_json::to_string(&Envelope { kind, content, user_id, time, seq });
    Utf8Bytes::from(text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn event() -> OrderEvent {
        OrderEvent {
            user_id: 123,
            seq: 42,
            order_id: "0197a1f0-5b7c-7cc2-9d5f-0123456789ab".to_owned(),
            status: OrderStatus::Paid.into(),
            previous_status: Some(OrderStatus::Pending.into()),
            total: 1999,
            currency: "EUR".to_owned(),
            version: 2,
            at: Some(Timestamp { seconds: 1_702_886_400, nanos: 999_999_999 }),
            traceparent: String::new(),
            status_word: String::new(),
            previous_status_word: String::new(),
        }
    }

    #[test]
    fn frames_have_the_documented_json() {
        assert_eq!(
            Frame::from_event(&event()).unwrap().text.as_str(),
            concat!(
                r#"{"type":"order","content":{"order_id":"0197a1f0-5b7c-7cc2-9d5f-0123456789ab","#,
                r#""status":"paid","previous_status":"pending","total":1999,"currency":"EUR","version":2},"#,
                r#""user_id":123,"time":1702886400,"seq":42}"#,
            )
        );
        assert_eq!(
            ready(7, 1_702_886_400, 41, true).as_str(),
            r#"{"type":"ready","content":{"seq":41,"recovered":true},"user_id":7,"time":1702886400}"#
        );
        assert_eq!(pong(7, 5).as_str(), r#"{"type":"pong","content":{},"user_id":7,"time":5}"#);
        assert_eq!(
            error(7, 5, "invalid_request").as_str(),
            r#"{"type":"error","content":{"code":"invalid_request"},"user_id":7,"time":5}"#
        );
    }

    #[test]
    fn frames_have_the_fields_that_the_asyncapi_document_describes() {
        let document: Value = serde_json::from_slice(&crate::openapi::asyncapi::document().unwrap()).unwrap();
        let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        let order = Frame::from_event(&event()).unwrap().text;
        for text in [ready(7, 5, 41, true), order, pong(7, 5), error(7, 5, "invalid_request")] {
            let frame: Value = serde_json::from_str(&text).unwrap();
            let message = &document["components"]["messages"][frame["type"].as_str().unwrap()];
            let path = message["payload"]["$ref"].as_str().unwrap().trim_start_matches('#');
            let schema = document.pointer(path).unwrap();
            assert_eq!(fields(&frame), fields(&schema["properties"]), "{text}");
            assert_eq!(fields(&frame).len(), schema["required"].as_array().unwrap().len(), "{text}");
            assert_eq!(
                fields(&frame["content"]),
                fields(&schema["properties"]["content"]["properties"]),
                "{text}"
            );
        }
    }

    #[test]
    fn a_new_order_has_a_null_previous_status() {
        let created = OrderEvent { previous_status: None, ..event() };
        assert!(Frame::from_event(&created).unwrap().text.contains(r#""previous_status":null"#));
    }

    #[test]
    fn an_unknown_status_is_sent_as_its_word() {
        for number in [0, 99] {
            let event = OrderEvent {
                status: number,
                previous_status: Some(number),
                status_word: "on_hold".to_owned(),
                previous_status_word: "picked".to_owned(),
                ..event()
            };
            let text = Frame::from_event(&event).unwrap().text;
            assert!(text.contains(r#""status":"on_hold","previous_status":"picked""#), "{text}");
        }
    }

    #[test]
    fn an_event_with_an_unknown_status_or_no_time_is_rejected() {
        assert!(Frame::from_event(&OrderEvent { status: 99, ..event() }).is_none());
        assert!(Frame::from_event(&OrderEvent { at: None, ..event() }).is_none());
    }
}
