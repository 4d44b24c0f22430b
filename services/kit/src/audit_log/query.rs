//! The pages of a list of audit records. A record's id is a UUIDv7 of its time, so that a bound of the time, and the
//! position of a page, is a bound of the ids, in every service.

use shoppee_proto::{Timestamp, audit::v1::ListAuditRecordsRequest};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{cursor, status::Violations};

const DEFAULT_PAGE_SIZE: i32 = 20;
const MAX_PAGE_SIZE: i32 = 100;
/// Bounds a filter, above the longest kind and id.
const MAX_FILTER_BYTES: usize = 140;
/// A selection of records.
#[derive(Clone, Debug)]
pub struct Query {
    /// Kind and id.
    pub actor: Option<String>,
    pub action: Option<String>,
    /// Kind and id.
    pub target: Option<String>,
    /// The lowest id, inclusive.
    pub from: Uuid,
    /// The highest id, exclusive.
    pub before: Uuid,
    /// The list to which the cursors belong.
    pub list: cursor::List,
}

/// The index that finds the records of a query. The other filters are applied to what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index<'a> {
    Target(&'a str),
    Actor(&'a str),
    Action(&'a str),
    Time,
}

impl Query {
    /// Parses a request, and returns its query with the size of the page.
    pub(super) fn parse(request: ListAuditRecordsRequest) -> Result<(Self, i64), Violations> {
        let mut violations = Violations::default();
        let is_key = |key: &Option<String>| key.as_deref().is_none_or(is_key);
        violations.require(is_key(&request.actor), "actor", "must be a kind and an id, as in admin:17");
        violations.require(is_key(&request.target), "target", "must be a kind and an id, as in product:42");
        let is_action = request.action.as_deref().is_none_or(is_action);
        violations.require(is_action, "action", "must be an action, as in product.update");
        let (since, until) = (first_id("since", request.since), first_id("until", request.until));
        let since = violations.collect("since", since).flatten();
        let until = violations.collect("until", until).flatten();
        let is_ordered = since.zip(until).is_none_or(|(since, until)| since <= until);
        violations.require(is_ordered, "since", "must not be after until");
        let limit = request.limit.unwrap_or(DEFAULT_PAGE_SIZE);
        violations.require((1..=MAX_PAGE_SIZE).contains(&limit), "limit", "must be 1 to 100");
        violations.finish()?;
        let list = list_of(&request);
        let before = request.cursor.as_deref().map(|cursor| list.decode(cursor)).transpose()?;
        let query = Self {
            actor: request.actor,
            action: request.action,
            target: request.target,
            from: since.unwrap_or(Uuid::nil()),
            before: before.unwrap_or(Uuid::max()).min(until.unwrap_or(Uuid::max())),
            list,
        };
        Ok((query, limit.into()))
    }

    pub fn index(&self) -> Index<'_> {
        match (&self.target, &self.actor, &self.action) {
            (Some(target), _, _) => Index::Target(target),
            (None, Some(actor), _) => Index::Actor(actor),
            (None, None, Some(action)) => Index::Action(action),
            (None, None, None) => Index::Time,
        }
    }

    /// Reports whether further filters apply to what the index finds.
    pub(super) fn is_filtered(&self) -> bool {
        [&self.actor, &self.action, &self.target].into_iter().flatten().count() > 1
    }
}

/// Reports whether a filter is a kind and an id.
fn is_key(filter: &str) -> bool {
    let is_kind =
        |kind: &str| !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_id = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic());
    filter.len() <= MAX_FILTER_BYTES
        && filter.split_once(':').is_some_and(|(kind, id)| is_kind(kind) && is_id(id))
}

fn is_action(filter: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || b"_.".contains(&byte);
    (1..=MAX_FILTER_BYTES).contains(&filter.len()) && filter.bytes().all(is_allowed)
}

/// Returns the lowest id of records that are made at `at` or later. Records have whole milliseconds.
fn first_id(field: &str, at: Option<Timestamp>) -> Result<Option<Uuid>, String> {
    let Some(at) = at else { return Ok(None) };
    let at = OffsetDateTime::try_from(at).map_err(|_| format!("{field} is no time"))?;
    let milliseconds = at.unix_timestamp_nanos().div_euclid(1_000_000)
        + i128::from(at.unix_timestamp_nanos().rem_euclid(1_000_000) > 0);
    Ok(Some(Uuid::from_u128(u128::try_from(milliseconds).unwrap_or_default() << 80)))
}

