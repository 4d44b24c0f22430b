//! What verifiers must know: the keys, and which sessions ended before their tokens did. Other processes ask
//! for it a few times a second ([`shoppee_kit::keys`]); our own verifier is told by a task here, and at once
//! of what this process ended itself.
//!
//! A reader is told of every commit since it last read, whenever the transaction began. The snapshots of PostgreSQL
//! decide, not the clock, so that a transaction which commits late is not missed.

use std::sync::{Arc, Mutex, PoisonError};

use shoppee_kit::{
    caller::Verifier,
    process::Process,
    readiness::Need,
    worker::{self, Round},
};
use shoppee_proto::auth::v1::{EndedSession, GetJwksResponse};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    Auth,
    error::Error,
    store::session::{self, Ended, Snapshot},
};

/// As often as the others ask: the end of a session shows everywhere within a second.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);
/// Sessions in one answer, about 50 bytes each: well below gRPC's 4 MiB.
const PAGE_SIZE: i64 = 20_000;
/// What verifiers let other clocks run ahead.
const LEEWAY: Duration = Duration::seconds(5);
/// Bounds a cursor, which names each transaction that was running: at most as many as the server has connections.
const MAX_CURSOR_BYTES: usize = 32 * 1024;

/// Our own verifier.
#[derive(Debug)]
pub struct Revocations {
    verifier: Arc<Verifier>,
}

impl Revocations {
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self { verifier }
    }

    /// Refuses these sessions here from now on; the others learn of it when they ask next.
    pub fn note(&self, ended: &[Ended]) {
        let ended = ended.iter().map(|ended| message(ended.id, ended.access_expires_at)).collect();
        self.verifier.end_sessions(ended);
    }
}

fn message(id: Uuid, access_expires_at: OffsetDateTime) -> EndedSession {
    // A claim is a whole second, the end of its session need not be.
    EndedSession { sid: id.to_string(), forget_at: access_expires_at.unix_timestamp() + 1 }
}

/// The position up to which a reader has been told, as text `server/since` or `server/since/until/tx/session`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    /// The run of the database server whose transactions these are.
    server: i64,
    /// The snapshot in which everything has been told; absent before the first list is complete.
    since: Option<String>,
    page: Option<Page>,
}

/// The position up to which the list has been told that takes a reader on to another snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    until: String,
    after: (i64, Uuid),
}

impl Cursor {
    /// Reads a cursor; `None` for a text that was never handed out.
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

    fn text(&self) -> String {
        let Self { server, since, page } = self;
        let since = since.as_deref().unwrap_or_default();
        page.as_ref().map_or_else(
            || format!("{server}/{since}"),
            |Page { until, after: (tx, id) }| format!("{server}/{since}/{until}/{tx}/{id}"),
        )
    }
}

/// Returns the keys, and the sessions that ended since an answer with this cursor; all, without one.
pub async fn list(auth: &Auth, cursor: Option<&str>) -> Result<GetJwksResponse, Error> {
    let mut conn = auth.pool.acquire().await?;
    let (server, snapshot) = session::snapshot(&mut conn).await?;
    let cursor = cursor.and_then(Cursor::parse).filter(|cursor| cursor.server == server).unwrap_or(Cursor {
        server,
        since: None,
        page: None,
    });
    let (until, after) = match &cursor.page {
        Some(page) => (page.until.clone(), page.after),
        None => (snapshot, (i64::MIN, Uuid::nil())),
    };
    let ended = if cursor.since.as_ref() == Some(&until) {
        // Nothing has been committed at all.
        Vec::new()
    } else {
        let since = cursor.since.as_deref().and_then(Snapshot::parse).unwrap_or(Snapshot::EMPTY);
        session::ended_since(&mut conn, &since, after, auth.clock.now() - LEEWAY, PAGE_SIZE).await?
    };
    let last = ended.last().filter(|_| i64::try_from(ended.len()) == Ok(PAGE_SIZE));
    let next = match last {
        Some(last) => Cursor { page: Some(Page { until, after: (last.tx, last.id) }), ..cursor },
        None => Cursor { since: Some(until), page: None, ..cursor },
    };
    Ok(GetJwksResponse {
        keys: auth.signer.jwks().to_vec(),
        more: next.page.is_some(),
        cursor: next.text(),
        ended_sessions: ended.iter().map(|ended| message(ended.id, ended.access_expires_at)).collect(),
    })
}

/// Starts to keep our own verifier up to date; not ready before it knows every session that ended.
pub fn follow(auth: Arc<Auth>, process: &Process) {
    let readiness = process.readiness.clone();
    readiness.set("keys", Need::Vital, false);
    let cursor = Arc::<Mutex<Option<String>>>::default();
    worker::spawn(process, "revocation", POLL_INTERVAL, crate::database_up(process), move || {
        let (auth, readiness, cursor) = (auth.clone(), readiness.clone(), cursor.clone());
        async move {
            let before = cursor.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let answer = list(&auth, before.as_deref()).await?;
            *cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.cursor.clone());
            let more = answer.more;
            auth.revocations.verifier.update(answer);
            if !more {
                readiness.set("keys", Need::Vital, true);
            }
            Ok::<_, Error>(Round::more_if(more))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was_and_nonsense_does_not() {
        let page = Page { until: "7:9:7,8".to_owned(), after: (7, Uuid::nil()) };
        for since in [None, Some("5:6:".to_owned())] {
            for page in [None, Some(page.clone())] {
                let cursor = Cursor { server: 1_702_886_400_123_456, since: since.clone(), page };
                assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
            }
        }
        let long = format!("1/1:1:{}", "7,".repeat(MAX_CURSOR_BYTES));
        for odd in ["", "1", "x/5:6:", "1/5:6", "1/5:6:/7:9:", "1/5:6:/7:9:/7/x", "1/5:6:/7:9:/7/", &long] {
            assert_eq!(Cursor::parse(odd), None, "{odd}");
        }
    }
}
