//! Admission control (load shedding) of a gRPC server: bounds the concurrent calls and the bytes of their requests.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};

use crate::{log_throttle::LogThrottle, status};

/// Bounds the concurrent calls, including streams and responses that are not sent yet.
const MAX_CALLS: usize = 4096;
/// Bounds the request of one call, except for [`LargeCalls`]. The attributes of a product, 16 KiB of JSON, are six times
/// as large on the wire.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Bounds the requests of all concurrent calls, except for [`LargeCalls`].
pub const MAX_TOTAL_REQUEST_BYTES: usize = 32 * 1024 * 1024;

/// Methods whose requests may be larger; the service sets their size.
#[derive(Clone, Copy, Debug, Default)]
pub struct LargeCalls {
    /// Paths such as `/shoppee.product.v1.ProductService/BatchUpdateProducts`.
    pub paths: &'static [&'static str],
    /// Bounds the concurrent calls of all these methods. Further calls wait, and their requests are not read.
    pub max_calls: usize,
}

/// The semaphores of a server.
#[derive(Debug)]
pub(super) struct Admission {
    calls: Arc<Semaphore>,
    request_bytes: Arc<Semaphore>,
    large: LargeCalls,
    large_calls: Arc<Semaphore>,
    throttle: LogThrottle,
}

impl Admission {
    pub(super) fn new(large: LargeCalls) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            request_bytes: Arc::new(Semaphore::new(MAX_TOTAL_REQUEST_BYTES)),
            large,
            large_calls: Arc::new(Semaphore::new(large.max_calls)),
            throttle: LogThrottle::default(),
        }
    }

    /// Admits a call. Returns its permit, and its request, which is read completely except for [`LargeCalls`]; a handler
    /// that answers from memory then waits for nothing. Returns UNAVAILABLE if all calls or bytes are in use, and
    /// OUT_OF_RANGE if the request is too large.
    pub(super) async fn admit(&self, request: Request<Body>) -> Result<(CallPermit, Request<Body>), Status> {
        let path = request.uri().path();
        let is_large = self.large.paths.contains(&path);
        let permit = if is_large {
            let permit = self.large_calls.clone().acquire_owned().await;
            permit.map_err(|_closed| status::unavailable())?
        } else if let Ok(permit) = self.calls.clone().try_acquire_owned() {
            permit
        } else {
            if let Some(suppressed) = self.throttle.admit() {
                tracing::warn!(path, suppressed, "call rejected: too many concurrent calls");
            }
            return Err(status::unavailable().into());
        };
        let mut bytes = BytesPermit { semaphore: self.request_bytes.clone(), acquired: 0 };
        let request = if is_large {
            request
        } else {
            let (head, body) = request.into_parts();
            let body = Full::new(bytes.read(body).await?).map_err(|never| match never {});
            Request::from_parts(head, Body::new(body))
        };
        Ok((CallPermit { _permit: permit, _bytes: bytes }, request))
    }
}

/// The permit of one call, with that of its request bytes.
pub(super) struct CallPermit {
    _permit: OwnedSemaphorePermit,
    _bytes: BytesPermit,
}

impl CallPermit {
    /// Returns a body that holds the permit until it is sent.
    pub(super) fn hold_until_sent(self, body: Body) -> Body {
        Body::new(PermitBody { body, _permit: self })
    }
}

/// The permit for the request bytes of one call.
struct BytesPermit {
    semaphore: Arc<Semaphore>,
    acquired: usize,
}

impl BytesPermit {
    /// Reads a request body to its end.
    async fn read(&mut self, mut body: Body) -> Result<Bytes, Status> {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while !body.is_end_stream()
            && let Some(frame) = body.frame().await.transpose()?
        {
            let Ok(data) = frame.into_data() else { continue };
            self.acquire(data.len())?;
            // Most requests are one frame, which is not copied.
            if first.is_empty() {
                first = data;
                continue;
            }
            if whole.is_empty() {
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    }

    fn acquire(&mut self, length: usize) -> Result<(), Status> {
        if self.acquired + length > MAX_REQUEST_BYTES {
            return Err(Status::out_of_range(format!(
                "the request is larger than {MAX_REQUEST_BYTES} bytes"
            )));
        }
        let permits =
            u32::try_from(length).ok().and_then(|length| self.semaphore.try_acquire_many(length).ok());
        permits.ok_or_else(|| Status::from(status::unavailable()))?.forget();
        self.acquired += length;
        Ok(())
    }
}

impl Drop for BytesPermit {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.acquired);
    }
}

struct PermitBody {
    body: Body,
    _permit: CallPermit,
}

