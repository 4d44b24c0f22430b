//! `GET /ws` (contract §4): everything that can be refused is refused before the connection becomes a socket.

use axum::{
    extract,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version,
    header::{
        AUTHORIZATION, CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use hyper::upgrade::OnUpgrade;
use shoppee_kit::caller::{Caller, Role, TokenError, TokenType};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    auth::authenticate,
    cors::is_same_origin,
    error::{Code, Problem},
    realtime::ticket,
    state::AppState,
};

/// The subprotocol a browser asks for, and is answered with.
const PROTOCOL: &str = "shoppee.v1";
/// The version of RFC 6455.
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// Before the ticket, in a second subprotocol: the only header a browser's script can fill.
const TICKET: &str = "ticket.";

/// Opens a socket for the events of the caller.
pub async fn upgrade(
    extract::State(state): extract::State<AppState>,
    mut request: Request<axum::body::Body>,
) -> axum::response::Result<Response> {
    let headers = request.headers();
    let allowed = |origin| state.allowed_origins.allows(origin) || is_same_origin(origin, headers);
    if !headers.get_all(ORIGIN).iter().all(allowed) {
        return Err(Problem::new(Code::Forbidden, "pages of this origin may not open sockets").into());
    }
    let caller = caller(&state, headers).map_err(Problem::from)?;
    if caller.claims.role == Role::Service {
        return Err(Problem::forbidden().into());
    }
    let after = after(request.uri().query().unwrap_or_default())?;
    let key = key(&request).ok_or_else(not_a_handshake)?;
    let protocol = protocols(headers).any(|offered| offered == PROTOCOL);
    let connection = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(not_a_handshake)?;
    let room = state.realtime.room().ok_or_else(Problem::unavailable)?;
    // Last: a ticket is not used up by a request that is refused for something else.
    let caller = if caller.token_type == TokenType::WsTicket {
        ticket::redeem(&state.upstream, &state.verifier, &caller).await?
    } else {
        caller
    };

    state.realtime.open(connection, caller, after, room);
    let mut answer = (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (CONNECTION, HeaderValue::from_static("upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_ACCEPT, key),
        ],
    )
        .into_response();
    if protocol {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(answer)
}

/// Who opens the socket, by its token or its ticket.
fn caller(state: &AppState, headers: &HeaderMap) -> Result<Caller, TokenError> {
    if headers.contains_key(AUTHORIZATION) {
        return authenticate(&state.verifier, headers).0;
    }
    let mut tickets = protocols(headers).filter_map(|offered| offered.strip_prefix(TICKET));
    match (tickets.next(), tickets.next()) {
        // Without the protocol's name there would be nothing to answer, and the browser would hang up.
        (Some(ticket), None) if protocols(headers).any(|offered| offered == PROTOCOL) => {
            state.verifier.verify(ticket, TokenType::WsTicket)
        }
        (Some(_), _) => Err(TokenError::Invalid),
        (None, _) => Err(TokenError::Missing),
    }
}

/// The subprotocols that the client offers.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    words(headers, &SEC_WEBSOCKET_PROTOCOL)
}

/// The members of a header that is a list with commas.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim))
}

/// The number after which events are wanted: the only thing that may stand in the query, where every proxy
/// logs it.
fn after(query: &str) -> Result<Option<i64>, Problem> {
    let mut after = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "after" {
            return Err(Problem::malformed("query", "knows no parameter but `after`"));
        }
        if after.is_some() {
            return Err(Problem::malformed("after", "is given twice"));
        }
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|_| digits);
        after = Some(number.ok_or_else(|| Problem::malformed("after", "must be a number, 0 or more"))?);
    }
    Ok(after)
}

/// The answer to the client's key, if the request is a WebSocket handshake (RFC 6455 §4.2.1).
fn key<B>(request: &Request<B>) -> Option<HeaderValue> {
    /// Sixteen bytes in base64.
    const KEY: usize = 24;
    let headers = request.headers();
    let says =
        |name: HeaderName, wanted: &str| words(headers, &name).any(|word| word.eq_ignore_ascii_case(wanted));
    let handshake = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && says(CONNECTION, "upgrade")
        && says(UPGRADE, "websocket")
        && headers.get(SEC_WEBSOCKET_VERSION) == Some(&VERSION);
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| handshake && key.len() == KEY)?;
    derive_accept_key(key.as_bytes()).parse().ok()
}

/// Names the version that is spoken here, as RFC 6455 §4.4 asks for.
fn not_a_handshake() -> impl IntoResponse {
    let handshake = "must lead to a WebSocket: the handshake of RFC 6455, version 13, over HTTP/1.1";
    let problem = Problem::malformed("upgrade", handshake);
    ([(SEC_WEBSOCKET_VERSION, VERSION)], problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_resumes() {
        assert_eq!(after(""), Ok(None));
        assert_eq!(after("after=0"), Ok(Some(0)));
        assert_eq!(after("after=9223372036854775807"), Ok(Some(i64::MAX)));
        for odd in [
            "after=",
            "after",
            "after=-1",
            "after=%2B1",
            "after=+1",
            "after=1.5",
            "after=1e3",
            "after=0x10",
            "after=9223372036854775808",
            "after=1&after=2",
            "After=1",
            "token=secret",
            "after=1&ticket=secret",
        ] {
            assert!(after(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_handshake_is_complete() {
        let handshake = || {
            Request::get("/ws")
                .header(CONNECTION, "keep-alive, Upgrade")
                .header(UPGRADE, "WebSocket")
                .header(SEC_WEBSOCKET_VERSION, "13")
                .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        };
        // The example of RFC 6455 §1.3.
        let accepted = key(&handshake().body(()).unwrap()).unwrap();
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

        for missing in [CONNECTION, UPGRADE, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY] {
            let mut request = handshake().body(()).unwrap();
            request.headers_mut().remove(&missing);
            assert!(key(&request).is_none(), "{missing}");
        }
        assert!(key(&handshake().method(Method::HEAD).body(()).unwrap()).is_none());
        assert!(key(&handshake().version(Version::HTTP_2).body(()).unwrap()).is_none());
        let mut old = handshake().body(()).unwrap();
        old.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert!(key(&old).is_none());
    }

    #[test]
    fn protocols_may_come_in_one_header_or_in_several() {
        let mut headers = HeaderMap::new();
        headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("shoppee.v1,ticket.a.b.c"));
        headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(" other "));
        assert_eq!(protocols(&headers).collect::<Vec<_>>(), ["shoppee.v1", "ticket.a.b.c", "other"]);
    }
}
