//! Live order events over plain HTTP: Server-Sent Events and long polls.

use std::{sync::atomic::Ordering, time::Duration};

use fred::interfaces::HashesInterface as _;
use http::StatusCode;
use serde_json::{Value, json};
use shoppee_kit::testing::eventually;
use tokio::time::{Instant, timeout};

use crate::{
    realtime_fixture::{FRAME_TIMEOUT, RealtimeFixture},
    shop::{TestShop, text},
};

/// An event of a stream.
#[derive(Debug, Default)]
struct Event {
    id: Option<String>,
    data: Option<Value>,
}

/// A client of a stream.
struct EventSource {
    response: reqwest::Response,
    received: String,
    /// The client's last id, from which it resumes.
    last_id: Option<String>,
}

impl EventSource {
    async fn open(url: &str, token: &str, last_id: Option<&str>) -> Result<Self, Value> {
        let mut request = reqwest::Client::new().get(url).bearer_auth(token);
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.expect("an answer");
        if response.status() != StatusCode::OK {
            return Err(response.json().await.expect("a problem"));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self { response, received: String::new(), last_id: last_id.map(str::to_owned) })
    }

    /// Returns the next block; `None` at the end of the stream.
    async fn block(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.received.split_once("\n\n") {
                let mut event = Event::default();
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => event.id = Some(id.to_owned()),
                        Some(("data", data)) => event.data = serde_json::from_str(data).ok(),
                        _ => {}
                    }
                }
                let rest = rest.len();
                self.received.drain(..self.received.len() - rest);
                self.last_id = event.id.clone().or(self.last_id.take());
                return Some(event);
            }
            let chunk = timeout(FRAME_TIMEOUT, self.response.chunk()).await.expect("in time").ok()??;
            self.received += std::str::from_utf8(&chunk).expect("whole characters");
        }
    }

    /// Returns the next frame.
    async fn frame(&mut self) -> Value {
        loop {
            if let Some(data) = self.block().await.expect("a frame, not the end").data {
                return data;
            }
        }
    }

    /// Reads the first frame. Returns its `seq` and `recovered`.
    async fn ready(&mut self) -> (i64, bool) {
        let frame = self.frame().await;
        assert_eq!(frame["type"], "ready", "{frame}");
        let content = &frame["content"];
        (content["seq"].as_i64().expect("a number"), content["recovered"].as_bool().expect("a word"))
    }

    /// Returns the sequence numbers of the next `count` events.
    async fn seqs(&mut self, count: usize) -> Vec<i64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let frame = self.frame().await;
            assert_eq!(frame["type"], "order", "{frame}");
            seqs.push(frame["seq"].as_i64().expect("a number"));
        }
        seqs
    }

    /// Skips frames until the close code, after which the stream ends.
    async fn close_code(&mut self) -> i64 {
        loop {
            let frame = self.frame().await;
            if frame["type"] == "close" {
                assert!(self.block().await.is_none(), "the end");
                return frame["content"]["code"].as_i64().expect("a code");
            }
        }
    }
}

impl RealtimeFixture {
    fn http_url(&self, gateway: usize, path: &str) -> String {
        let url = self.gateways[gateway].url.replace("ws://", "http://");
        format!("{}/api/v1{path}", url.trim_end_matches("/ws"))
    }

    async fn stream(&self, gateway: usize, token: &str, last_id: Option<&str>) -> EventSource {
        EventSource::open(&self.http_url(gateway, "/orders/stream"), token, last_id).await.expect("a stream")
    }

    /// Waits until `count` connections without a history in Redis are registered: each has called the order service.
    async fn wait_for_connections(&self, user_id: i64, count: usize) {
        let redis = self.redis.client().await;
        eventually("the connections are registered", async || {
            redis.hlen::<usize, _>(format!("connections:{user_id}")).await.is_ok_and(|leases| leases >= count)
        })
        .await;
    }

    async fn poll(&self, token: &str, query: &str) -> (StatusCode, Value) {
        let url = self.http_url(0, &format!("/orders/stream/events{query}"));
        let response = reqwest::Client::new().get(url).bearer_auth(token).send().await.expect("an answer");
        (response.status(), response.json().await.expect("JSON"))
    }
}

