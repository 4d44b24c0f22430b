//! A fixture for sockets: real gateways on a real Redis, with fake auth and order services. A test can commit ten thousand
//! events, lose some of them, or make a service unavailable.

mod auth;
mod order;
mod process;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::Router;
use clap::Parser as _;
use fred::{
    clients::Client,
    interfaces::{ClientInterface as _, ClientLike as _, KeysInterface as _, StreamsInterface as _},
};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use serde_json::{Value, json};
use shoppee_gateway::Settings;
use shoppee_kit::{
    clock::Clock,
    redis,
    testing::{RedisServer, TestProcess, eventually, free_addr},
};
use shoppee_proto::{auth::v1::EndedSession, order::v1::OrderEvent, streams};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};
use uuid::Uuid;

use order::FakeOrderService;
pub use process::GatewayProcess;

/// The private key of RFC 8037, appendix A: the seed in a PKCS #8 envelope. [`auth`] has the public key.
const PRIVATE_KEY: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d,
    0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
    0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];

/// The read buffer of a client's socket, of which a test has thousands. Bytes.
const READ_BUFFER_SIZE: usize = 4 * 1024;
/// Bounds the wait for a frame.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(15);

pub struct RealtimeFixture {
    pub redis: RedisServer,
    pub order: Arc<FakeOrderService>,
    pub gateways: Vec<Gateway>,
    pub clock: Clock,
    pub auth_url: String,
    pub order_url: String,
    relay: Client,
    _relay_process: TestProcess,
    revoked_sessions: Arc<Mutex<Vec<EndedSession>>>,
    _services: tokio::task::JoinSet<()>,
}

pub struct Gateway {
    pub url: String,
    pub process: TestProcess,
}

impl RealtimeFixture {
    pub async fn start(gateways: usize) -> Self {
        let redis = RedisServer::start().await;
        let (order, revoked_sessions, clock) =
            (Arc::new(FakeOrderService::default()), Arc::default(), Clock::default());
        let mut services = tokio::task::JoinSet::new();
        let auth_url = serve(&mut services, auth::routes(&revoked_sessions)).await;
        let order_url = serve(&mut services, FakeOrderService::routes(&order)).await;
        let relay_process = TestProcess::default();
        let clients = redis::Clients::open(&redis.settings(), &relay_process.process).await.expect("a URL");
        let relay = clients.client("relay").expect("a client");
        let mut fixture = Self {
            redis,
            order,
            gateways: Vec::new(),
            clock,
            auth_url,
            order_url,
            relay,
            revoked_sessions,
            _relay_process: relay_process,
            _services: services,
        };
        fixture.set_epoch().await;
        for _ in 0..gateways {
            let gateway = Gateway::start(&fixture).await;
            fixture.gateways.push(gateway);
        }
        fixture.wait_for_readers().await;
        fixture
    }

    /// Waits until each gateway reads each stream: a reader sets its position with its first check of Redis, and reads
    /// later events only.
    async fn wait_for_readers(&self) {
        let readers = self.gateways.len() * usize::try_from(streams::SHARDS).expect("a small number");
        eventually("all readers wait for events", || async {
            let clients: String = self.relay.client_list::<_, i64>(None, None).await.expect("Redis answers");
            clients.lines().filter(|client| client.contains(" cmd=xread ")).count() == readers
        })
        .await;
    }

    /// Writes a new epoch, like the order service's relay.
    pub async fn set_epoch(&self) {
        let epoch = Uuid::new_v4().to_string();
        eventually("the relay reaches Redis", || async {
            self.relay.set::<(), _, _>(streams::EPOCH_KEY, &epoch, None, None, false).await.is_ok()
        })
        .await;
    }

    /// Commits and publishes `count` events of the user.
    pub async fn commit_and_publish(&self, user_id: i64, count: usize) {
        for event in self.order.commit(user_id, count) {
            self.publish(&event).await;
        }
    }

    /// Publishes an event like the relay: to the user's history first.
    pub async fn publish(&self, event: &OrderEvent) {
        self.publish_history(event).await;
        self.publish_fan_out(event).await;
    }

    pub async fn publish_history(&self, event: &OrderEvent) {
        let id = format!("{}-0", event.seq);
        let history = streams::history_stream(event.user_id);
        let _: String = self.relay.xadd(history, false, None, id, entry(event)).await.expect("history");
    }