impl HttpBody for PermitBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;

    const BATCH: &str = "/shop.Shop/Batch";

    fn body(length: usize) -> Body {
        Body::new(Full::new(Bytes::from(vec![0; length])).map_err(|never| match never {}))
    }

    fn request(path: &str, length: usize) -> Request<Body> {
        Request::post(path).body(body(length)).unwrap()
    }

    async fn read(request: Request<Body>) -> Result<usize, Code> {
        let read = request.into_body().collect().await;
        read.map(|body| body.to_bytes().len()).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn a_call_holds_its_permit_until_its_response_is_sent() {
        let admission = Admission::new(LargeCalls::default());
        let mut admitted = Vec::new();
        while let Ok(call) = admission.admit(request("/", 1)).await {
            admitted.push(call);
        }
        assert_eq!(admitted.len(), MAX_CALLS);
        let response = admitted.pop().unwrap().0.hold_until_sent(body(1));
        assert!(admission.admit(request("/", 1)).await.is_err(), "the response is not sent");
        drop(response);
        assert!(admission.admit(request("/", 1)).await.is_ok());
    }

    #[tokio::test]
    async fn large_calls_have_permits_of_their_own_and_any_size() {
        let admission = Admission::new(LargeCalls { paths: &[BATCH], max_calls: 1 });
        let (permit, large) = admission.admit(request(BATCH, 2 * MAX_REQUEST_BYTES)).await.unwrap();
        assert_eq!(read(large).await, Ok(2 * MAX_REQUEST_BYTES));
        let mut further = Box::pin(admission.admit(request(BATCH, 1)));
        assert!((&mut further).now_or_never().is_none(), "the only permit is taken");
        assert!(admission.admit(request("/", 1)).await.is_ok());
        drop(permit);
        assert!(further.await.is_ok());
    }

    #[tokio::test]
    async fn requests_are_bounded_individually_and_in_total() {
        let admission = Admission::new(LargeCalls::default());
        let refusal = |length| {
            let admission = &admission;
            async move { admission.admit(request("/", length)).await.err().map(|status| status.code()) }
        };
        assert_eq!(refusal(MAX_REQUEST_BYTES + 1).await, Some(Code::OutOfRange));
        let mut permits = Vec::new();
        for _ in 0..MAX_TOTAL_REQUEST_BYTES / MAX_REQUEST_BYTES {
            let (permit, request) = admission.admit(request("/", MAX_REQUEST_BYTES)).await.unwrap();
            assert_eq!(read(request).await, Ok(MAX_REQUEST_BYTES));
            permits.push(permit);
        }
        assert_eq!(refusal(1).await, Some(Code::Unavailable), "the budget is spent");
        permits.pop();
        assert_eq!(refusal(MAX_REQUEST_BYTES).await, None, "a call that ended gives its bytes back");
    }

    type Frames = Pin<Box<dyn Stream<Item = &'static str> + Send>>;

    fn framed_request(frames: Frames) -> Request<Body> {
        let frames = frames.map(|text| Ok::<_, Status>(Frame::data(Bytes::from(text))));
        Request::post("/").body(Body::new(StreamBody::new(frames))).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_admitted_once_it_has_arrived_completely() {
        let admission = Admission::new(LargeCalls::default());
        let (whole, half) = (stream::iter(["half", " and half"]), stream::iter(["half"]));
        let incomplete = framed_request(Box::pin(half.chain(stream::pending())));
        assert!(admission.admit(incomplete).now_or_never().is_none());
        let (_permit, request) = admission.admit(framed_request(Box::pin(whole))).await.unwrap();
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "half and half");
    }

    #[tokio::test]
    async fn a_request_of_one_byte_frames_is_read_without_a_copy_for_each_frame() {
        let admission = Admission::new(LargeCalls::default());
        let request = || framed_request(Box::pin(stream::repeat("x").take(MAX_REQUEST_BYTES)));
        let (mut admitting, mut collecting) = (Duration::MAX, Duration::MAX);
        // The shortest of several, as other processes may interrupt a run.
        for _ in 0..3 {
            let started = Instant::now();
            let (_permit, admitted) = admission.admit(request()).await.unwrap();
            admitting = admitting.min(started.elapsed());
            assert_eq!(read(admitted).await, Ok(MAX_REQUEST_BYTES));
            let started = Instant::now();
            assert_eq!(read(request()).await, Ok(MAX_REQUEST_BYTES));
            collecting = collecting.min(started.elapsed());
        }
        assert!(admitting < 4 * collecting, "{admitting:?}, and {collecting:?} to collect the frames");
    }
}