/// Returns the sequence numbers of the items of a long poll.
fn item_seqs(batch: &Value) -> Vec<i64> {
    let items = batch["items"].as_array().expect("a list").iter();
    items.map(|frame| frame["seq"].as_i64().expect("a number")).collect()
}

#[tokio::test]
async fn a_stream_has_the_frames_of_a_socket_and_resumes_by_its_last_id_at_another_gateway() {
    let fixture = RealtimeFixture::start(2).await;
    let token = fixture.token(7);
    let mut socket = fixture.socket(1, 7, "").await;
    let mut stream = fixture.stream(0, &token, None).await;
    assert_eq!(stream.ready().await, (0, true));
    fixture.commit_and_publish(7, 2).await;
    for seq in ["1", "2"] {
        assert_eq!(stream.frame().await, socket.json().await);
        assert_eq!(stream.last_id.as_deref(), Some(seq));
    }
    let last_id = stream.last_id.clone();
    drop(stream);
    fixture.commit_and_publish(7, 3).await;
    let mut stream = fixture.stream(1, &token, last_id.as_deref()).await;
    assert_eq!(stream.ready().await, (5, true));
    assert_eq!(stream.last_id.as_deref(), Some("2"), "`ready` does not move past the missed events");
    assert_eq!(stream.seqs(3).await, [3, 4, 5]);
    // Events of which Redis has no trace.
    fixture.order.commit(7, 2);
    fixture.commit_and_publish(7, 1).await;
    assert_eq!(stream.seqs(3).await, [6, 7, 8]);
}

#[tokio::test]
async fn a_stream_says_that_its_position_is_lost() {
    let fixture = RealtimeFixture::start(1).await;
    fixture.order.commit(7, 600);
    for last_id in ["0", "99", "1000"] {
        let mut stream = fixture.stream(0, &fixture.token(7), Some(last_id)).await;
        assert_eq!(stream.ready().await, (600, false), "{last_id}");
        assert_eq!(stream.last_id.as_deref(), Some("600"));
    }
    let token = fixture.token(7);
    let (status, batch) = fixture.poll(&token, "?after=0&wait=25").await;
    assert_eq!((status, &batch), (StatusCode::OK, &json!({"items": [], "seq": 600, "recovered": false})));
}

#[tokio::test]
async fn an_invalid_request_of_a_stream_is_refused() {
    let fixture = RealtimeFixture::start(1).await;
    let token = fixture.token(7);
    for last_id in ["-1", "x", "1.5", "99999999999999999999"] {
        let refused = EventSource::open(&fixture.http_url(0, "/orders/stream"), &token, Some(last_id)).await;
        assert_eq!(refused.err().unwrap()["code"], "invalid_request", "{last_id}");
    }
    let refused = EventSource::open(&fixture.http_url(0, "/orders/stream?after=1"), &token, None).await;
    assert_eq!(refused.err().unwrap()["code"], "invalid_request", "nothing stands in the query");
    for query in ["?after=-1", "?after=x", "?wait=26", "?wait=-1", "?after=1&after=1", "?token=secret"] {
        assert_eq!(fixture.poll(&token, query).await.1["code"], "invalid_request", "{query}");
    }
    for path in ["/orders/stream", "/orders/stream/events", "/admin/orders/stream"] {
        let refused = EventSource::open(&fixture.http_url(0, path), "no token", None).await;
        assert_eq!(refused.err().unwrap()["code"], "unauthenticated", "{path}");
    }
    let refused = EventSource::open(&fixture.http_url(0, "/admin/orders/stream"), &token, None).await;
    assert_eq!(refused.err().unwrap()["code"], "forbidden");
    let head = reqwest::Client::new().head(fixture.http_url(0, "/orders/stream")).bearer_auth(&token);
    assert_eq!(head.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_session_and_an_expired_token_end_a_stream_and_a_long_poll() {
    let fixture = RealtimeFixture::start(1).await;
    let claims = fixture.claims(7);
    let token = crate::realtime_fixture::signed_token("at+jwt", &claims);
    let mut stream = fixture.stream(0, &token, None).await;
    stream.ready().await;
    let revoke = async {
        fixture.wait_for_connections(7, 2).await;
        fixture.revoke_session(&claims);
    };
    let ((status, problem), ()) = tokio::join!(fixture.poll(&token, "?after=0&wait=25"), revoke);
    assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("session_revoked")));
    assert_eq!(stream.close_code().await, 4501);

    let mut stream = fixture.stream(0, &fixture.token(8), None).await;
    stream.ready().await;
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(stream.close_code().await, 4005);
}