    pub async fn publish_fan_out(&self, event: &OrderEvent) {
        self.publish_at(event, "*").await;
    }

    /// Replaces the user's history with a value of another type.
    pub async fn break_history(&self, user_id: i64) {
        let history = streams::history_stream(user_id);
        let _: () = self.relay.set(history, "no stream", None, None, false).await.expect("set");
    }

    /// Publishes entries that no relay writes to the user's fan-out stream: invalid UTF-8, and an invalid message.
    pub async fn publish_garbage(&self, user_id: i64) {
        let stream = streams::fan_out_stream(user_id);
        let no_text = (b"\xff".as_slice(), b"\xff".as_slice());
        let _: String = self.relay.xadd(&stream, false, None, "*", no_text).await.expect("fan-out");
        let no_message = (streams::MESSAGE_FIELD, "no message");
        let _: String = self.relay.xadd(&stream, false, None, "*", no_message).await.expect("fan-out");
    }

    /// Publishes with a given entry id.
    pub async fn publish_at(&self, event: &OrderEvent, id: &str) {
        let stream = streams::fan_out_stream(event.user_id);
        let _: String = self.relay.xadd(stream, false, None, id, entry(event)).await.expect("fan-out");
    }

    /// Commits and publishes `count` events of each user, two thousand a second.
    pub async fn publish_at_rate(&self, user_ids: &[i64], count: usize) {
        let events: Vec<OrderEvent> =
            user_ids.iter().flat_map(|user_id| self.order.commit(*user_id, count)).collect();
        for chunk in events.chunks(50) {
            let pipeline = self.relay.pipeline();
            for event in chunk {
                let stream = streams::fan_out_stream(event.user_id);
                let _: () = pipeline.xadd(stream, false, None, "*", entry(event)).await.expect("queued");
            }
            let _: Vec<String> = pipeline.all().await.expect("published");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Deletes all data in Redis.
    pub async fn flush_redis(&self) {
        let _: () = self.relay.flushall(false).await.expect("flush");
    }

    /// Kills Redis and starts it empty.
    pub async fn restart_redis(&mut self) {
        let port = self.redis.port();
        self.redis.kill();
        self.redis = RedisServer::start_on(port).await;
        self.set_epoch().await;
    }

    /// Returns an access token of the user, with a session of its own.
    pub fn token(&self, user_id: i64) -> String {
        signed_token("at+jwt", &self.claims(user_id))
    }

    pub fn ticket(&self, user_id: i64) -> String {
        signed_token("ws-ticket+jwt", &self.ticket_claims(user_id))
    }

    pub fn ticket_claims(&self, user_id: i64) -> Value {
        let mut claims = self.claims(user_id);
        claims["socket_exp"] = claims["exp"].clone();
        claims["exp"] = json!(self.clock.unix() + 30);
        claims
    }

    pub fn claims(&self, user_id: i64) -> Value {
        let now = self.clock.unix();
        json!({
            "iss": "shoppee", "aud": "shoppee-api", "sub": user_id.to_string(), "user_id": user_id,
            "username": format!("user{user_id}"), "role": "user",
            "sid": Uuid::new_v4(), "jti": Uuid::new_v4(), "iat": now, "exp": now + 3600,
        })
    }

    /// Revokes the session of these claims.
    pub fn revoke_session(&self, claims: &Value) {
        let sid = claims["sid"].as_str().expect("a session").to_owned();
        let forget_at = claims["exp"].as_i64().expect("an end");
        self.revoked_sessions.lock().expect("not poisoned").push(EndedSession {
            sid,
            forget_at,
            service: false,
        });
    }

    /// Opens a socket of the user at a gateway, and reads its `ready`.
    pub async fn socket(&self, gateway: usize, user_id: i64, query: &str) -> Socket {
        let (mut socket, _) = self.connect(gateway, &self.token(user_id), query).await;
        socket.ready().await;
        socket
    }

    /// Opens a socket at a gateway with an access token.
    pub async fn connect(&self, gateway: usize, token: &str, query: &str) -> (Socket, http::HeaderMap) {
        let bearer = format!("Bearer {token}");
        self.gateways[gateway].open(query, &[("authorization", &bearer)]).await.expect("a socket")
    }
}

/// Signs a token with these claims.
pub fn signed_token(typ: &str, claims: &Value) -> String {
    shoppee_kit::caller::install_crypto();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.typ = Some(typ.to_owned());
    header.kid = Some("fixture".to_owned());
    let key = jsonwebtoken::EncodingKey::from_ed_der(&PRIVATE_KEY);
    jsonwebtoken::encode(&header, claims, &key).expect("signed")
}

impl Gateway {
    async fn start(fixture: &RealtimeFixture) -> Self {
        let mut process = TestProcess::default();
        process.process.clock = fixture.clock.clone();
        let addr = free_addr();
        let settings = Settings::try_parse_from([
            "shoppee-gateway",
            "--shoppee-env=development",
            &format!("--redis-url=redis://127.0.0.1:{}", fixture.redis.port()),
            &format!("--listen-addr={addr}"),
            &format!("--auth-url={}", fixture.auth_url),
            &format!("--order-url={}", fixture.order_url),
            "--product-url=http://127.0.0.1:9",
            "--cors-origins=https://shop.example,http://localhost:3000",
            "--rate-limits=off",
        ])
        .expect("settings");
        shoppee_gateway::start(settings, process.process.clone()).await.expect("starts");
        process.wait_ready().await;
        Self { url: format!("ws://{addr}/ws"), process }
    }

    /// Opens a socket with these headers. Returns the status of a refused handshake.
    pub async fn open(
        &self,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Socket, http::HeaderMap), u16> {
        open(&format!("{}{query}", self.url), headers).await
    }
}

/// Opens a socket with these headers. Returns the status of a refused handshake.
pub async fn open(url: &str, headers: &[(&str, &str)]) -> Result<(Socket, http::HeaderMap), u16> {
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    let addr = request.uri().authority().expect("an address").as_str().to_owned();
    let stream = TcpStream::connect(addr).await.expect("the gateway listens");
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_SIZE);
    let handshake = client_async_with_config(request, stream, Some(config));
    match timeout(FRAME_TIMEOUT, handshake).await.expect("an answer") {
        Ok((socket, response)) => Ok((Socket(socket), response.headers().clone())),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("the handshake failed: {error}"),
    }
}

/// A client's socket.
pub struct Socket(pub WebSocketStream<TcpStream>);

impl Socket {
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.expect("sent");
    }

