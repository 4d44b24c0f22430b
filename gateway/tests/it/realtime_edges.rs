//! Refused handshakes, invalid messages and close codes of sockets.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::realtime_fixture::{FRAME_TIMEOUT, RealtimeFixture, Socket, signed_token};

const ANN: i64 = 7;
const BEN: i64 = 8;

#[tokio::test]
async fn a_token_or_a_ticket_opens_a_socket() {
    let fixture = RealtimeFixture::start(1).await;
    let gateway = &fixture.gateways[0];

    let bearer = format!("bearer {}", fixture.token(ANN));
    let (mut socket, response) = gateway.open("", &[("authorization", &bearer)]).await.unwrap();
    assert!(!response.contains_key("sec-websocket-protocol"));
    let ready = socket.json().await;
    assert_eq!(ready["content"], json!({"seq": 0, "recovered": true}));
    assert_eq!(ready["user_id"], ANN);
    assert!((ready["time"].as_i64().unwrap() - fixture.clock.unix()).abs() <= 2);
    assert_eq!(ready.as_object().unwrap().len(), 4, "{ready}");

    let protocols = format!("shoppee.v1, ticket.{}", fixture.ticket(ANN));
    let (mut socket, response) = gateway.open("", &[("sec-websocket-protocol", &protocols)]).await.unwrap();
    assert_eq!(response["sec-websocket-protocol"], "shoppee.v1");
    assert_eq!(socket.ready().await, (0, true));
}

#[tokio::test]
async fn a_handshake_without_valid_credentials_is_refused() {
    let fixture = RealtimeFixture::start(1).await;
    let gateway = &fixture.gateways[0];
    let (token, ticket) = (fixture.token(ANN), fixture.ticket(ANN));
    let now = fixture.clock.unix();
    let sign = |typ: &str, changes: serde_json::Value| {
        let mut claims = fixture.claims(ANN);
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        signed_token(typ, &claims)
    };
    let mut forged = token.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();

    let mut refused: Vec<Vec<(&str, String)>> = vec![
        vec![],
        vec![("cookie", format!("access_token={token}"))],
        vec![("x-user-id", ANN.to_string())],
        vec![("authorization", format!("Bearer {token}")), ("authorization", format!("Bearer {token}"))],
    ];
    for authorization in [
        String::new(),
        "Bearer".to_owned(),
        format!("Basic {token}"),
        token.clone(),
        format!("Bearer {forged}"),
        format!("Bearer {ticket}"),
        format!("Bearer {}", sign("JWT", json!({}))),
        format!("Bearer {}", sign("ws-socket+jwt", json!({}))),
        format!("Bearer {}", sign("at+jwt", json!({"nbf": now + 60}))),
        format!("Bearer {}", sign("at+jwt", json!({"exp": now + 8 * 86_400}))),
        format!("Bearer {}", sign("at+jwt", json!({"exp": now, "iat": now - 10}))),
        format!("Bearer {}", sign("at+jwt", json!({"user_id": BEN}))),
        format!("Bearer {}", sign("at+jwt", json!({"iss": "other"}))),
    ] {
        refused.push(vec![("authorization", authorization)]);
    }
    for protocols in [
        "shoppee.v1".to_owned(),
        format!("ticket.{ticket}"),
        format!("shoppee.v1, ticket.{token}"),
        format!("shoppee.v1, ticket.{ticket}, ticket.{ticket}"),
        format!("shoppee.v1, {ticket}"),
        "shoppee.v1, ticket.".to_owned(),
        format!("shoppee.v1, ticket.{}", sign("ws-ticket+jwt", json!({"socket_exp": now + 3600}))),
        format!("shoppee.v1, ticket.{}", sign("ws-ticket+jwt", json!({"exp": now + 30}))),
        format!("shoppee.v1, ticket.{}", sign("ws-socket+jwt", json!({}))),
    ] {
        refused.push(vec![("sec-websocket-protocol", protocols)]);
    }
    for headers in refused {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(gateway.open("", &headers).await.err(), Some(401), "{headers:?}");
    }
    for query in [format!("?token={token}"), format!("?access_token={token}"), format!("?ticket={ticket}")] {
        assert_eq!(gateway.open(&query, &[]).await.err(), Some(401), "{query}");
    }

    let service = format!("Bearer {}", sign("at+jwt", json!({"user_id": 0, "sub": "0", "role": "service"})));
    assert_eq!(gateway.open("", &[("authorization", &service)]).await.err(), Some(403));
    // No refused handshake used the ticket.
    let protocols = format!("shoppee.v1, ticket.{ticket}");
    assert!(gateway.open("", &[("sec-websocket-protocol", &protocols)]).await.is_ok());
}

