//! A stage for sockets: real gateways on a real Redis, with stand-ins for auth and order that know what the
//! test tells them, so that a test can make ten thousand events, lose some on the way, or let a service fall
//! silent.

mod auth;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use clap::Parser as _;
use fred::{
    clients::Client,
    interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _},
};
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use prost::Message as _;
use serde_json::{Value, json};
use shoppee_gateway::Settings;
use shoppee_kit::{
    clock::Clock,
    redis,
    testing::{RedisServer, TestProcess, eventually, free_addr},
};
use shoppee_proto::{
    auth::v1::EndedSession,
    order::v1::{ListEventsRequest, ListEventsResponse, OrderEvent, OrderStatus},
    streams,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};
use tonic::{Response, Status, body::Body, server::Grpc};
use uuid::Uuid;

/// The private key of RFC 8037, appendix A: the seed in a PKCS #8 envelope. Its public half: [`auth`].
const SEED: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d,
    0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
    0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];

/// How long a frame may take before the test has failed.
pub const SOON: Duration = Duration::from_secs(15);

pub struct Stage {
    pub redis: RedisServer,
    pub order: Arc<Order>,
    pub gateways: Vec<Gateway>,
    pub clock: Clock,
    relay: Client,
    _relay_process: TestProcess,
    ended: Arc<Mutex<Vec<EndedSession>>>,
    _services: tokio::task::JoinSet<()>,
}

pub struct Gateway {
    pub url: String,
    pub process: TestProcess,
}

/// What the order service would know.
#[derive(Default)]
pub struct Order {
    events: Mutex<HashMap<i64, Vec<OrderEvent>>>,
    pub away: AtomicBool,
    /// How long an answer takes. Milliseconds.
    pub slow: AtomicUsize,
    pub asked: AtomicUsize,
    /// Older ones are not told any more.
    pub kept_from: AtomicUsize,
}

impl Stage {
    pub async fn set(gateways: usize) -> Self {
        let redis = RedisServer::start().await;
        let (order, ended, clock) = (Arc::new(Order::default()), Arc::default(), Clock::default());
        let mut services = tokio::task::JoinSet::new();
        let auth_url = serve(&mut services, auth::routes(&ended)).await;
        let order_url = serve(&mut services, Order::routes(&order)).await;
        let relay_process = TestProcess::default();
        let clients = redis::Clients::open(&redis.settings(), &relay_process.process).await.expect("a URL");
        let relay = clients.client("relay").expect("a client");
        let mut stage = Self {
            redis,
            order,
            gateways: Vec::new(),
            clock,
            relay,
            ended,
            _relay_process: relay_process,
            _services: services,
        };
        stage.set_epoch().await;
        for _ in 0..gateways {
            let gateway = Gateway::start(&stage, &auth_url, &order_url).await;
            stage.gateways.push(gateway);
        }
        // The readers take their positions with their first look at Redis.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage
    }

    /// As the order service's relay does it.
    pub async fn set_epoch(&self) {
        let epoch = Uuid::new_v4().to_string();
        eventually("the relay reaches Redis", || async {
            self.relay.set::<(), _, _>(streams::EPOCH_KEY, &epoch, None, None, false).await.is_ok()
        })
        .await;
    }

    /// So many steps of the user's orders, committed and published.
    pub async fn steps(&self, user_id: i64, count: usize) {
        for event in self.order.commit(user_id, count) {
            self.publish(&event).await;
        }
    }

    /// Publishes as the relay does: the user's own stream first.
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

    /// Puts something else where the user's own stream should be.
    pub async fn break_history(&self, user_id: i64) {
        let history = streams::history_stream(user_id);
        let _: () = self.relay.set(history, "no stream", None, None, false).await.expect("set");
    }

    /// Puts entries into the user's fan-out stream that no relay writes: a field that is no text, and no message.
    pub async fn publish_garbage(&self, user_id: i64) {
        let stream = streams::fan_out_stream(user_id);
        let no_text = (b"\xff".as_slice(), b"\xff".as_slice());
        let _: String = self.relay.xadd(&stream, false, None, "*", no_text).await.expect("fan-out");
        let no_message = (streams::MESSAGE_FIELD, "no message");
        let _: String = self.relay.xadd(&stream, false, None, "*", no_message).await.expect("fan-out");
    }

