//! A socket that always comes back, and what it told.

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
    screen::{Ink, ink, say},
    wire::{self, Connector},
};

/// For an event, with all that may have to come back before it.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the connection and its first frame.
const CONNECT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// What the demo has not looked at yet: more than an order has steps.
const UNREAD: usize = 64;

#[derive(Clone, Debug)]
pub struct Event {
    pub seq: i64,
    pub order_id: String,
    pub status: String,
    pub previous: Option<String>,
    /// When the frame was here.
    pub at: OffsetDateTime,
}

#[derive(Debug)]
enum Heard {
    Ready { seq: i64, recovered: bool },
    Order(Event),
    Lost { why: String },
}

/// What was heard so far, in order and each once.
#[derive(Debug)]
pub struct Watch {
    heard: mpsc::Receiver<Heard>,
    last: i64,
    pub seen: Vec<Event>,
    pub problems: Vec<String>,
    pub reconnects: u32,
    /// Why a connection ended, each time one did.
    pub losses: Vec<String>,
    /// Lost, and not back yet.
    away: bool,
    loud: bool,
}

impl Watch {
    /// Opens the socket of the user with that token; tells on the screen what happens to it.
    pub async fn open(gateway: &str, token: &str) -> anyhow::Result<Self> {
        Self::begin(gateway, token, true).await
    }

    /// The same, without a word.
    pub async fn open_quietly(gateway: &str, token: &str) -> anyhow::Result<Self> {
        Self::begin(gateway, token, false).await
    }

    /// The number of the last event.
    pub fn last(&self) -> i64 {
        self.last
    }

    async fn begin(gateway: &str, token: &str, loud: bool) -> anyhow::Result<Self> {
        let (tell, heard) = mpsc::channel(UNREAD);
        let way = Way { connector: wire::connector(gateway)?, gateway: gateway.parse()? };
        let url = format!("{}/ws", gateway.replacen("http", "ws", 1));
        tokio::spawn(listen(way, url, token.to_owned(), tell));
        let (seen, problems, losses) = (Vec::new(), Vec::new(), Vec::new());
        let mut watch = Self { heard, last: 0, seen, problems, reconnects: 0, losses, away: false, loud };
        match tokio::time::timeout(PATIENCE, watch.first()).await {
            Ok(seq) => {
                watch.last = seq?;
                watch.tell(&format!("  {:<34} → ready, seq {}", "GET  /ws", watch.last));
                Ok(watch)
            }
            Err(_) => Err(anyhow!("GET /ws: not ready within {} s", PATIENCE.as_secs())),
        }
    }

    async fn first(&mut self) -> anyhow::Result<i64> {
        loop {
            match self.heard.recv().await.context("the socket's task has ended")? {
                Heard::Ready { seq, .. } => {
                    self.away = false;
                    return Ok(seq);
                }
                Heard::Lost { why } => {
                    self.lost(why, |why| format!("  GET  /ws: {why}; trying again"));
                }
                Heard::Order(_) => return Err(anyhow!("an event before ready")),
            }
        }
    }

    /// The next event that was not seen yet.
    pub async fn event(&mut self) -> anyhow::Result<Event> {
        let waiting = tokio::time::timeout(PATIENCE, self.next()).await;
        waiting.map_err(|_| anyhow!("no frame within {} s", PATIENCE.as_secs()))?
    }

    /// The same, however long it takes.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            match self.heard.recv().await.context("the socket's task has ended")? {
                // A copy of one that was seen.
                Heard::Order(event) if event.seq <= self.last => {}
                Heard::Order(event) => {
                    if event.seq != self.last + 1 {
                        self.problems.push(format!("after {} came {}", self.last, event.seq));
                    }
                    self.last = event.seq;
                    self.seen.push(event.clone());
                    return Ok(event);
                }
                Heard::Ready { recovered: true, .. } => {
                    self.away = false;
                    self.reconnects += 1;
                }
                Heard::Ready { recovered: false, seq } => {
                    self.away = false;
                    self.problems.push(format!("not recovered after {}: the server is at {seq}", self.last));
                }
                Heard::Lost { why } => {
                    let last = self.last;
                    // A step's line may stand unfinished.
                    self.lost(why, |why| format!("\n  socket lost ({why}), coming back after {last}"));
                }
            }
        }
    }

    /// Told once until it is back: a proxy lets nobody in while the gateway behind it is away.
    fn lost(&mut self, why: String, told: impl Fn(&str) -> String) {
        if !self.away {
            self.tell(&ink(Ink::Notice, &told(&why)));
        }
        self.away = true;
        self.losses.push(why);
    }

    fn tell(&self, line: &str) {
        if self.loud {
            say(line);
        }
    }
}

/// To the gateway, whatever is asked of it there.
#[derive(Debug)]
struct Way {
    connector: Connector,
    gateway: http::Uri,
}

impl Way {
    async fn connect(&self) -> anyhow::Result<wire::Wire> {
        let connecting = wire::connect(&self.connector, &self.gateway);
        tokio::time::timeout(CONNECT, connecting).await.context("no answer in time")?
    }
}

async fn listen(way: Way, url: String, token: String, tell: mpsc::Sender<Heard>) {
    let mut after = None;
    loop {
        let why = follow(&way, &url, &token, &mut after, &tell).await;
        let why = why.unwrap_or_else(|error| error.to_string());
        if tell.send(Heard::Lost { why }).await.is_err() {
            return;
        }
        // Quietly until it is back.
        while way.connect().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One connection, to its end; returns why it ended.
async fn follow(
    way: &Way,
    url: &str,
    token: &str,
    after: &mut Option<i64>,
    tell: &mpsc::Sender<Heard>,
) -> anyhow::Result<String> {
    let url = after.map_or_else(|| url.to_owned(), |after| format!("{url}?after={after}"));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("authorization", HeaderValue::from_str(&format!("Bearer {token}"))?);
    let wire = way.connect().await?;
    let opening = tokio::time::timeout(CONNECT, client_async(request, wire)).await;
    let (mut socket, _) = opening.context("no answer in time")?.context("not let in")?;
    while let Some(message) = socket.next().await {
        let text = match message.context("connection broken")? {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                let _ = socket.close(None).await;
                return Ok(format!("closed with {code}"));
            }
            Message::Ping(_) => {
                // The answer stands ready and goes out with the next flush.
                socket.flush().await?;
                continue;
            }
            Message::Binary(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let frame: Value = serde_json::from_str(&text)?;
        let heard = match frame["type"].as_str() {
            Some("ready") => {
                let seq = frame["content"]["seq"].as_i64().context("ready without a seq")?;
                after.get_or_insert(seq);
                Heard::Ready { seq, recovered: frame["content"]["recovered"] == true }
            }
            Some("order") => {
                let event = event(&frame)?;
                *after = Some(event.seq);
                Heard::Order(event)
            }
            _ => continue,
        };
        if tell.send(heard).await.is_err() {
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
        previous: text("previous_status"),
        at: Clock::default().now(),
    })
}
