//! The access matrix: every method of the `.proto` files with every kind of caller, through the layer of the server.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use shoppee_proto::{access::v1::AccessRule, auth::v1::EndedSession};
use uuid::Uuid;

use super::*;
use crate::{
    access::SCOPES,
    caller::{
        Claims, Role, TokenType,
        verifier::tests::{FIRST, claims, key_set, sign},
    },
    clock::Clock,
    readiness::Readiness,
    status,
    tasks::Tasks,
    tls::GrpcTls,
};

/// A kind of caller, with the scopes that a service has.
struct Caller {
    name: String,
    token: Option<String>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Anonymous,
    User,
    Admin,
    Service(Vec<&'static str>),
    Ticket,
    Socket,
    /// A valid token that no rule admits.
    None,
    /// A token that is refused with this reason.
    Refused(&'static str),
}

/// Returns the reason for which the rule refuses a caller; `None` if it admits the caller.
fn expected(rule: &AccessRule, kind: &Kind) -> Option<&'static str> {
    let admitted_or = |admitted: bool, reason| (!admitted && !rule.open).then_some(reason);
    match kind {
        Kind::Anonymous => admitted_or(rule.anonymous, "UNAUTHENTICATED"),
        Kind::Refused(reason) => admitted_or(false, *reason),
        Kind::User => admitted_or(rule.anonymous || rule.user, "FORBIDDEN"),
        Kind::Admin => admitted_or(rule.anonymous || rule.user || rule.admin, "FORBIDDEN"),
        Kind::Service(scopes) => {
            admitted_or(rule.anonymous || scopes.contains(&rule.scope.as_str()), "FORBIDDEN")
        }
        Kind::Ticket => admitted_or(rule.ticket, "FORBIDDEN"),
        Kind::Socket => admitted_or(rule.socket, "FORBIDDEN"),
        Kind::None => admitted_or(false, "FORBIDDEN"),
    }
}

/// Returns callers of every kind, and the sessions and accounts that are revoked.
fn callers(now: i64) -> (Vec<Caller>, Vec<EndedSession>) {
    let user = Claims { role: Role::User, ..claims(now) };
    let admin = Claims { role: Role::Admin, ..claims(now) };
    let service = |scope: Option<String>| Claims {
        role: Role::Service,
        user_id: 0,
        sub: "0".to_owned(),
        client_id: Some("warehouse".to_owned()),
        scope,
        ..claims(now)
    };
    let expired = |claims: &Claims| Claims { iat: now - 100, exp: now, ..claims.clone() };
    let token = |token_type, claims: &Claims| Some(sign(FIRST, token_type, claims));
    let access = |claims: &Claims| token(TokenType::Access, claims);
    let all = SCOPES.join(" ");
    let forged = |claims: &Claims| Claims {
        scope: Some(all.clone()),
        client_id: Some("warehouse".to_owned()),
        ..claims.clone()
    };
    let ticket = Claims { exp: now + 30, socket_exp: Some(now + 60), ..user.clone() };
    let mut callers = vec![
        // A ticket lives for seconds, and is tried first.
        ("a ticket", token(TokenType::WsTicket, &ticket), Kind::Ticket),
        ("no token", None, Kind::Anonymous),
        ("an invalid token", Some("no.token.atall".to_owned()), Kind::Refused("UNAUTHENTICATED")),
        ("a user", access(&user), Kind::User),
        ("an admin", access(&admin), Kind::Admin),
        ("a user with forged scopes", access(&forged(&user)), Kind::User),
        ("an admin with forged scopes", access(&forged(&admin)), Kind::Admin),
        ("an expired user", access(&expired(&user)), Kind::Refused("TOKEN_EXPIRED")),
        ("an expired service", access(&expired(&service(Some(all.clone())))), Kind::Refused("TOKEN_EXPIRED")),
        ("a socket", token(TokenType::Socket, &user), Kind::Socket),
        ("a socket with forged scopes", token(TokenType::Socket, &forged(&user)), Kind::Socket),
        ("the socket of a service", token(TokenType::Socket, &service(Some(all.clone()))), Kind::None),
        ("a service without scopes", access(&service(Some(String::new()))), Kind::Service(Vec::new())),
        (
            "a service with an unknown scope",
            access(&service(Some("orders".to_owned()))),
            Kind::Service(Vec::new()),
        ),
        ("a service with all scopes", access(&service(Some(all.clone()))), Kind::Service(SCOPES.to_vec())),
        ("a service of the previous version", access(&service(None)), Kind::Service(vec!["stock:hold"])),
    ];
    let mut revoked = Vec::new();
    for (name, claims) in [
        ("a revoked user", Claims { sid: Uuid::now_v7(), ..user }),
        ("a revoked service", service(Some(all))),
    ] {
        let is_service = claims.role == Role::Service;
        revoked.push(EndedSession {
            sid: claims.sid.to_string(),
            forget_at: now + 3600,
            service: is_service,
        });
        callers.push((name, access(&claims), Kind::Refused("SESSION_REVOKED")));
    }
    let mut callers: Vec<_> = callers
        .into_iter()
        .map(|(name, token, kind)| Caller { name: name.to_owned(), token, kind })
        .collect();
    callers.extend(SCOPES.map(|scope| Caller {
        name: format!("a service with {scope}"),
        token: access(&service(Some(scope.to_owned()))),
        kind: Kind::Service(vec![scope]),
    }));
    (callers, revoked)
}

#[tokio::test]
async fn every_method_admits_exactly_the_callers_of_its_rule() {
    let (tasks, _failures) = Tasks::new();
    let (clock, readiness, tls) = (Clock::default(), Readiness::default(), GrpcTls::default());
    let verifier = Verifier::new(clock.clone());
    let (callers, ended_sessions) = callers(clock.unix());
    verifier.update(shoppee_proto::auth::v1::GetJwksResponse { ended_sessions, ..key_set(&[FIRST]) });
    let process = Process { clock, tasks, readiness, tls };
    let (reached, handler_caller) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
    let handler = {
        let (reached, handler_caller) = (reached.clone(), handler_caller.clone());
        tower::service_fn(move |request: Request<Body>| {
            reached.fetch_add(1, Ordering::SeqCst);
            *handler_caller.lock().unwrap() = request.extensions().get::<crate::caller::Caller>().cloned();
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
        })
    };
    let admission = Arc::new(Admission::new(LargeCalls::default()));
    let mut server = CallLayer { verifier, process, admission }.layer(handler);

    let mut problems = Vec::new();
    for caller in &callers {
        for Method { name: method, rule } in access::methods().values() {
            let mut request = Request::post(format!("/{method}"));
            if let Some(token) = &caller.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let before = reached.swap(0, Ordering::SeqCst);
            assert!(before <= 1);
            let response = server.call(request.body(Body::empty()).unwrap()).await.unwrap();
            let status = tonic::Status::from_header_map(response.headers());
            let reason =
                status.filter(|status| status.code() != Code::Ok).map(|status| status::parse(&status).reason);
            let is_reached = reached.load(Ordering::SeqCst) == 1;
            let expected = expected(rule, &caller.kind);
            if reason.as_deref() != expected || is_reached != expected.is_none() {
                problems.push(format!("{method}, {}: {reason:?}, not {expected:?}", caller.name));
            }
            // The handler has the caller of a verified token, and none if the method reads no token.
            let has_caller = is_reached && handler_caller.lock().unwrap().take().is_some();
            let has_token = !matches!(caller.kind, Kind::Anonymous) && !rule.open;
            if is_reached && has_caller != has_token {
                problems.push(format!("{method}, {}: the handler has a caller: {has_caller}", caller.name));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[tokio::test]
async fn a_service_is_revoked_by_its_own_list_only() {
    let clock = Clock::default();
    let verifier = Verifier::new(clock.clone());
    let now = clock.unix();
    let service = Claims { role: Role::Service, sub: "0".to_owned(), user_id: 0, ..claims(now) };
    let token = sign(FIRST, TokenType::Access, &service);
    let ended = |service_account| EndedSession {
        sid: service.sid.to_string(),
        forget_at: now + 3600,
        service: service_account,
    };
    let update =
        |sessions| shoppee_proto::auth::v1::GetJwksResponse { ended_sessions: sessions, ..key_set(&[FIRST]) };
    assert_eq!(verifier.update(update(vec![ended(false)])).len(), 1);
    assert!(verifier.verify_any(&token).is_ok(), "a session with the same id is another thing");
    assert!(verifier.update(update(vec![ended(true)])).is_empty(), "no session ended");
    assert_eq!(verifier.verify_any(&token).unwrap_err(), TokenError::Revoked);
}
