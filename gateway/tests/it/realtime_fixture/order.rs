//! A fake order service: `ListEvents` and `GetEventPositions` over events that the test commits, and a `WatchEvents` without events.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use http::Request;
use shoppee_kit::clock::Clock;
use shoppee_proto::order::v1::{
    GetEventPositionsRequest, GetEventPositionsResponse, ListEventsRequest, ListEventsResponse, OrderEvent,
    OrderStatus, WatchEventsRequest, WatchEventsResponse,
};
use tonic::{Response, Status, body::Body, server::Grpc};
use uuid::Uuid;

use super::bearer_claims;

/// The state of the fake service.
#[derive(Default)]
pub struct FakeOrderService {
    events: Mutex<HashMap<i64, Vec<OrderEvent>>>,
    pub is_unavailable: AtomicBool,
    /// The delay of a response. Milliseconds.
    pub latency_ms: AtomicUsize,
    pub calls: AtomicUsize,
    /// The number of next calls of `WatchEvents` that fail.
    pub watch_failures: AtomicUsize,
    /// The oldest sequence number that is still stored.
    pub oldest_seq: AtomicUsize,
}

impl FakeOrderService {
    /// Commits `count` events of the user without publishing them.
    pub fn commit(&self, user_id: i64, count: usize) -> Vec<OrderEvent> {
        let mut all = self.events.lock().expect("not poisoned");
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

    pub fn routes(order: &Arc<Self>) -> Router {
        let (order, watched, asked) = (order.clone(), order.clone(), order.clone());
        let watch = move |request: Request<axum::body::Body>| {
            let order = watched.clone();
            async move {
                let method = tower::service_fn(move |_: tonic::Request<WatchEventsRequest>| {
                    let order = order.clone();
                    async move { order.watch() }
                });
                let codec = tonic_prost::ProstCodec::<WatchEventsResponse, WatchEventsRequest>::default();
                Grpc::new(codec).server_streaming(method, request.map(Body::new)).await
            }
        };
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
        let positions = move |request: Request<axum::body::Body>| {
            let order = asked.clone();
            async move {
                let method = tower::service_fn(move |request: tonic::Request<GetEventPositionsRequest>| {
                    let order = order.clone();
                    async move { order.positions(&request) }
                });
                let codec =
                    tonic_prost::ProstCodec::<GetEventPositionsResponse, GetEventPositionsRequest>::default();
                Grpc::new(codec).unary(method, request.map(Body::new)).await
            }
        };
        Router::new()
            .route("/shoppee.order.v1.OrderService/ListEvents", post(list))
            .route("/shoppee.order.v1.OrderService/GetEventPositions", post(positions))
            .route("/shoppee.order.v1.OrderService/WatchEvents", post(watch))
    }

    /// Returns a stream with a position and without events.
    fn watch(&self) -> Result<Response<BoxStream<'static, Result<WatchEventsResponse, Status>>>, Status> {
        let fails = |failures: usize| failures.checked_sub(1);
        if self.watch_failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(Status::unavailable("unavailable"));
        }
        let position = WatchEventsResponse { event: None, cursor: "position".to_owned() };
        Ok(Response::new(stream::iter([Ok(position)]).chain(stream::pending()).boxed()))
    }

    fn positions(
        &self,
        request: &tonic::Request<GetEventPositionsRequest>,
    ) -> Result<Response<GetEventPositionsResponse>, Status> {
        if self.is_unavailable.load(Ordering::SeqCst) {
            return Err(Status::unavailable("unavailable"));
        }
        let all = self.events.lock().expect("not poisoned");
        let last_seq = |user_id| i64::try_from(all.get(user_id).map_or(0, Vec::len)).expect("small");
        let last_seqs = request.get_ref().user_ids.iter().map(last_seq).collect();
        Ok(Response::new(GetEventPositionsResponse { last_seqs }))
    }

    async fn list(
        &self,
        request: &tonic::Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.latency_ms.load(Ordering::SeqCst) as u64)).await;
        if self.is_unavailable.load(Ordering::SeqCst) {
            return Err(Status::unavailable("unavailable"));
        }
        let all = self.events.lock().expect("not poisoned");
        let events = all.get(&caller_id(request)).map(Vec::as_slice).unwrap_or_default();
        let (after, limit) = (request.get_ref().after_seq.unwrap_or(i64::MAX), request.get_ref().limit);
        let oldest_seq = i64::try_from(self.oldest_seq.load(Ordering::SeqCst)).expect("small");
        let stored = events.iter().filter(|event| event.seq > after && event.seq >= oldest_seq);
        let limit = usize::try_from(limit.unwrap_or(500)).expect("positive");
        Ok(Response::new(ListEventsResponse {
            events: stored.take(limit).cloned().collect(),
            last_seq: i64::try_from(events.len()).expect("small"),
        }))
    }
}

/// Returns the user of a call's token.
fn caller_id<T>(request: &tonic::Request<T>) -> i64 {
    bearer_claims(request)["user_id"].as_i64().expect("a user")
}