#[tokio::test]
async fn ten_sockets_and_streams_of_a_user_are_open_at_once() {
    let fixture = RealtimeFixture::start(2).await;
    let token = fixture.token(7);
    let mut oldest = fixture.stream(1, &token, None).await;
    oldest.ready().await;
    let mut second = fixture.socket(0, 7, "").await;
    let mut others = Vec::new();
    for number in 0..8 {
        let mut stream = fixture.stream(number % 2, &token, None).await;
        stream.ready().await;
        others.push(stream);
    }
    fixture.poll(&token, "").await;
    assert_eq!(oldest.close_code().await, 4504, "the long poll at the other gateway was the eleventh");
    drop(others.pop());
    let mut stream = fixture.stream(0, &token, None).await;
    stream.ready().await;
    fixture.commit_and_publish(7, 1).await;
    assert_eq!(second.seqs(1).await, [1], "a stream that its client left counts no more");
    assert_eq!(stream.seqs(1).await, [1]);
}

#[tokio::test]
async fn a_long_poll_answers_at_once_with_missed_events_or_waits_for_the_next() {
    let fixture = RealtimeFixture::start(1).await;
    let token = fixture.token(7);
    fixture.commit_and_publish(7, 3).await;
    let (status, batch) = fixture.poll(&token, "").await;
    assert_eq!((status, &batch), (StatusCode::OK, &json!({"items": [], "seq": 3, "recovered": true})));
    let (_, batch) = fixture.poll(&token, "?after=1&wait=25").await;
    assert_eq!((item_seqs(&batch), &batch["seq"]), (vec![2, 3], &json!(3)));
    let (_, batch) = fixture.poll(&token, "?after=3").await;
    assert_eq!(batch, json!({"items": [], "seq": 3, "recovered": true}), "without `wait`");
    let started = Instant::now();
    let (_, batch) = fixture.poll(&token, "?after=3&wait=1").await;
    assert_eq!(batch, json!({"items": [], "seq": 3, "recovered": true}));
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());

    fixture.order.commit(8, 3);
    let publish = async {
        fixture.wait_for_connections(8, 1).await;
        fixture.commit_and_publish(8, 1).await;
    };
    let token = fixture.token(8);
    let ((_, batch), ()) = tokio::join!(fixture.poll(&token, "?after=3&wait=25"), publish);
    assert_eq!((item_seqs(&batch), &batch["seq"]), (vec![4], &json!(4)));
}

#[tokio::test]
async fn a_poll_that_does_not_wait_finds_events_that_redis_lost() {
    let fixture = RealtimeFixture::start(1).await;
    let token = fixture.token(7);
    fixture.commit_and_publish(7, 3).await;
    // The last events, of which Redis has no trace.
    fixture.order.commit(7, 2);
    let (_, batch) = fixture.poll(&token, "?after=3").await;
    assert_eq!((item_seqs(&batch), &batch["seq"]), (vec![4, 5], &json!(5)));
    let (_, batch) = fixture.poll(&token, "?after=5&wait=0").await;
    assert_eq!(batch, json!({"items": [], "seq": 5, "recovered": true}));

    fixture.publish_history(&fixture.order.commit(7, 1)[0]).await;
    fixture.order.commit(7, 600);
    let (_, batch) = fixture.poll(&token, "?after=6").await;
    assert_eq!(batch, json!({"items": [], "seq": 606, "recovered": false}), "too many events");

    // Redis alone answers where the order service does not.
    fixture.order.is_unavailable.store(true, Ordering::SeqCst);
    let (status, batch) = fixture.poll(&token, "?after=6").await;
    assert_eq!((status, batch), (StatusCode::OK, json!({"items": [], "seq": 6, "recovered": true})));
}

