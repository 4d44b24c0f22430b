//! The events of orders over plain HTTP: Server-Sent Events and long poll.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::Deserialize;
use shoppee_kit::caller::TokenError;
use shoppee_proto::order::v1::{OrderStatus, WatchEventsRequest};

use crate::{
    auth::{Admin, User},
    error::{Code, Problem},
    extract::{Query, RequestPermit, deserialize_enum},
    realtime::CloseReason,
    routes::pagination::{as_query_error, require},
    state::AppState,
    upstream::Upstream,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx pass on each event at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Bounds the wait of a long poll, below the timeouts of clients and proxies. Seconds.
const MAX_WAIT_SECONDS: u64 = 25;

/// Streams the events of the caller.
pub async fn stream(
    User(caller): User,
    State(state): State<AppState>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?.map(parse_seq).transpose()?;
    if method == Method::HEAD {
        return Ok(event_stream(Body::empty()));
    }
    let permit = state.realtime.try_reserve_subscription().ok_or_else(Problem::unavailable)?;
    Ok(event_stream(state.realtime.stream(caller, after, permit)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    after: Option<i64>,
    wait: Option<u64>,
}

/// Returns the events of the caller after a position; waits for the next one if there are none.
pub async fn poll(
    User(caller): User,
    State(state): State<AppState>,
    Extension(request_permit): Extension<Arc<RequestPermit>>,
    Query(Poll { after, wait }): Query<Poll>,
) -> Result<Response, Problem> {
    require(after.is_none_or(|after| after >= 0), "after", "must be a number, 0 or more")?;
    require(wait.is_none_or(|wait| wait <= MAX_WAIT_SECONDS), "wait", "must be 0 to 25 seconds")?;
    let _permit = state.realtime.try_reserve_subscription().ok_or_else(Problem::unavailable)?;
    // A request that waits does no work.
    request_permit.release();
    let wait = Duration::from_secs(wait.unwrap_or_default());
    let batch = state.realtime.poll(caller, after, wait).await.map_err(close_problem)?;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], batch).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    #[serde(default, deserialize_with = "deserialize_enum")]
    status: Option<OrderStatus>,
}

/// Streams the events of all users.
pub async fn stream_all(
    Admin(caller): Admin,
    State(state): State<AppState>,
    upstream: Upstream,
    Query(Filter { status }): Query<Filter>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cursor = last_event_id(&headers)?;
    if method == Method::HEAD {
        return Ok(event_stream(Body::empty()));
    }
    let permit = state.realtime.try_reserve_admin_stream().ok_or_else(Problem::unavailable)?;
    let request = WatchEventsRequest {
        cursor: cursor.unwrap_or_default().to_owned(),
        from_now: cursor.is_none(),
        statuses: status.into_iter().map(Into::into).collect(),
    };
    let messages = upstream.watch_events(&caller, request).await.map_err(|status| {
        let problem = as_query_error(status.into());
        if problem.code == Code::InvalidRequest { malformed_id() } else { problem }
    })?;
    Ok(event_stream(state.realtime.stream_all(messages, &caller, permit)))
}

fn event_stream(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store, no-transform"),
        (X_ACCEL_BUFFERING, "no"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), body).into_response()
}

/// Returns the id from which a client resumes.
fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(id), None) => id.to_str().ok().filter(|id| !id.is_empty()).map(Some).ok_or_else(malformed_id),
        (Some(_), Some(_)) => Err(malformed_id()),
    }
}

fn parse_seq(id: &str) -> Result<i64, Problem> {
    let has_digits_only = id.bytes().all(|byte| byte.is_ascii_digit());
    id.parse().ok().filter(|_| has_digits_only).ok_or_else(malformed_id)
}

fn malformed_id() -> Problem {
    Problem::malformed("last-event-id", "must be an id of this stream, once")
}

/// Returns the problem of a long poll that ends like a socket.
fn close_problem(reason: CloseReason) -> Problem {
    match reason {
        CloseReason::TokenExpired => TokenError::Expired.into(),
        CloseReason::SessionRevoked => TokenError::Revoked.into(),
        CloseReason::TooManyConnections => {
            let detail = "the user opened more than ten sockets, streams and polls";
            Problem::new(Code::RateLimited, detail)
                .with_fact("limit", "connections")
                .retry_after(Duration::from_secs(1))
        }
        CloseReason::GoingAway
        | CloseReason::ProtocolError
        | CloseReason::InvalidUtf8
        | CloseReason::MessageTooBig
        | CloseReason::TooSlow
        | CloseReason::Resync
        | CloseReason::NoPong
        | CloseReason::Misbehaving => Problem::unavailable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_event_id_is_a_single_number() {
        let parse = |ids: &[&'static str]| {
            let ids = ids.iter().map(|id| (LAST_EVENT_ID, HeaderValue::from_static(id)));
            last_event_id(&ids.collect::<HeaderMap>())?.map(parse_seq).transpose()
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["0"]), Ok(Some(0)));
        assert_eq!(parse(&["9223372036854775807"]), Ok(Some(i64::MAX)));
        for odd in
            [&["", "1"][..], &["1", "1"], &[""], &["-1"], &["+1"], &["1.5"], &["x"], &["9223372036854775808"]]
        {
            assert!(parse(odd).is_err(), "{odd:?}");
        }
    }
}