#[tokio::test]
async fn a_ticket_opens_one_socket_on_one_gateway_within_thirty_seconds() {
    let mut fixture = RealtimeFixture::start(2).await;
    let protocols = format!("shoppee.v1, ticket.{}", fixture.ticket(ANN));
    let headers = [("sec-websocket-protocol", protocols.as_str())];
    assert!(fixture.gateways[0].open("", &headers).await.is_ok());
    assert_eq!(fixture.gateways[0].open("", &headers).await.err(), Some(401));
    assert_eq!(fixture.gateways[1].open("", &headers).await.err(), Some(401));

    let protocols = format!("shoppee.v1, ticket.{}", fixture.ticket(ANN));
    fixture.clock.advance(Duration::from_secs(31));
    let late = [("sec-websocket-protocol", protocols.as_str())];
    assert_eq!(fixture.gateways[0].open("", &late).await.err(), Some(401));

    // Without Redis a ticket that was used at one gateway is refused at the other too.
    fixture.redis.kill();
    for (first, second) in [(0, 1), (1, 0)] {
        let protocols = format!("shoppee.v1, ticket.{}", fixture.ticket(ANN));
        let headers = [("sec-websocket-protocol", protocols.as_str())];
        assert!(fixture.gateways[first].open("", &headers).await.is_ok());
        assert_eq!(
            fixture.gateways[second].open("", &headers).await.err(),
            Some(401),
            "used at the other gateway"
        );
        assert_eq!(fixture.gateways[first].open("", &headers).await.err(), Some(401));
    }
}

#[tokio::test]
async fn a_ticket_socket_lives_as_long_as_its_access_token() {
    let fixture = RealtimeFixture::start(1).await;
    let protocols = format!("shoppee.v1, ticket.{}", fixture.ticket(ANN));
    let headers = [("sec-websocket-protocol", protocols.as_str())];
    let (mut socket, _) = fixture.gateways[0].open("", &headers).await.unwrap();
    socket.ready().await;
    fixture.clock.advance(Duration::from_secs(3_500));
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(socket.seqs(1).await, [1]);
    fixture.clock.advance(Duration::from_secs(100));
    assert_eq!(socket.close_code().await, 4005);
}

#[tokio::test]
async fn handshakes_from_other_origins_are_refused() {
    let fixture = RealtimeFixture::start(1).await;
    let bearer = format!("Bearer {}", fixture.token(ANN));
    for (origin, status) in [
        ("https://shop.example", None),
        ("http://localhost:3000", None),
        ("null", Some(403)),
        ("http://shop.example", Some(403)),
        ("https://shop.example:8443", Some(403)),
        ("https://shop.example.evil.example", Some(403)),
        ("https://evil-shop.example", Some(403)),
        ("https://sub.shop.example", Some(403)),
        ("https://shop.example@evil.example", Some(403)),
        ("https://shop.example/", Some(403)),
        ("https://shop.example, https://evil.example", Some(403)),
        ("http://localhost:3001", Some(403)),
        ("file://", Some(403)),
        ("*", Some(403)),
    ] {
        let headers = [("authorization", bearer.as_str()), ("origin", origin)];
        assert_eq!(fixture.gateways[0].open("", &headers).await.err(), status, "{origin}");
    }
}

