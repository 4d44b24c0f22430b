//! A REST client that retries requests while errors are transient.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::time::{Instant, error::Elapsed};

use crate::{
    output::{Style, print_line, styled},
    transport::{self, Connector},
};

/// Bounds the retries of a request. A killed process is back long before.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
/// Bounds one attempt; the gateway's own deadline is shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// A client of the REST API of one gateway.
#[derive(Debug)]
pub struct Rest {
    client: Client<Connector, Full<Bytes>>,
    base: String,
}

/// A request builder.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    rest: &'a Rest,
    method: Method,
    path: String,
    token: Option<String>,
    idempotency_key: Option<String>,
    body: Option<Value>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Value,
    /// The duration of the last attempt.
    pub latency: Duration,
    /// Reports that an earlier attempt, whose response is unknown, may have had its effect.
    pub retried: bool,
}

impl Rest {
    pub fn new(gateway: &str) -> anyhow::Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build(transport::connector(gateway)?);
        Ok(Self { client, base: format!("{gateway}/api/v1") })
    }

    pub fn get(&self, path: &str) -> Request<'_> {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> Request<'_> {
        self.request(Method::POST, path)
    }

    pub fn put(&self, path: &str) -> Request<'_> {
        self.request(Method::PUT, path)
    }

    pub fn patch(&self, path: &str) -> Request<'_> {
        self.request(Method::PATCH, path)
    }

    pub fn delete(&self, path: &str) -> Request<'_> {
        self.request(Method::DELETE, path)
    }

    fn request(&self, method: Method, path: &str) -> Request<'_> {
        Request { rest: self, method, path: path.to_owned(), token: None, idempotency_key: None, body: None }
    }
}

impl Request<'_> {
    pub fn bearer(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    pub fn idempotency_key(self, key: &str) -> Self {
        Self { idempotency_key: Some(key.to_owned()), ..self }
    }

    pub fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    /// Reports that a second request has no second effect.
    pub fn is_repeatable(&self) -> bool {
        self.idempotency_key.is_some() || !matches!(self.method, Method::POST | Method::PATCH)
    }

    /// Returns method and path, with shortened ids.
    pub fn label(&self) -> String {
        let path = self.path.split_once('?').map_or(self.path.as_str(), |(path, _)| path);
        let parts = path
            .split('/')
            .map(|part| if part.len() == 36 { format!("{}…", &part[..8]) } else { part.into() });
        format!("{:<4} {}", self.method.as_str(), parts.collect::<Vec<_>>().join("/"))
    }

    /// Sends the request, and retries it while the error is transient.
    pub async fn send(self) -> anyhow::Result<Response> {
        let began = Instant::now();
        let mut retried = false;
        loop {
            let sent = Instant::now();
            let reason = match self.send_once().await {
                Ok((status, body)) if !is_transient(status, &body) => {
                    return Ok(Response { status: status.as_u16(), body, latency: sent.elapsed(), retried });
                }
                Ok((status, body)) => {
                    format!("{} {}", status.as_u16(), body["code"].as_str().unwrap_or_default())
                }
                Err(error) if error.is::<Elapsed>() => "no answer in time".to_owned(),
                Err(_) => "no connection".to_owned(),
            };
            if began.elapsed() > RETRY_TIMEOUT {
                bail!("{}: {reason}, for {} s", self.label(), RETRY_TIMEOUT.as_secs());
            }
            if !retried {
                print_line(&styled(
                    Style::Notice,
                    &format!("  {:<34} → {reason}; trying again", self.label()),
                ));
            }
            retried = true;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Sends the request once.
    pub async fn send_once(&self) -> anyhow::Result<(StatusCode, Value)> {
        tokio::time::timeout(REQUEST_TIMEOUT, self.exchange()).await?
    }

    async fn exchange(&self) -> anyhow::Result<(StatusCode, Value)> {
        let url = format!("{}{}", self.rest.base, self.path);
        let mut request = http::Request::builder().method(self.method.clone()).uri(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let mut body = Bytes::new();
        if let Some(value) = &self.body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            body = value.to_string().into();
        }
        let response = self.rest.client.request(request.body(body.into())?).await?;
        let status = response.status();
        let is_json = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.contains("json"));
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, if is_json { serde_json::from_slice(&body)? } else { Value::Null }))
    }
}

/// Reports whether a retry may succeed.
pub fn is_transient(status: StatusCode, body: &Value) -> bool {
    matches!(status.as_u16(), 429 | 502..=504) || body["code"] == "request_in_progress"
}

impl Response {
    /// Returns the code of the problem, or an empty text for a success.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn expect_success(&self, label: &str) -> anyhow::Result<&Value> {
        if (200..300).contains(&self.status) {
            return Ok(&self.body);
        }
        let detail = self.body["detail"].as_str().context(self.status)?;
        bail!("{label}: {} {}: {detail}", self.status, self.code())
    }
}
