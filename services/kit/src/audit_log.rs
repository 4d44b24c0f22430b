//! The audit log: a record of each grant, and of each act of admins and services. A service writes a record into its own
//! schema, in the transaction of the effect. The acts of customers on what they own are not recorded.
//!
//! The table `audit_record` has one shape in all schemas. [`store`] has its statements, `query` the pages of a list,
//! [`service`] the gRPC service, [`retention`] the deletion of old records. To audit another method, write a [`Record`] in
//! its transaction; a test of each service finds a method that writes none.

mod query;
pub mod retention;
pub mod service;
pub mod store;

use serde_json::{Map, Value};
use shoppee_proto::Object;
use time::OffsetDateTime;
use uuid::{ContextV7, Timestamp, Uuid};

use crate::{caller::Caller, request_id::RequestId};

pub use query::list_of;

/// Bounds a value in a record, in bytes of JSON. A record has ten fields at most on each side.
const MAX_VALUE_BYTES: usize = 512;

/// The actor of recorded acts, with the request in which it acts.
#[derive(Clone, Debug)]
pub struct Actor {
    /// Kind and id, as in `admin:17`.
    key: String,
    name: Option<String>,
    request_id: Option<String>,
}

impl Actor {
    /// Returns the caller of the current request: a service, or else an admin. Audited methods admit no other caller.
    pub fn from_caller(caller: &Caller) -> Self {
        let key = match caller.client_id() {
            Some(client_id) => format!("service:{client_id}"),
            None => format!("admin:{}", caller.user_id()),
        };
        let request_id = RequestId::current().map(|id| id.as_str().to_owned());
        Self { key, name: Some(caller.claims.username.clone()), request_id }
    }

    /// Returns the shop itself, as it applies a setting.
    pub fn from_setting(setting: &str) -> Self {
        Self { key: format!("system:{setting}"), name: None, request_id: None }
    }
}

/// The fields that an act changes, before and after it. A side is absent if the target does not exist there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    before: Option<Map<String, Value>>,
    after: Option<Map<String, Value>>,
}

impl Change {
    /// The creation of a target with the fields of the object `after`.
    pub fn creation(after: Value) -> Self {
        Self { before: None, after: Some(fields(after)) }
    }

    /// The deletion of a target with the fields of the object `before`.
    pub fn deletion(before: Value) -> Self {
        Self { before: Some(fields(before)), after: None }
    }

    /// The fields of the objects `before` and `after` that differ.
    pub fn between(before: Value, after: Value) -> Self {
        let (mut before, mut after) = (fields(before), fields(after));
        before.retain(|name, value| {
            let differs = after.get(name) != Some(value);
            if !differs {
                after.remove(name);
            }
            differs
        });
        Self { before: Some(before), after: Some(after) }
    }

    /// Adds a parameter of the act that is no field of the target, such as its reason.
    #[must_use]
    pub fn with_parameter(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.after.get_or_insert_default().insert(name.to_owned(), bound(value.into()));
        self
    }
}

fn fields(object: Value) -> Map<String, Value> {
    let Value::Object(fields) = object else { return Map::new() };
    fields.into_iter().map(|(name, value)| (name, bound(value))).collect()
}

/// Replaces a value that is too large, or that `google.protobuf.Struct` cannot represent, by the start of its text.
fn bound(value: Value) -> Value {
    let json = value.to_string();
    let is_representable = || match &value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            serde_json::from_str::<Object>(&format!("{{\"value\":{json}}}")).is_ok()
        }
    };
    if json.len() <= MAX_VALUE_BYTES && is_representable() {
        return value;
    }
    let text = if let Value::String(text) = value { text } else { json };
    Value::String(truncate(text, MAX_VALUE_BYTES))
}

/// Truncates a text so that its JSON has at most `max_len` bytes.
fn truncate(mut text: String, max_len: usize) -> String {
    const ELLIPSIS: char = '…';
    let json_len = |char: char| match char {
        '"' | '\\' => 2,
        char if char.is_ascii_control() => "\\u0000".len(),
        char => char.len_utf8(),
    };
    let max_len = max_len - "\"\"".len();
    let (mut len, mut end) = (0, 0);
    for (start, char) in text.char_indices() {
        if len + ELLIPSIS.len_utf8() <= max_len {
            end = start;
        }
        len += json_len(char);
        if len > max_len {
            text.truncate(end);
            text.push(ELLIPSIS);
            break;
        }
    }
    text
}

/// The record of an act.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    actor: &'a Actor,
    action: &'static str,
    target: String,
    /// JSON, as in the next field.
    before: Option<String>,
    after: Option<String>,
}