#[tokio::test]
async fn a_stream_of_all_events_opens_after_one_failed_attempt() {
    let fixture = RealtimeFixture::start(1).await;
    let mut claims = fixture.claims(1);
    claims["role"] = json!("admin");
    let token = crate::realtime_fixture::signed_token("at+jwt", &claims);
    let url = fixture.http_url(0, "/admin/orders/stream");
    fixture.order.watch_failures.store(1, Ordering::SeqCst);
    let mut stream = EventSource::open(&url, &token, None).await.expect("a stream");
    assert!(stream.block().await.unwrap().id.is_none(), "the delay of a reconnect");
    assert_eq!(stream.block().await.unwrap().id.as_deref(), Some("position"));
}

#[tokio::test]
async fn a_client_that_drops_its_stream_and_resumes_a_hundred_times_gets_each_event_once() {
    const EVENTS: usize = 300;
    let fixture = RealtimeFixture::start(2).await;
    let token = fixture.token(7);
    let write = async {
        for _ in 0..EVENTS {
            fixture.commit_and_publish(7, 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let read = async {
        let (mut seqs, mut last_id) = (Vec::new(), Some("0".to_owned()));
        for round in 0.. {
            let mut stream = fixture.stream(round % 2, &token, last_id.as_deref()).await;
            stream.ready().await;
            for _ in 0..round % 6 {
                if seqs.len() == EVENTS {
                    return seqs;
                }
                seqs.extend(stream.seqs(1).await);
            }
            last_id = stream.last_id.clone();
        }
        seqs
    };
    let ((), seqs) = tokio::join!(write, read);
    assert_eq!(seqs, (1..=i64::try_from(EVENTS).unwrap()).collect::<Vec<_>>());
}

#[tokio::test]
async fn streams_and_long_polls_end_with_the_gateway() {
    let mut fixture = RealtimeFixture::start(1).await;
    let token = fixture.token(7);
    let mut stream = fixture.stream(0, &token, None).await;
    stream.ready().await;
    let url = fixture.http_url(0, "/orders/stream/events?after=0&wait=25");
    let poll = tokio::spawn(reqwest::Client::new().get(url).bearer_auth(&token).send());
    fixture.wait_for_connections(7, 2).await;
    let gateway = fixture.gateways.remove(0);
    let ((), code) = tokio::join!(gateway.process.stop(), stream.close_code());
    assert_eq!(code, 1001);
    assert_eq!(poll.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_admin_follows_the_events_of_all_users_by_a_stream() {
    let shop = TestShop::builder().gateways(2).start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    let product = shop.product(&admin, 1999, 10).await;
    let token = admin.token.clone().unwrap();
    let open = async |gateway: usize, query: &str, last_id: Option<&str>| {
        let url = format!("{}/api/v1/admin/orders/stream{query}", shop.url(gateway));
        EventSource::open(&url, &token, last_id).await
    };
    let mut all = open(0, "", None).await.unwrap();
    let mut paid = open(1, "?status=paid", None).await.unwrap();
    assert!(all.block().await.unwrap().id.is_none(), "the delay of a reconnect");
    assert!(all.block().await.unwrap().id.is_some(), "the position at the start");
    // Longer than a call to a service may take.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let order = ann.orders(&product, 1).await.expect(201).body;
    ben.orders(&product, 1).await.expect(201);
    let first = all.frame().await;
    assert_eq!(
        (&first["type"], &first["user_id"], &first["seq"]),
        (&json!("order"), &json!(ann.id), &json!(1))
    );
    assert_eq!(first["content"]["order_id"], order["id"]);
    let last_id = all.last_id.clone();
    assert_eq!(all.frame().await["user_id"], json!(ben.id));
    drop(all);
    ann.pays(&order).await.expect(200);
    assert_eq!(text(&paid.frame().await["content"]["status"]), "paid");

    let mut resumed = open(1, "", last_id.as_deref()).await.unwrap();
    let rest = [resumed.frame().await, resumed.frame().await].map(|frame| frame["user_id"].clone());
    assert_eq!(rest, [json!(ben.id), json!(ann.id)], "exactly the rest");
    assert_eq!(open(0, "", Some("x")).await.err().unwrap()["code"], "invalid_request");
    assert_eq!(open(0, "?status=sold", None).await.err().unwrap()["code"], "invalid_request");

    admin.post("/auth/logout", &json!({})).await.expect(204);
    assert_eq!(resumed.close_code().await, 4501);
}
