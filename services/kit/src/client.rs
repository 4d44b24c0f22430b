//! A gRPC client for calls between services. It provides lazily connected channels, requests with the caller's token, the
//! trace, the id of the request and a deadline, and the classification of failed calls.

use std::{error::Error, iter::successors, time::Duration};

use anyhow::Context as _;
use secrecy::SecretString;
use tonic::{
    Code, ConnectError, Extensions, Request, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{
    caller::authorize,
    request_id::{self, RequestId},
    status, telemetry,
};

/// Bounds the TCP connect. A round trip takes a millisecond, so that a peer that has not accepted in this time is gone. A
/// call then has time for a second address.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// Bounds a response. 100 products with 10 000 characters of description and 16 KiB of attributes each exceed tonic's
/// default of 4 MiB.
pub const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;
/// The interval of HTTP/2 pings, and the timeout of their answers: detects a peer that vanished without closing the
/// connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Creates a plaintext channel that connects on first use and reconnects when broken.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    Ok(endpoint(url)?.connect_lazy())
}

/// Creates the endpoint that every connection between our services is made with.
pub fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("not a URL: {url}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_INTERVAL))
}

/// Creates a request with the current trace, the id of the current request, a deadline and the caller's token.
pub fn request<T>(message: T, token: Option<&SecretString>, deadline: Duration) -> Request<T> {
    let mut headers = http::HeaderMap::new();
    telemetry::inject(&mut headers);
    if let Some(id) = RequestId::current() {
        headers.insert(request_id::HEADER, id.to_header());
    }
    let mut request = Request::from_parts(MetadataMap::from_headers(headers), Extensions::new(), message);
    request.set_timeout(deadline);
    if let Some(token) = token {
        authorize(&mut request, token);
    }
    request
}

/// The message of tonic's CANCELLED for a call that outlasts its own `grpc-timeout`.
const TIMEOUT_EXPIRED: &str = "Timeout expired";

/// Bounds a call, including the connect, by `deadline`. Returns DEADLINE_EXCEEDED after it, and in place of the CANCELLED
/// that tonic returns if its own timer is faster.
pub async fn with_deadline<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Err(status)) if status.code() == Code::Cancelled && status.message() == TIMEOUT_EXPIRED => {
            Err(deadline_exceeded())
        }
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(deadline_exceeded()),
    }
}

/// Returns whether the call was not processed (gRPC A6 "transparent retry"): the connect failed, or the connection
/// closed before the call was sent.
pub fn is_unprocessed(status: &Status) -> bool {
    successors(Error::source(status), |&error| error.source()).any(|error| {
        error.is::<ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// Returns whether the transport failed, not the service.
pub fn is_transport_error(status: &Status) -> bool {
    let has_source = Error::source(status).is_some();
    is_unprocessed(status)
        || (has_source && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal))
}

/// Returns whether the service could not be reached, lost its connection, or answered UNAVAILABLE.
pub fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_transport_error(status)
}

fn deadline_exceeded() -> Status {
    status::ServiceError::new(
        tonic::Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "it took too long; try again",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use shoppee_proto::auth::v1::{GetJwksRequest, auth_service_client::AuthServiceClient};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_call_to_a_frozen_service_exceeds_its_deadline() {
        // Connections are accepted by the kernel, and nothing answers.
        let frozen = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let channel = channel(&format!("http://{}", frozen.local_addr().unwrap())).unwrap();
        let deadline = Duration::from_millis(20);
        // Either of the two timers may be the first.
        for own_deadline in [deadline, deadline / 2, 2 * deadline] {
            let mut auth = AuthServiceClient::new(channel.clone());
            let call = auth.get_jwks(request(GetJwksRequest::default(), None, own_deadline));
            let status = with_deadline(deadline, call).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        }
    }
}
