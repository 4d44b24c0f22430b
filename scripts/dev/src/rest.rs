//! Requests that are repeated until they are answered.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::time::{Instant, error::Elapsed};

use crate::{
    screen::{Ink, ink, say},
    wire::{self, Connector},
};

/// A process that was killed is back long before.
const PATIENCE: Duration = Duration::from_secs(15);
/// No answer may take longer: the gateway's own deadline is shorter.
const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Rest {
    client: Client<Connector, Full<Bytes>>,
    base: String,
}

/// One request, as often as it must be sent.
#[derive(Debug)]
pub struct Request<'a> {
    rest: &'a Rest,
    method: Method,
    path: String,
    token: Option<String>,
    key: Option<String>,
    body: Option<Value>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    /// Of the try that was answered.
    pub took: Duration,
    /// An earlier try may have had its effect.
    pub repeated: bool,
}

impl Rest {
    pub fn new(gateway: &str) -> anyhow::Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build(wire::connector(gateway)?);
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

    fn request(&self, method: Method, path: &str) -> Request<'_> {
        Request { rest: self, method, path: path.to_owned(), token: None, key: None, body: None }
    }
}

impl Request<'_> {
    pub fn by(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    pub fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    pub fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    /// Method and path, ids shortened.
    pub fn label(&self) -> String {
        let path = self.path.split_once('?').map_or(self.path.as_str(), |(path, _)| path);
        let parts = path
            .split('/')
            .map(|part| if part.len() == 36 { format!("{}…", &part[..8]) } else { part.into() });
        format!("{:<4} {}", self.method.as_str(), parts.collect::<Vec<_>>().join("/"))
    }

    /// Again and again while the answer only says that something is away.
    pub async fn send(self) -> anyhow::Result<Answer> {
        let began = Instant::now();
        let mut repeated = false;
        loop {
            let sent = Instant::now();
            let why = match self.once().await {
                Ok((status, body)) if !passing(status, &body) => {
                    return Ok(Answer { status: status.as_u16(), body, took: sent.elapsed(), repeated });
                }
                Ok((status, body)) => {
                    format!("{} {}", status.as_u16(), body["code"].as_str().unwrap_or_default())
                }
                Err(error) if error.is::<Elapsed>() => "no answer in time".to_owned(),
                Err(_) => "no connection".to_owned(),
            };
            if began.elapsed() > PATIENCE {
                bail!("{}: {why}, for {} s", self.label(), PATIENCE.as_secs());
            }
            if !repeated {
                say(&ink(Ink::Notice, &format!("  {:<34} → {why}; trying again", self.label())));
            }
            repeated = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A single try.
    pub async fn once(&self) -> anyhow::Result<(StatusCode, Value)> {
        tokio::time::timeout(TIMEOUT, self.exchange()).await?
    }

    async fn exchange(&self) -> anyhow::Result<(StatusCode, Value)> {
        let url = format!("{}{}", self.rest.base, self.path);
        let mut request = http::Request::builder().method(self.method.clone()).uri(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.key {
            request = request.header("idempotency-key", key);
        }
        let mut body = Bytes::new();
        if let Some(value) = &self.body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            body = value.to_string().into();
        }
        let answer = self.rest.client.request(request.body(body.into())?).await?;
        let status = answer.status();
        let is_json = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.contains("json"));
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, if is_json { serde_json::from_slice(&body)? } else { Value::Null }))
    }
}

/// Whether another try may be answered otherwise.
pub fn passing(status: StatusCode, body: &Value) -> bool {
    matches!(status.as_u16(), 429 | 502..=504) || body["code"] == "request_in_progress"
}

impl Answer {
    /// The problem's code; empty for a success.
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
