//! A WebSocket client that reconnects and resumes, and collects the events of a user.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use shoppee_kit::clock::Clock;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _, http::HeaderValue},
};

use crate::{
    output::{Style, print_line, styled},
    transport::{self, Connector},
};

/// Bounds the wait for an event, including restarts of the processes behind it.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds the connection, and the WebSocket handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
/// The capacity of the queue of unread messages: more than an order has steps.
const QUEUE_CAPACITY: usize = 64;

#[derive(Clone, Debug)]
pub struct Event {
    pub seq: i64,
    pub order_id: String,
    pub status: String,
    pub previous_status: Option<String>,
    /// The time of receipt.
    pub received_at: OffsetDateTime,
}

/// A change that a stream reports.
#[derive(Clone, Debug)]
pub enum Change {
    Event(Event),
    /// The first attempt after a connection was lost.
    Disconnected,
    /// The stream is connected again, and missed no event.
    Connected,
}

#[derive(Debug)]
enum Update {
    Ready { seq: i64, recovered: bool },
    Order(Event),
    Disconnected { reason: String },
}

/// The stream of a user's events: each event once, in order.
#[derive(Debug)]
pub struct EventStream {
    updates: mpsc::Receiver<Update>,
    last_seq: i64,
    pub events: Vec<Event>,
    pub problems: Vec<String>,
    pub reconnects: u32,
    /// The reasons of all disconnects.
    pub disconnects: Vec<String>,
    is_disconnected: bool,
    verbose: bool,
}

impl EventStream {
    /// Opens the stream of the token's user, and prints connection changes.
    pub async fn open(gateway: &str, token: &str) -> anyhow::Result<Self> {
        Self::connect(gateway, token, true).await
    }

    /// Opens the stream of the token's user without output.
    pub async fn open_quietly(gateway: &str, token: &str) -> anyhow::Result<Self> {
        Self::connect(gateway, token, false).await
    }

    /// Returns the number of the last event.
    pub fn last_seq(&self) -> i64 {
        self.last_seq
    }

    async fn connect(gateway: &str, token: &str, verbose: bool) -> anyhow::Result<Self> {
        let (sender, updates) = mpsc::channel(QUEUE_CAPACITY);
        let connector =
            GatewayConnector { connector: transport::connector(gateway)?, gateway: gateway.parse()? };
        let url = format!("{}/ws", gateway.replacen("http", "ws", 1));
        tokio::spawn(receive(connector, url, token.to_owned(), sender));
        let (events, problems, disconnects) = (Vec::new(), Vec::new(), Vec::new());
        let mut stream = Self {
            updates,
            last_seq: 0,
            events,
            problems,
            reconnects: 0,
            disconnects,
            is_disconnected: false,
            verbose,
        };
        match tokio::time::timeout(EVENT_TIMEOUT, stream.wait_until_ready()).await {
            Ok(seq) => {
                stream.last_seq = seq?;
                stream.print(&format!("  {:<34} → ready, seq {}", "GET  /ws", stream.last_seq));
                Ok(stream)
            }
            Err(_) => Err(anyhow!("GET /ws: not ready within {} s", EVENT_TIMEOUT.as_secs())),
        }
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<i64> {
        loop {
            match self.updates.recv().await.context("the socket's task has ended")? {
                Update::Ready { seq, .. } => {
                    self.is_disconnected = false;
                    return Ok(seq);
                }
                Update::Disconnected { reason } => {
                    self.record_disconnect(reason, |reason| format!("  GET  /ws: {reason}; trying again"));
                }
                Update::Order(_) => return Err(anyhow!("an event before ready")),
            }
        }
    }

    /// Waits for the next event, within [`EVENT_TIMEOUT`].
    pub async fn next_or_timeout(&mut self) -> anyhow::Result<Event> {
        let event = tokio::time::timeout(EVENT_TIMEOUT, self.next()).await;
        event.map_err(|_| anyhow!("no frame within {} s", EVENT_TIMEOUT.as_secs()))?
    }

    /// Waits for the next event, without a timeout.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            if let Change::Event(event) = self.next_change().await? {
                return Ok(event);
            }
        }
    }

    /// Waits for the next event, or for a change of the connection.
    pub async fn next_change(&mut self) -> anyhow::Result<Change> {
        loop {
            match self.updates.recv().await.context("the socket's task has ended")? {
                // A duplicate: delivery is at least once.
                Update::Order(event) if event.seq <= self.last_seq => {}
                Update::Order(event) => {
                    if event.seq != self.last_seq + 1 {
                        self.problems.push(format!("after {} came {}", self.last_seq, event.seq));
                    }
                    self.last_seq = event.seq;
                    self.events.push(event.clone());
                    return Ok(Change::Event(event));
                }
                Update::Ready { recovered: true, .. } => {
                    self.is_disconnected = false;
                    self.reconnects += 1;
                    return Ok(Change::Connected);
                }
                Update::Ready { recovered: false, seq } => {
                    self.is_disconnected = false;
                    self.problems
                        .push(format!("not recovered after {}: the server is at {seq}", self.last_seq));
                }
                Update::Disconnected { reason } => {
                    let (last, is_first) = (self.last_seq, !self.is_disconnected);
                    // The line of a step may be unfinished.
                    self.record_disconnect(reason, |reason| {
                        format!("\n  socket lost ({reason}), coming back after {last}")
                    });
                    if is_first {
                        return Ok(Change::Disconnected);
                    }
                }
            }
        }
    }

    /// Records a disconnect, and prints the first until the next connection: a proxy refuses every attempt while the
    /// gateway behind it is down.
    fn record_disconnect(&mut self, reason: String, message: impl Fn(&str) -> String) {
        if !self.is_disconnected {
            self.print(&styled(Style::Notice, &message(&reason)));
        }
        self.is_disconnected = true;
        self.disconnects.push(reason);
    }

    fn print(&self, line: &str) {
        if self.verbose {
            print_line(line);
        }
    }
}