#[tokio::test]
async fn an_invalid_after_is_refused() {
    let fixture = RealtimeFixture::start(1).await;
    let bearer = format!("Bearer {}", fixture.token(ANN));
    for query in
        ["?after=x", "?after=-1", "?after=", "?after=1.0", "?after=1&after=2", "?seq=1", "?after=1&x=y"]
    {
        let refused = fixture.gateways[0].open(query, &[("authorization", &bearer)]).await.err();
        assert_eq!(refused, Some(400), "{query}");
    }
    let plain = reqwest::Client::new()
        .get(fixture.gateways[0].url.replace("ws://", "http://"))
        .header("authorization", &bearer)
        .send()
        .await
        .unwrap();
    assert_eq!(plain.status(), 400);
    assert_eq!(plain.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn an_expired_token_closes_its_socket_unless_refreshed() {
    let fixture = RealtimeFixture::start(1).await;
    let mut ends = fixture.socket(0, ANN, "").await;
    let mut renewed = fixture.socket(0, ANN, "").await;
    fixture.clock.advance(Duration::from_secs(3500));
    let auth = json!({"type": "auth", "content": {"access_token": fixture.token(ANN)}});
    renewed.send_text(auth.to_string()).await;
    renewed.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(renewed.json().await["type"], "pong");

    fixture.clock.advance(Duration::from_secs(101));
    let began = Instant::now();
    assert_eq!(ends.close_code().await, 4005);
    assert!(began.elapsed() < Duration::from_secs(5));
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(renewed.seqs(1).await, [1]);
}

#[tokio::test]
async fn a_token_of_another_user_closes_the_socket() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    for token in ["nonsense".to_owned(), fixture.ticket(ANN)] {
        socket.send_text(json!({"type": "auth", "content": {"access_token": token}}).to_string()).await;
        let response = socket.json().await;
        assert_eq!(
            (&response["type"], &response["content"]),
            (&json!("error"), &json!({"code": "unauthenticated"}))
        );
    }
    let other = json!({"type": "auth", "content": {"access_token": fixture.token(BEN)}});
    socket.send_text(other.to_string()).await;
    assert_eq!(socket.close_code().await, 4501);
}

#[tokio::test]
async fn a_revoked_session_closes_its_sockets_on_every_gateway_within_a_second() {
    let fixture = RealtimeFixture::start(2).await;
    let claims = fixture.claims(ANN);
    let token = signed_token("at+jwt", &claims);
    let (mut first, _) = fixture.connect(0, &token, "").await;
    let (mut second, _) = fixture.connect(1, &token, "").await;
    let mut other = fixture.socket(1, ANN, "").await;
    first.ready().await;
    second.ready().await;

    fixture.revoke_session(&claims);
    let began = Instant::now();
    assert_eq!(first.close_code().await, 4501);
    assert_eq!(second.close_code().await, 4501);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    other.is_silent().await;
    let bearer = format!("Bearer {token}");
    assert_eq!(fixture.gateways[0].open("", &[("authorization", &bearer)]).await.err(), Some(401));
}

#[tokio::test]
async fn the_eleventh_socket_of_a_user_closes_the_oldest() {
    let fixture = RealtimeFixture::start(1).await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(fixture.socket(0, ANN, "").await);
    }
    let mut others = fixture.socket(0, BEN, "").await;
    let mut eleventh = fixture.socket(0, ANN, "").await;
    assert_eq!(sockets[0].close_code().await, 4504);
    fixture.commit_and_publish(ANN, 1).await;
    for socket in &mut sockets[1..] {
        assert_eq!(socket.seqs(1).await, [1]);
    }
    assert_eq!(eleventh.seqs(1).await, [1]);
    others.is_silent().await;
}

#[tokio::test]
async fn a_stopping_gateway_closes_every_socket_with_1001() {
    let fixture = RealtimeFixture::start(1).await;
    let mut first = fixture.socket(0, ANN, "").await;
    let mut second = fixture.socket(0, BEN, "").await;
    let process = fixture.gateways[0].process.process.clone();
    let stopping = tokio::spawn(async move { process.tasks.stop().await });
    assert_eq!(first.close_code().await, 1001);
    assert_eq!(second.close_code().await, 1001);
    timeout(FRAME_TIMEOUT, stopping).await.expect("shutdown waits for sockets for a bounded time").unwrap();
}

#[tokio::test]
async fn invalid_messages_are_answered_until_the_limit() {
    let fixture = RealtimeFixture::start(1).await;
    // Messages before the first frame are answered after it.
    fixture.order.latency_ms.store(300, Ordering::SeqCst);
    let (mut socket, _) = fixture.connect(0, &fixture.token(ANN), "").await;
    socket.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(socket.ready().await, (0, true));
    let pong = socket.json().await;
    assert_eq!((&pong["type"], &pong["user_id"]), (&json!("pong"), &json!(ANN)));
    for nonsense in ["", "x", "{}", "[]", r#"{"type":"pong"}"#, r#"{"type":"auth"}"#, "null", "7"] {
        socket.send_text(nonsense).await;
        let response = socket.json().await;
        assert_eq!(
            (&response["type"], &response["content"]),
            (&json!("error"), &json!({"code": "invalid_request"}))
        );
    }
    socket.0.send(Message::binary(vec![0xff; 10])).await.unwrap();
    assert_eq!(socket.json().await["type"], "error");
    socket.send_text("the tenth").await;
    assert_eq!(socket.close_code().await, 4509);
}

