//! `GET /ws`: the WebSocket handshake. All checks come before the upgrade of the connection.

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

/// The subprotocol that a browser requests and the gateway selects.
const PROTOCOL: &str = "shoppee.v1";
/// The protocol version of RFC 6455.
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// The prefix of a ticket, in a second subprotocol: the only header that a script in a browser can set.
const TICKET_PREFIX: &str = "ticket.";

/// Opens a socket for the events of the caller.
pub async fn upgrade(
    extract::State(state): extract::State<AppState>,
    mut request: Request<axum::body::Body>,
) -> axum::response::Result<Response> {
    let headers = request.headers();
    let is_allowed = |origin| state.allowed_origins.allows(origin) || is_same_origin(origin, headers);
    if !headers.get_all(ORIGIN).iter().all(is_allowed) {
        return Err(Problem::new(Code::Forbidden, "pages of this origin may not open sockets").into());
    }
    let caller = authenticate_socket(&state, headers).map_err(Problem::from)?;
    if caller.claims.role == Role::Service {
        return Err(Problem::forbidden().into());
    }
    let after = parse_after(request.uri().query().unwrap_or_default())?;
    let accept_key = accept_key(&request).ok_or_else(not_a_handshake)?;
    let has_protocol = protocols(headers).any(|offered| offered == PROTOCOL);
    let connection = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(not_a_handshake)?;
    let permit = state.realtime.try_reserve_subscription().ok_or_else(Problem::unavailable)?;
    // The last step: a request that is rejected for another reason does not use up its ticket.
    let caller = if caller.token_type == TokenType::WsTicket {
        ticket::redeem(&state.upstream, &state.verifier, &caller).await?
    } else {
        caller
    };

    state.realtime.open(connection, caller, after, permit);
    let mut response = (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (CONNECTION, HeaderValue::from_static("upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_ACCEPT, accept_key),
        ],
    )
        .into_response();
    if has_protocol {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(response)
}

/// Verifies the token or the ticket of the request.
fn authenticate_socket(state: &AppState, headers: &HeaderMap) -> Result<Caller, TokenError> {
    if headers.contains_key(AUTHORIZATION) {
        return authenticate(&state.verifier, headers).0;
    }
    let mut tickets = protocols(headers).filter_map(|offered| offered.strip_prefix(TICKET_PREFIX));
    match (tickets.next(), tickets.next()) {
        // Without a subprotocol to select, the browser would close the connection.
        (Some(ticket), None) if protocols(headers).any(|offered| offered == PROTOCOL) => {
            state.verifier.verify(ticket, TokenType::WsTicket)
        }
        (Some(_), _) => Err(TokenError::Invalid),
        (None, _) => Err(TokenError::Missing),
    }
}

/// Returns the subprotocols that the client offers.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    list_members(headers, &SEC_WEBSOCKET_PROTOCOL)
}

/// Returns the members of a comma-separated header.
fn list_members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim))
}

/// Parses `after`, the only allowed parameter: proxies log the query, so that it must not carry credentials.
fn parse_after(query: &str) -> Result<Option<i64>, Problem> {
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

/// Returns the `Sec-WebSocket-Accept` of a valid handshake (RFC 6455 §4.2.1).
fn accept_key<B>(request: &Request<B>) -> Option<HeaderValue> {
    /// Sixteen bytes in base64.
    const KEY_LEN: usize = 24;
    let headers = request.headers();
    let has_member = |name: HeaderName, expected: &str| {
        list_members(headers, &name).any(|member| member.eq_ignore_ascii_case(expected))
    };
    let is_handshake = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_member(CONNECTION, "upgrade")
        && has_member(UPGRADE, "websocket")
        && headers.get(SEC_WEBSOCKET_VERSION) == Some(&VERSION);
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| is_handshake && key.len() == KEY_LEN)?;
    derive_accept_key(key.as_bytes()).parse().ok()
}

/// Builds the refusal with the supported version (RFC 6455 §4.4).
fn not_a_handshake() -> impl IntoResponse {
    let handshake = "must lead to a WebSocket: the handshake of RFC 6455, version 13, over HTTP/1.1";
    let problem = Problem::malformed("upgrade", handshake);
    ([(SEC_WEBSOCKET_VERSION, VERSION)], problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_must_be_a_single_number() {
        assert_eq!(parse_after(""), Ok(None));
        assert_eq!(parse_after("after=0"), Ok(Some(0)));
        assert_eq!(parse_after("after=9223372036854775807"), Ok(Some(i64::MAX)));
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
            assert!(parse_after(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_incomplete_handshake_is_rejected() {
        let handshake = || {
            Request::get("/ws")
                .header(CONNECTION, "keep-alive, Upgrade")
                .header(UPGRADE, "WebSocket")
                .header(SEC_WEBSOCKET_VERSION, "13")
                .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        };
        // The example of RFC 6455 §1.3.
        let accepted = accept_key(&handshake().body(()).unwrap()).unwrap();
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

        for missing in [CONNECTION, UPGRADE, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY] {
            let mut request = handshake().body(()).unwrap();
            request.headers_mut().remove(&missing);
            assert!(accept_key(&request).is_none(), "{missing}");
        }
        assert!(accept_key(&handshake().method(Method::HEAD).body(()).unwrap()).is_none());
        assert!(accept_key(&handshake().version(Version::HTTP_2).body(()).unwrap()).is_none());
        let mut old = handshake().body(()).unwrap();
        old.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert!(accept_key(&old).is_none());
    }

    #[test]
    fn protocols_are_read_from_all_headers() {
        let mut headers = HeaderMap::new();
        headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("shoppee.v1,ticket.a.b.c"));
        headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(" other "));
        assert_eq!(protocols(&headers).collect::<Vec<_>>(), ["shoppee.v1", "ticket.a.b.c", "other"]);
    }
}
