//! `/admin/audit`: the audit records of all services, merged.

use serde::Deserialize;
use shoppee_kit::{audit_log::list_of, cursor};
use shoppee_proto::{
    Timestamp,
    audit::v1::{ListAuditRecordsRequest, ListAuditRecordsResponse},
};
use uuid::Uuid;

use crate::{
    auth::Admin,
    error::Problem,
    extract::{Json, Query, deserialize_time},
    routes::pagination::{as_query_error, check_limit, page_size},
    upstream::{ListAuthAudit, ListOrderAudit, ListProductAudit, Upstream},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    actor: Option<String>,
    action: Option<String>,
    target: Option<String>,
    #[serde(default, deserialize_with = "deserialize_time")]
    since: Option<Timestamp>,
    #[serde(default, deserialize_with = "deserialize_time")]
    until: Option<Timestamp>,
    limit: Option<i32>,
    cursor: Option<String>,
}

/// Lists the records of all services. Without one of them the list would have a silent gap, and fails.
pub async fn list(
    admin: Admin,
    upstream: Upstream,
    Query(list): Query<Records>,
) -> Result<Json<ListAuditRecordsResponse>, Problem> {
    check_limit(list.limit)?;
    let Records { actor, action, target, since, until, limit, cursor } = list;
    let request = ListAuditRecordsRequest { actor, action, target, since, until, limit, cursor };
    let all = list_of(&request);
    let pages = tokio::try_join!(
        upstream.call(&admin, ListAuthAudit(request.clone())),
        upstream.call(&admin, ListProductAudit(request.clone())),
        upstream.call(&admin, ListOrderAudit(request)),
    );
    let (auth, product, order) = pages.map_err(as_query_error)?;
    Ok(Json(merge([auth, product, order], page_size(limit), all).ok_or_else(Problem::internal)?))
}

/// Merges a page of each service. A service whose page has a next one has told all its records down to the cursor; below
/// it, only the next page has them all. The order of ids is the order of time, so that one position is the cursor of all.
/// Returns `None` for an undecodable cursor.
fn merge(
    pages: [ListAuditRecordsResponse; 3],
    size: usize,
    list: cursor::List,
) -> Option<ListAuditRecordsResponse> {
    let cursors = pages.iter().filter_map(|page| page.next_cursor.as_deref());
    let positions: Vec<Uuid> = cursors.map(|cursor| list.decode(cursor)).collect::<Result<_, _>>().ok()?;
    let complete_from = positions.into_iter().max();
    let parse = |id: &str| id.parse::<Uuid>().unwrap_or_default();
    let mut items: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    items.retain(|record| complete_from.is_none_or(|from| parse(&record.id) >= from));
    items.sort_unstable_by(|one, other| other.id.cmp(&one.id));
    let is_full = items.len() > size;
    items.truncate(size);
    let next = if is_full { items.last().map(|last| parse(&last.id)) } else { complete_from };
    Some(ListAuditRecordsResponse { items, next_cursor: next.map(|next| list.encode(&next)) })
}

#[cfg(test)]
mod tests {
    use shoppee_proto::audit::v1::AuditRecord;

    use super::*;

    fn list() -> cursor::List {
        list_of(&ListAuditRecordsRequest::default())
    }

    /// Returns the id of a record of a service.
    fn id(service: usize, number: u64) -> Uuid {
        Uuid::from_u64_pair(number, service as u64)
    }

    /// Returns the page of a service that scans `scanned` records and filters those with an odd number.
    fn page(
        service: usize,
        numbers: &[u64],
        before: Uuid,
        scanned: usize,
        size: usize,
    ) -> ListAuditRecordsResponse {
        let mut numbers: Vec<_> =
            numbers.iter().copied().filter(|number| id(service, *number) < before).collect();
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        let end = numbers.get(scanned).map(|end| Uuid::from_u128(id(service, *end).as_u128() + 1));
        let found = numbers.into_iter().take(scanned).filter(|number| number % 2 == 0);
        let mut records: Vec<_> = found.map(|number| id(service, number)).collect();
        let is_full = records.len() > size;
        records.truncate(size);
        let next = if is_full { records.last().copied() } else { end };
        let record = |id: Uuid| AuditRecord { id: id.to_string(), ..AuditRecord::default() };
        ListAuditRecordsResponse {
            items: records.into_iter().map(record).collect(),
            next_cursor: next.map(|next| list().encode(&next)),
        }
    }

    #[test]
    fn pages_have_each_record_once_and_in_order() {
        // Records of three services: dense and old, sparse, and none.
        let services = [(1..200).collect::<Vec<u64>>(), (100..600).step_by(7).collect(), Vec::new()];
        let mut expected = Vec::new();
        for (service, numbers) in services.iter().enumerate() {
            let shown = numbers.iter().filter(|number| **number % 2 == 0);
            expected.extend(shown.map(|number| id(service, *number).to_string()));
        }
        expected.sort_unstable_by(|one, other| other.cmp(one));
        for (size, scanned) in [(1, 3), (5, 4), (10, 1000), (100, 1000), (1000, 7)] {
            let (mut records, mut before) = (Vec::new(), Uuid::max());
            loop {
                let pages = [0, 1, 2].map(|service| page(service, &services[service], before, scanned, size));
                let merged = merge(pages, size, list()).unwrap();
                assert!(merged.items.len() <= size);
                records.extend(merged.items.into_iter().map(|record| record.id));
                let Some(cursor) = merged.next_cursor else { break };
                let next: Uuid = list().decode(&cursor).unwrap();
                assert!(next < before, "each page makes progress");
                before = next;
            }
            assert_eq!(records, expected, "{size} {scanned}");
        }
    }
}