impl<'a> Record<'a> {
    /// Creates a record. The action is the object and the verb, as in `product.update`; the target is kind and id, as in
    /// `product:42`.
    pub fn new(actor: &'a Actor, action: &'static str, target: String, change: Change) -> Self {
        let json = |fields| Value::Object(fields).to_string();
        Self { actor, action, target, before: change.before.map(json), after: change.after.map(json) }
    }
}

/// The columns of records, as parameters of a statement that inserts them (`unnest`).
#[derive(Debug)]
pub struct Columns<'a> {
    /// Milliseconds, as in the ids.
    pub at: OffsetDateTime,
    pub ids: Vec<Uuid>,
    pub actors: Vec<&'a str>,
    pub actor_names: Vec<Option<&'a str>>,
    pub actions: Vec<&'static str>,
    pub targets: Vec<&'a str>,
    /// JSON, as in the next field.
    pub before: Vec<Option<&'a str>>,
    pub after: Vec<Option<&'a str>>,
    pub request_ids: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    /// Returns the columns of records that are made at `now`. Their ids ascend.
    pub fn new(records: &'a [Record<'a>], now: OffsetDateTime) -> Self {
        let at = now.replace_nanosecond(now.nanosecond() / 1_000_000 * 1_000_000).unwrap_or(now);
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
        let context = ContextV7::new();
        let id = |_| Uuid::new_v7(Timestamp::from_unix(&context, seconds, at.nanosecond()));
        Self {
            at,
            ids: records.iter().map(id).collect(),
            actors: records.iter().map(|record| &*record.actor.key).collect(),
            actor_names: records.iter().map(|record| record.actor.name.as_deref()).collect(),
            actions: records.iter().map(|record| record.action).collect(),
            targets: records.iter().map(|record| &*record.target).collect(),
            before: records.iter().map(|record| record.before.as_deref()).collect(),
            after: records.iter().map(|record| record.after.as_deref()).collect(),
            request_ids: records.iter().map(|record| record.actor.request_id.as_deref()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_has_the_fields_that_differ() {
        let before = json!({"name": "Lamp", "price": 100, "description": "old"});
        let change =
            Change::between(before.clone(), json!({"name": "Lamp", "price": 90, "description": "new"}));
        assert_eq!(Value::from(change.before.clone().unwrap()), json!({"price": 100, "description": "old"}));
        assert_eq!(Value::from(change.after.clone().unwrap()), json!({"price": 90, "description": "new"}));
        let with_reason = change.with_parameter("reason", "sale");
        assert_eq!(with_reason.after.unwrap()["reason"], "sale");
        assert_eq!(Change::creation(before.clone()).before, None);
        assert_eq!(Change::deletion(before.clone()).after, None);
        assert_eq!(Value::from(Change::creation(before.clone()).after.unwrap()), before);
    }

    #[test]
    fn a_value_that_is_too_large_or_too_deep_is_cut() {
        let deep = (0..16).fold(json!(1), |inner, _| json!({ "a": inner }));
        assert_eq!(bound(deep.clone()), deep.to_string(), "no message has it");
        assert_eq!(bound(json!(u64::MAX)), u64::MAX.to_string());
        for value in [json!("x".repeat(511)), json!("\u{1}\"é🦀".repeat(1000)), json!(vec!["é"; 400])] {
            let bounded = bound(value.clone());
            assert!((500..=MAX_VALUE_BYTES).contains(&bounded.to_string().len()), "{bounded}");
            let (text, whole) =
                (bounded.as_str().unwrap(), value.as_str().map_or(value.to_string(), str::to_owned));
            assert!(whole.starts_with(text.strip_suffix('…').unwrap()), "{text}");
        }
        for value in
            [json!("x".repeat(510)), json!(1_000_000_000_000_i64), json!({"a": [1, null, {"b": true}]})]
        {
            assert_eq!(bound(value.clone()), value);
        }
    }

    #[test]
    fn the_ids_of_records_ascend_and_have_the_time_of_the_records() {
        let actor = Actor::from_setting("test");
        let record = Record::new(&actor, "a.b", "a:1".to_owned(), Change::default());
        let records = vec![record; 1000];
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let columns = Columns::new(&records, now);
        assert_eq!(columns.at.unix_timestamp_nanos(), 1_700_000_000_123_000_000);
        assert!(columns.ids.is_sorted_by(|one, next| one < next));
        for id in columns.ids {
            let timestamp = id.get_timestamp().unwrap().to_unix();
            assert_eq!(timestamp, (1_700_000_000, 123_000_000));
        }
    }
}
