//! The gRPC `AuditService`, which each service hosts over its own records.

use std::marker::PhantomData;

use serde_json::Value;
use shoppee_proto::{
    Object,
    audit::v1::{
        AuditActor, AuditRecord, AuditTarget, ListAuditRecordsRequest, ListAuditRecordsResponse,
        audit_service_server::{AuditService, AuditServiceServer},
    },
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::store::{Query, Store, StoredRecord};
use crate::{
    pg::{self, PgPool},
    status::{self, ServiceError},
};

/// Bounds the records that a page with further filters scans, each of which takes about 1 µs.
const MAX_SCANNED_RECORDS: i64 = 10_000;

pub fn new<S: Store>(pool: PgPool) -> AuditServiceServer<Service<S>> {
    AuditServiceServer::new(Service { pool, store: PhantomData })
}

#[derive(Debug)]
pub struct Service<S> {
    pool: PgPool,
    store: PhantomData<S>,
}

#[tonic::async_trait]
impl<S: Store> AuditService for Service<S> {
    #[tracing::instrument(name = "audit.list", skip_all)]
    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        let (query, limit) = Query::parse(request.into_inner()).map_err(ServiceError::malformed)?;
        Ok(Response::new(self.fetch_page(query, limit).await.map_err(|error| store_error(&error))?))
    }
}

impl<S: Store> Service<S> {
    async fn fetch_page(&self, mut query: Query, limit: i64) -> sqlx::Result<ListAuditRecordsResponse> {
        let mut conn = self.pool.acquire().await?;
        let scan_end = if query.is_filtered() {
            S::find_nth(&mut conn, &query, MAX_SCANNED_RECORDS).await?.map(successor)
        } else {
            None
        };
        query.from = scan_end.unwrap_or(query.from);
        // One more record than requested shows whether there is another page.
        let mut records = S::fetch_page(&mut conn, &query, limit + 1).await?;
        let size = usize::try_from(limit).unwrap_or_default();
        let is_full = records.len() > size;
        records.truncate(size);
        let next = if is_full { records.last().map(|last| last.id) } else { scan_end };
        Ok(ListAuditRecordsResponse {
            items: records.into_iter().map(|record| message(S::SERVICE, record)).collect(),
            next_cursor: next.map(|next| query.list.encode(&next)),
        })
    }
}

/// Returns the next higher id.
fn successor(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_add(1))
}

fn message(service: &str, record: StoredRecord) -> AuditRecord {
    let (actor, target) = (split(&record.actor), split(&record.target));
    AuditRecord {
        id: record.id.to_string(),
        at: Some(record.at.into()),
        service: service.to_owned(),
        actor: Some(AuditActor { kind: actor.0, id: actor.1, name: record.actor_name }),
        action: record.action,
        target: Some(AuditTarget { kind: target.0, id: target.1 }),
        before: record.before.map(object),
        after: record.after.map(object),
        request_id: record.request_id,
    }
}

/// Splits `product:42` into kind and id.
fn split(key: &str) -> (String, String) {
    let (kind, id) = key.split_once(':').unwrap_or((key, ""));
    (kind.to_owned(), id.to_owned())
}

/// Converts the fields of a change, which are representable by their bounds.
fn object(fields: Value) -> Object {
    serde_json::from_value(fields).unwrap_or_default()
}

fn store_error(error: &sqlx::Error) -> Status {
    if pg::is_unavailable(error) {
        status::unavailable().into()
    } else {
        tracing::error!(%error, "the audit log cannot be read");
        status::internal().into()
    }
}