/// A connector to one gateway.
#[derive(Debug)]
struct GatewayConnector {
    connector: Connector,
    gateway: http::Uri,
}

impl GatewayConnector {
    async fn connect(&self) -> anyhow::Result<transport::Connection> {
        let connection = transport::connect(&self.connector, &self.gateway);
        tokio::time::timeout(CONNECT_TIMEOUT, connection).await.context("no answer in time")?
    }
}

async fn receive(connector: GatewayConnector, url: String, token: String, updates: mpsc::Sender<Update>) {
    let mut after = None;
    loop {
        let reason = receive_until_closed(&connector, &url, &token, &mut after, &updates).await;
        let reason = reason.unwrap_or_else(|error| error.to_string());
        if updates.send(Update::Disconnected { reason }).await.is_err() {
            return;
        }
        // One disconnect is reported once, however many attempts fail.
        while connector.connect().await.is_err() {
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}

/// Receives updates from one connection until it closes, and returns the reason.
async fn receive_until_closed(
    connector: &GatewayConnector,
    url: &str,
    token: &str,
    after: &mut Option<i64>,
    updates: &mpsc::Sender<Update>,
) -> anyhow::Result<String> {
    let url = after.map_or_else(|| url.to_owned(), |after| format!("{url}?after={after}"));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("authorization", HeaderValue::from_str(&format!("Bearer {token}"))?);
    let connection = connector.connect().await?;
    let handshake = tokio::time::timeout(CONNECT_TIMEOUT, client_async(request, connection)).await;
    let (mut socket, _) = handshake.context("no answer in time")?.context("not let in")?;
    while let Some(message) = socket.next().await {
        let text = match message.context("connection broken")? {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                let _ = socket.close(None).await;
                return Ok(format!("closed with {code}"));
            }
            Message::Ping(_) => {
                // tungstenite has queued the pong, which the flush sends.
                socket.flush().await?;
                continue;
            }
            Message::Binary(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let frame: Value = serde_json::from_str(&text)?;
        let update = match frame["type"].as_str() {
            Some("ready") => {
                let seq = frame["content"]["seq"].as_i64().context("ready without a seq")?;
                after.get_or_insert(seq);
                Update::Ready { seq, recovered: frame["content"]["recovered"] == true }
            }
            Some("order") => {
                let event = event(&frame)?;
                *after = Some(event.seq);
                Update::Order(event)
            }
            _ => continue,
        };
        if updates.send(update).await.is_err() {
            break;
        }
    }
    Ok("connection ended".to_owned())
}

fn event(frame: &Value) -> anyhow::Result<Event> {
    let content = &frame["content"];
    let text = |field: &str| content[field].as_str().map(str::to_owned);
    Ok(Event {
        seq: frame["seq"].as_i64().context("an event without a seq")?,
        order_id: text("order_id").context("an event without an order")?,
        status: text("status").context("an event without a status")?,
        previous_status: text("previous_status"),
        received_at: Clock::default().now(),
    })
}