    /// Publishes under an id of another Redis.
    pub async fn publish_at(&self, event: &OrderEvent, id: &str) {
        let stream = streams::fan_out_stream(event.user_id);
        let _: String = self.relay.xadd(stream, false, None, id, entry(event)).await.expect("fan-out");
    }

    /// So many steps of each user's orders, two thousand a second.
    pub async fn rush(&self, user_ids: &[i64], count: usize) {
        let events: Vec<OrderEvent> =
            user_ids.iter().flat_map(|user_id| self.order.commit(*user_id, count)).collect();
        for some in events.chunks(50) {
            let pipeline = self.relay.pipeline();
            for event in some {
                let stream = streams::fan_out_stream(event.user_id);
                let _: () = pipeline.xadd(stream, false, None, "*", entry(event)).await.expect("queued");
            }
            let _: Vec<String> = pipeline.all().await.expect("published");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Everything in Redis is gone.
    pub async fn flush_redis(&self) {
        let _: () = self.relay.flushall(false).await.expect("flush");
    }

    /// Kills Redis, which comes back empty.
    pub async fn restart_redis(&mut self) {
        let port = self.redis.port();
        self.redis.kill();
        self.redis = RedisServer::start_on(port).await;
        self.set_epoch().await;
    }

    /// A token of the user, in a session of its own.
    pub fn token(&self, user_id: i64) -> String {
        signed("at+jwt", &self.claims(user_id))
    }

    pub fn ticket(&self, user_id: i64) -> String {
        signed("ws-ticket+jwt", &self.ticket_claims(user_id))
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

    /// The session of these claims ends.
    pub fn end_session(&self, claims: &Value) {
        let sid = claims["sid"].as_str().expect("a session").to_owned();
        let forget_at = claims["exp"].as_i64().expect("an end");
        self.ended.lock().expect("sound").push(EndedSession { sid, forget_at });
    }

    /// A socket of the user on the n-th gateway; its `ready` has been read.
    pub async fn socket(&self, gateway: usize, user_id: i64, query: &str) -> Socket {
        let (mut socket, _) = self.connected(gateway, &self.token(user_id), query).await;
        socket.ready().await;
        socket
    }

    /// A socket on the n-th gateway, opened with this token.
    pub async fn connected(&self, gateway: usize, token: &str, query: &str) -> (Socket, http::HeaderMap) {
        let bearer = format!("Bearer {token}");
        self.gateways[gateway].open(query, &[("authorization", &bearer)]).await.expect("a socket")
    }
}

/// A token with these claims.
pub fn signed(typ: &str, claims: &Value) -> String {
    shoppee_kit::caller::install_crypto();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    header.typ = Some(typ.to_owned());
    header.kid = Some("stage".to_owned());
    let key = jsonwebtoken::EncodingKey::from_ed_der(&SEED);
    jsonwebtoken::encode(&header, claims, &key).expect("signed")
}

impl Gateway {
    async fn start(stage: &Stage, auth_url: &str, order_url: &str) -> Self {
        let mut process = TestProcess::default();
        process.process.clock = stage.clock.clone();
        let addr = free_addr();
        let settings = Settings::try_parse_from([
            "shoppee-gateway",
            "--shoppee-env=development",
            &format!("--redis-url=redis://127.0.0.1:{}", stage.redis.port()),
            &format!("--listen-addr={addr}"),
            &format!("--auth-url={auth_url}"),
            &format!("--order-url={order_url}"),
            "--product-url=http://127.0.0.1:9",
            "--cors-origins=https://shop.example,http://localhost:3000",
            "--rate-limits=off",
        ])
        .expect("settings");
        shoppee_gateway::start(settings, process.process.clone()).await.expect("starts");
        process.wait_ready().await;
        Self { url: format!("ws://{addr}/ws"), process }
    }

    /// Opens a socket with these headers; the status where it is refused.
    pub async fn open(
        &self,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Socket, http::HeaderMap), u16> {
        open(&format!("{}{query}", self.url), headers).await
    }
}

/// Opens a socket with these headers; the status where it is refused.
pub async fn open(url: &str, headers: &[(&str, &str)]) -> Result<(Socket, http::HeaderMap), u16> {
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    let addr = request.uri().authority().expect("an address").as_str().to_owned();
    let stream = TcpStream::connect(addr).await.expect("the gateway listens");
    match timeout(SOON, client_async(request, stream)).await.expect("an answer") {
        Ok((socket, response)) => Ok((Socket(socket), response.headers().clone())),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("neither a socket nor an answer: {error}"),
    }
}

/// A client's end.
pub struct Socket(pub WebSocketStream<TcpStream>);

impl Socket {
    pub async fn say(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.expect("sent");
    }

    /// The next frame; the closing code where the server closes (1006 where it just hangs up).
    pub async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(SOON, self.0.next()).await.expect("a frame") {
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

    /// `seq` and `recovered` of the first frame.
    pub async fn ready(&mut self) -> (i64, bool) {
        let frame = self.json().await;
        assert_eq!(frame["type"], "ready", "{frame}");
        let content = &frame["content"];
        (content["seq"].as_i64().expect("a number"), content["recovered"].as_bool().expect("a word"))
    }

    /// The numbers of the next so many events.
    pub async fn seqs(&mut self, count: usize) -> Vec<i64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let frame = self.json().await;
            assert_eq!(frame["type"], "order", "{frame}");
            seqs.push(frame["seq"].as_i64().expect("a number"));
        }
        seqs
    }

    /// The closing code, whatever comes before it.
    pub async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// That nothing comes for a while.
    pub async fn is_silent(&mut self) {
        let silent = Duration::from_millis(300);
        if let Ok(heard) = timeout(silent, self.0.next()).await {
            panic!("{heard:?}");
        }
    }
}

impl Order {
    /// So many steps of the user's orders, which nobody has been told of.
    pub fn commit(&self, user_id: i64, count: usize) -> Vec<OrderEvent> {
        let mut all = self.events.lock().expect("sound");
        let events = all.entry(user_id).or_default();
        let first = events.len() + 1;
        for seq in first..first + count {
            events.push(OrderEvent {
                user_id,
                seq: i64::try_from(seq).expect("small"),
                order_id: Uuid::now_v7().to_string(),
                status: OrderStatus::Pending.into(),
                previous_status: None,
                total: 1999,
                currency: "EUR".to_owned(),
                version: 1,
                at: Some(Clock::default().now().into()),
                traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
                status_word: "pending".to_owned(),
                previous_status_word: String::new(),
            });
        }
        events[first - 1..].to_vec()
    }

    fn routes(order: &Arc<Self>) -> Router {
        let order = order.clone();
        let list = move |request: Request<axum::body::Body>| {
            let order = order.clone();
            async move {
                let method = tower::service_fn(move |request: tonic::Request<ListEventsRequest>| {
                    let order = order.clone();
                    async move { order.list(&request).await }
                });
                let codec = tonic_prost::ProstCodec::<ListEventsResponse, ListEventsRequest>::default();
                Grpc::new(codec).unary(method, request.map(Body::new)).await
            }
        };
        Router::new().route("/shoppee.order.v1.OrderService/ListEvents", post(list))
    }

    async fn list(
        &self,
        request: &tonic::Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst) as u64)).await;
        if self.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let all = self.events.lock().expect("sound");
        let events = all.get(&subject(request)).map(Vec::as_slice).unwrap_or_default();
        let (after, limit) = (request.get_ref().after_seq.unwrap_or(i64::MAX), request.get_ref().limit);
        let kept_from = i64::try_from(self.kept_from.load(Ordering::SeqCst)).expect("small");
        let told = events.iter().filter(|event| event.seq > after && event.seq >= kept_from);
        let limit = usize::try_from(limit.unwrap_or(500)).expect("positive");
        Ok(Response::new(ListEventsResponse {
            events: told.take(limit).cloned().collect(),
            last_seq: i64::try_from(events.len()).expect("small"),
        }))
    }
}

fn entry(event: &OrderEvent) -> (&'static str, fred::types::Value) {
    (streams::MESSAGE_FIELD, fred::types::Value::Bytes(event.encode_to_vec().into()))
}

/// Whose token a call carries.
fn subject<T>(request: &tonic::Request<T>) -> i64 {
    presented(request)["user_id"].as_i64().expect("a user")
}

/// The claims of the token that a call carries.
fn presented<T>(request: &tonic::Request<T>) -> Value {
    let token = request.metadata().get("authorization").expect("a token").to_str().expect("text");
    jsonwebtoken::dangerous::insecure_decode::<Value>(&token["Bearer ".len()..]).expect("claims").claims
}

/// Serves gRPC on an address of its own.
async fn serve(services: &mut tokio::task::JoinSet<()>, routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::from(routes));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    services.spawn(async move { server.serve_with_incoming(incoming).await.expect("serves") });
    url
}
