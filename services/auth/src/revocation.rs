//! The state of verifiers: the public keys, and the sessions that were revoked before their tokens expired. Other
//! processes poll it a few times a second ([`shoppee_kit::verifier_sync`]). A worker updates this process's own verifier, and
//! revocations by this process apply to it at once.
//!
//! A reader gets every revocation that was committed since its last read. PostgreSQL snapshots decide, not clocks, so
//! that a transaction that commits late is not missed.

use std::sync::{Arc, Mutex, PoisonError};

use shoppee_kit::{
    caller::Verifier,
    process::Process,
    readiness::Criticality,
    worker::{self, Round},
};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    AuthContext,
    error::Error,
    store::session::{self, RevokedSession, Snapshot},
};

/// The poll interval of all verifiers: a revocation is effective everywhere within a second.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);
/// Bounds the sessions of a response: at about 50 bytes each well below gRPC's limit of 4 MiB.
const PAGE_SIZE: i64 = 20_000;
/// The clock difference that verifiers tolerate.
const CLOCK_LEEWAY: Duration = Duration::seconds(5);
/// Bounds a cursor, which lists the running transactions: at most one per connection of the server.
const MAX_CURSOR_BYTES: usize = 32 * 1024;

/// A handle to this process's own verifier.
#[derive(Debug)]
pub struct Revocations {
    verifier: Arc<Verifier>,
}

impl Revocations {
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self { verifier }
    }

    /// Applies revocations to this process's verifier. Other processes get them with their next poll.
    pub fn apply(&self, revoked: &[RevokedSession]) {
        let sessions =
            revoked.iter().map(|session| revoked_session(session.id, session.access_expires_at)).collect();
        self.verifier.revoke_sessions(sessions);
    }

    /// Applies the revocation of a service account to this process's verifier.
    pub fn apply_to_service(&self, revoked: RevokedSession) {
        let account =
            EndedSession { service: true, ..revoked_session(revoked.id, revoked.access_expires_at) };
        self.verifier.revoke_sessions(vec![account]);
    }
}

fn revoked_session(id: Uuid, access_expires_at: OffsetDateTime) -> EndedSession {
    // Claims have whole seconds, so the expiry is rounded up.
    EndedSession { sid: id.to_string(), forget_at: access_expires_at.unix_timestamp() + 1, service: false }
}

/// The position of a reader, as text `server/since` or `server/since/until/tx/session`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    /// The start time of the database server, which scopes the transaction ids.
    server: i64,
    /// The snapshot up to which the reader is complete; `None` before the first complete list.
    since: Option<String>,
    page: Option<Page>,
}

/// The position within the list that takes a reader to the snapshot `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    until: String,
    after: (i64, Uuid),
}

impl Cursor {
    /// Parses a cursor; `None` if the text is no cursor.
    fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_CURSOR_BYTES {
            return None;
        }
        let is_snapshot = |text: &&str| Snapshot::parse(text).is_some();
        let mut parts = text.split('/');
        let server = parts.next()?.parse().ok()?;
        let since = match parts.next()? {
            "" => None,
            since => Some(Some(since).filter(is_snapshot)?.to_owned()),
        };
        let page = match parts.next() {
            Some(until) => {
                let until = Some(until).filter(is_snapshot)?.to_owned();
                Some(Page { until, after: (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?) })
            }
            None => None,
        };
        parts.next().is_none().then_some(Self { server, since, page })
    }

    fn encode(&self) -> String {
        let Self { server, since, page } = self;
        let since = since.as_deref().unwrap_or_default();
        page.as_ref().map_or_else(
            || format!("{server}/{since}"),
            |Page { until, after: (tx, id) }| format!("{server}/{since}/{until}/{tx}/{id}"),
        )
    }
}

/// Returns the public keys, and the sessions that were revoked since the response with this cursor; without a cursor
/// all of them.
pub async fn verifier_state(context: &AuthContext, cursor: Option<&str>) -> Result<GetJwksResponse, Error> {
    let mut conn = context.pool.acquire().await?;
    let (server, snapshot) = session::current_snapshot(&mut conn).await?;
    let cursor = cursor.and_then(Cursor::parse).filter(|cursor| cursor.server == server).unwrap_or(Cursor {
        server,
        since: None,
        page: None,
    });
    let (until, after) = match &cursor.page {
        Some(page) => (page.until.clone(), page.after),
        None => (snapshot, (i64::MIN, Uuid::nil())),
    };
    let revoked = if cursor.since.as_ref() == Some(&until) {
        // No transaction has been committed since.
        Vec::new()
    } else {
        let since = cursor.since.as_deref().and_then(Snapshot::parse).unwrap_or(Snapshot::EMPTY);
        session::list_revoked_since(&mut conn, &since, after, context.clock.now() - CLOCK_LEEWAY, PAGE_SIZE)
            .await?
    };
    let last = revoked.last().filter(|_| i64::try_from(revoked.len()) == Ok(PAGE_SIZE));
    let next = match last {
        Some(last) => Cursor { page: Some(Page { until, after: (last.tx, last.id) }), ..cursor },
        None => Cursor { since: Some(until), page: None, ..cursor },
    };
    Ok(GetJwksResponse {
        keys: context.signer.jwks().to_vec(),
        more: next.page.is_some(),
        cursor: next.encode(),
        ended_sessions: revoked
            .iter()
            .map(|revoked| EndedSession {
                service: revoked.is_service,
                ..revoked_session(revoked.id, revoked.access_expires_at)
            })
            .collect(),
    })
}

/// Starts the worker that updates this process's verifier. The service is not ready before the first complete list.
pub fn spawn(context: Arc<AuthContext>, process: &Process) {
    let readiness = process.readiness.clone();
    readiness.set("keys", Criticality::Required, false);
    let cursor = Arc::<Mutex<Option<String>>>::default();
    worker::spawn(process, "revocation", POLL_INTERVAL, crate::database_ready(process), move || {
        let (context, readiness, cursor) = (context.clone(), readiness.clone(), cursor.clone());
        async move {
            let position = cursor.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let state = verifier_state(&context, position.as_deref()).await?;
            *cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.cursor.clone());
            let has_more = state.more;
            context.revocations.verifier.update(state);
            if !has_more {
                readiness.set("keys", Criticality::Required, true);
            }
            Ok::<_, Error>(Round::more_if(has_more))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_a_cursor_parses() {
        let page = Page { until: "7:9:7,8".to_owned(), after: (7, Uuid::nil()) };
        for since in [None, Some("5:6:".to_owned())] {
            for page in [None, Some(page.clone())] {
                let cursor = Cursor { server: 1_702_886_400_123_456, since: since.clone(), page };
                assert_eq!(Cursor::parse(&cursor.encode()), Some(cursor));
            }
        }
        let long = format!("1/1:1:{}", "7,".repeat(MAX_CURSOR_BYTES));
        for invalid in ["", "1", "x/5:6:", "1/5:6", "1/5:6:/7:9:", "1/5:6:/7:9:/7/x", "1/5:6:/7:9:/7/", &long]
        {
            assert_eq!(Cursor::parse(invalid), None, "{invalid}");
        }
    }
}