    /// Returns the next frame, or the close code of the server; 1006 if the connection ends without one.
    pub async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(FRAME_TIMEOUT, self.0.next()).await.expect("a frame") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(Some(close)))) => return Err(close.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    pub async fn json(&mut self) -> Value {
        self.next().await.expect("a frame, not the end")
    }

    /// Reads the first frame. Returns its `seq` and `recovered`.
    pub async fn ready(&mut self) -> (i64, bool) {
        let frame = self.json().await;
        assert_eq!(frame["type"], "ready", "{frame}");
        let content = &frame["content"];
        (content["seq"].as_i64().expect("a number"), content["recovered"].as_bool().expect("a word"))
    }

    /// Returns the sequence numbers of the next `count` events.
    pub async fn seqs(&mut self, count: usize) -> Vec<i64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let frame = self.json().await;
            assert_eq!(frame["type"], "order", "{frame}");
            seqs.push(frame["seq"].as_i64().expect("a number"));
        }
        seqs
    }

    /// Skips frames until the close code.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// Checks that no message arrives for 300 ms.
    pub async fn is_silent(&mut self) {
        let silence = Duration::from_millis(300);
        if let Ok(message) = timeout(silence, self.0.next()).await {
            panic!("{message:?}");
        }
    }
}

fn entry(event: &OrderEvent) -> (&'static str, fred::types::Value) {
    (streams::MESSAGE_FIELD, fred::types::Value::Bytes(event.encode_to_vec().into()))
}

/// Returns the claims of a call's token.
fn bearer_claims<T>(request: &tonic::Request<T>) -> Value {
    let token = request.metadata().get("authorization").expect("a token").to_str().expect("text");
    jsonwebtoken::dangerous::insecure_decode::<Value>(&token["Bearer ".len()..]).expect("claims").claims
}

/// Serves gRPC. Returns its URL.
async fn serve(services: &mut tokio::task::JoinSet<()>, routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::from(routes));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    services.spawn(async move { server.serve_with_incoming(incoming).await.expect("serves") });
    url
}