/// Builds a masked frame of a client.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        0..126 => bytes.push(0x80 | u8::try_from(payload.len()).expect("fits")),
        126..65536 => {
            bytes.push(0x80 | 0x7e);
            bytes.extend(u16::try_from(payload.len()).expect("fits").to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 0x7f);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn protocol_violations_close_the_socket_with_their_code() {
    let fixture = RealtimeFixture::start(1).await;
    let long = vec![b'x'; 16 * 1024 + 1];
    let huge = vec![b'x'; 3_000_000];
    let halves = [raw(0x01, &long[..9000]), raw(0x80, &long[..9000])].concat();
    let drips = raw(0x01, b"x").into_iter().chain((0..100).flat_map(|_| raw(0x00, b""))).collect();
    let pings = (0..21).flat_map(|_| raw(0x89, b"")).collect();
    let cases: [(&str, Vec<u8>, u16); 14] = [
        ("a frame of 16 KiB and one byte", raw(0x81, &long), 1009),
        ("a binary one", raw(0x82, &long), 1009),
        ("three megabytes", raw(0x81, &huge), 1009),
        (
            "a frame that says it has 2^62 bytes",
            vec![0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            1009,
        ),
        ("a message that is too long in all", halves, 1009),
        ("text that is not UTF-8", raw(0x81, &[0xc3, 0x28]), 1007),
        ("no mask", vec![0x81, 0x02, b'{', b'}'], 1002),
        ("reserved bits", raw(0xf1, b"{}"), 1002),
        ("an opcode that is none", raw(0x83, b"{}"), 1002),
        ("a fragmented ping", raw(0x09, b""), 1002),
        ("a ping of 126 bytes", raw(0x89, &long[..126]), 1002),
        ("a continuation of nothing", raw(0x80, b"{}"), 1002),
        ("empty fragments without end", drips, 4509),
        ("21 pings", pings, 4509),
    ];
    for (what, bytes, code) in cases {
        let mut socket = fixture.socket(0, ANN, "").await;
        let began = Instant::now();
        // The server may close before it has read everything.
        let _ = socket.0.get_mut().write_all(&bytes).await;
        assert_eq!(socket.close_code().await, code, "{what}");
        assert!(began.elapsed() < Duration::from_secs(1), "{what}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn fragmented_and_maximum_messages_are_accepted() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    // Three fragments with a ping between them.
    for (bytes, opcode, last) in [
        (&b"{\"type\""[..], Data::Text, false),
        (b":\"pi", Data::Continue, false),
        (b"ng\"}", Data::Continue, true),
    ] {
        let frame = Frame::message(bytes.to_vec(), OpCode::Data(opcode), last);
        socket.0.send(Message::Frame(frame)).await.unwrap();
        socket.0.send(Message::Ping(b"still there?"[..].into())).await.unwrap();
    }
    assert_eq!(socket.json().await["type"], "pong");
    // A message of the maximum size is accepted, and answered with an error.
    socket.send_text("x".repeat(16 * 1024)).await;
    assert_eq!(socket.json().await["type"], "error");
}

#[tokio::test]
async fn a_flood_of_frames_closes_the_socket_and_twenty_do_not() {
    let fixture = RealtimeFixture::start(1).await;
    let mut socket = fixture.socket(0, ANN, "").await;
    for _ in 0..20 {
        socket.send_text(r#"{"type":"ping"}"#).await;
    }
    for _ in 0..20 {
        assert_eq!(socket.json().await["type"], "pong");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..500 {
        // The socket may close at any of them.
        let _ = socket.0.feed(Message::text(r#"{"type":"ping"}"#)).await;
    }
    let _ = socket.0.flush().await;
    let began = Instant::now();
    assert_eq!(socket.close_code().await, 4509);
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// Closed sockets do not count: their user may have ten new ones.
#[tokio::test]
async fn a_disconnected_client_is_unregistered() {
    let fixture = RealtimeFixture::start(1).await;
    let mut stays = fixture.socket(0, ANN, "").await;
    for _ in 0..30 {
        let Socket(gone) = fixture.socket(0, ANN, "").await;
        drop(gone);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fixture.commit_and_publish(ANN, 1).await;
    assert_eq!(stays.seqs(1).await, [1]);
}