/// Returns the list that a request asks for, in whichever service. Its position is the id of the last record.
pub fn list_of(request: &ListAuditRecordsRequest) -> cursor::List {
    let ListAuditRecordsRequest { actor, action, target, since, until, limit: _, cursor: _ } = request;
    let seconds_and_nanos = |at: &Option<Timestamp>| at.map(|at| (at.seconds, at.nanos));
    cursor::List::new(&("audit", actor, action, target, seconds_and_nanos(since), seconds_and_nanos(until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ListAuditRecordsRequest {
        ListAuditRecordsRequest::default()
    }

    fn at(seconds: i64, nanos: i32) -> Timestamp {
        Timestamp { seconds, nanos }
    }

    #[test]
    fn an_invalid_parameter_is_named() {
        let text = |text: &str| Some(text.to_owned());
        let long = format!("user:{}", "7".repeat(MAX_FILTER_BYTES));
        let other = ListAuditRecordsRequest { actor: text("admin:7"), ..request() };
        let of_another_actor = list_of(&other).encode(&Uuid::nil());
        for (invalid, field) in [
            (ListAuditRecordsRequest { actor: text("admin"), ..request() }, "actor"),
            (ListAuditRecordsRequest { actor: text(":7"), ..request() }, "actor"),
            (ListAuditRecordsRequest { actor: text("admin:\0"), ..request() }, "actor"),
            (ListAuditRecordsRequest { actor: text("Admin:7"), ..request() }, "actor"),
            (ListAuditRecordsRequest { target: text("product:"), ..request() }, "target"),
            (ListAuditRecordsRequest { target: text("product:4 2"), ..request() }, "target"),
            (ListAuditRecordsRequest { target: Some(long), ..request() }, "target"),
            (ListAuditRecordsRequest { action: text(""), ..request() }, "action"),
            (ListAuditRecordsRequest { action: text("product:update"), ..request() }, "action"),
            (ListAuditRecordsRequest { since: Some(at(i64::MAX, 0)), ..request() }, "since"),
            (ListAuditRecordsRequest { since: Some(at(2, 0)), until: Some(at(1, 0)), ..request() }, "since"),
            (ListAuditRecordsRequest { limit: Some(0), ..request() }, "limit"),
            (ListAuditRecordsRequest { limit: Some(101), ..request() }, "limit"),
            (ListAuditRecordsRequest { cursor: text("x"), ..request() }, "cursor"),
            (ListAuditRecordsRequest { cursor: Some(of_another_actor), ..request() }, "cursor"),
        ] {
            let violations = Query::parse(invalid.clone()).unwrap_err();
            assert_eq!(violations.iter().map(|(field, _)| field).collect::<Vec<_>>(), [field], "{invalid:?}");
        }
    }

    #[test]
    fn the_bounds_of_the_time_are_bounds_of_the_ids() {
        let id_at = |milliseconds: u64| {
            let (seconds, nanos) =
                (milliseconds / 1000, u32::try_from(milliseconds % 1000).unwrap() * 1_000_000);
            Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
        };
        for (since, until, selected) in [
            (Some(at(1_700_000_000, 0)), Some(at(1_700_000_000, 2_000_000)), &[0, 1][..]),
            (Some(at(1_700_000_000, 1)), Some(at(1_700_000_000, 2_000_001)), &[1, 2]),
            (Some(at(1_700_000_000, 3_000_000)), None, &[3]),
            (Some(at(-1, 0)), Some(at(1_700_000_000, 1_000_000)), &[0]),
            (None, None, &[0, 1, 2, 3]),
        ] {
            let (query, _) = Query::parse(ListAuditRecordsRequest { since, until, ..request() }).unwrap();
            let ids = (0..4).filter(|offset| {
                let id = id_at(1_700_000_000_000 + offset);
                query.from <= id && id < query.before
            });
            assert_eq!(ids.collect::<Vec<_>>(), selected, "{since:?} {until:?}");
        }
    }

    #[test]
    fn the_most_selective_filter_has_the_index() {
        let query = |target: &str, actor: &str, action: &str| {
            let filter = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let (actor, action, target) = (filter(actor), filter(action), filter(target));
            Query::parse(ListAuditRecordsRequest { actor, action, target, ..request() }).unwrap().0
        };
        for (target, actor, action, index, is_filtered) in [
            ("user:7", "admin:1", "user.update", Index::Target("user:7"), true),
            ("user:7", "", "", Index::Target("user:7"), false),
            ("", "admin:1", "user.update", Index::Actor("admin:1"), true),
            ("", "admin:1", "", Index::Actor("admin:1"), false),
            ("", "", "user.update", Index::Action("user.update"), false),
            ("", "", "", Index::Time, false),
        ] {
            let query = query(target, actor, action);
            assert_eq!((query.index(), query.is_filtered()), (index, is_filtered));
        }
    }
}
