//! `scripts/watch`: shows the steps of orders as they happen, those of one user or of all, from Server-Sent Events. The
//! stream reconnects with a random delay, resumes after the last event that it showed, and renews its token.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use time::OffsetDateTime;

use crate::{
    demo::parse_address,
    output::{Style, print_line, styled},
    rest::{Rest, is_transient},
    run_file::RunFile,
    secrets::SignIn,
    session::Session,
    sse::Parser,
    state::State,
    transport::{self, Connector},
};

/// Bounds the connection and the head of the response.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the silence of a stream, which has a comment every 15 s or a position every 10 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(40);
/// The upper bounds of the random delay before a reconnect: of the first one, and of any (exponential backoff with full
/// jitter).
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(500);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(10);

/// Shows the steps of a user's orders as they happen, or with --all those of everybody's
#[derive(Debug, Args)]
pub struct Options {
    /// The orders of all users, as an admin
    #[arg(long)]
    all: bool,
    /// The user to sign in, with the password in SHOPPEE_PASSWORD; by default the demo customer of scripts/up, or its
    /// admin with --all
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The URL of a deployed shop to use instead of the one of scripts/up
    #[arg(long, value_name = "URL", requires = "user")]
    url: Option<String>,
    /// Begins after this position of an earlier run; by default with the next step
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

pub const AFTER_HELP: &str = "Environment:
  SHOPPEE_PASSWORD  of --user
  SSL_CERT_FILE     authorities to trust instead of this host's

Each line has the time, the number of the event (with --all the user), the order, and its step. The last line of an
interrupted run has the position for --after.";

pub async fn run(state: &Path, options: &Options) -> anyhow::Result<()> {
    let (url, sign_in) = shop(state, options)?;
    let rest = Rest::new(&url)?;
    let mut session = Session::open(&rest, sign_in).await?;
    let path = if options.all { "/api/v1/admin/orders/stream" } else { "/api/v1/orders/stream" };
    let mut stream = Stream {
        client: Client::builder(TokioExecutor::new()).build(transport::connector(&url)?),
        url: format!("{url}{path}"),
        shows_user: options.all,
        last_id: options.after.clone(),
    };
    tokio::select! {
        outcome = stream.follow(&mut session) => outcome,
        _ = tokio::signal::ctrl_c() => {
            print_notice(&format!("position {}", stream.last_id.as_deref().unwrap_or("none")));
            Ok(())
        }
    }
}

/// Returns the URL of the shop, and the account to sign in.
fn shop(state: &Path, options: &Options) -> anyhow::Result<(String, SignIn)> {
    let own = match &options.user {
        Some(username) => {
            let password =
                std::env::var_os("SHOPPEE_PASSWORD").and_then(|password| password.into_string().ok());
            let password =
                password.with_context(|| format!("SHOPPEE_PASSWORD is not set: {username} signs in"))?;
            Some(SignIn { username: username.clone(), password })
        }
        None => None,
    };
    if let (Some(url), Some(sign_in)) = (&options.url, &own) {
        return Ok((parse_address(url)?, sign_in.clone()));
    }
    let run = RunFile::read(&State::open(state)?)?;
    let sign_in = own.unwrap_or(if options.all { run.admin } else { run.customer });
    let gateway = run.gateways.first().context("no gateway runs")?;
    Ok((gateway.url.clone(), sign_in))
}

struct Stream {
    client: Client<Connector, Empty<Bytes>>,
    url: String,
    shows_user: bool,
    /// The position after the last event that was shown.
    last_id: Option<String>,
}

/// The reason of the end of a stream.
enum End {
    /// The client resumes.
    Interrupted(String),
    /// The token is not valid any more: the client resumes with another one.
    Unauthenticated,
}

impl Stream {
    /// Shows events until an error that no retry mends.
    async fn follow(&mut self, session: &mut Session<'_>) -> anyhow::Result<()> {
        let mut attempts = 0;
        loop {
            let before = self.last_id.clone();
            let token = match session.token().await {
                Ok(token) => token.to_owned(),
                Err(error) if attempts > 0 => {
                    self.pause(&format!("{error:#}"), &mut attempts).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let end = self.show_until_end(&token).await?;
            if self.last_id != before {
                attempts = 0;
            }
            match end {
                End::Unauthenticated => {
                    session.expire();
                    self.pause("the token has ended", &mut attempts).await;
                }
                End::Interrupted(reason) => self.pause(&reason, &mut attempts).await,
            }
        }
    }

    async fn pause(&self, reason: &str, attempts: &mut u32) {
        let position = self.last_id.as_deref().unwrap_or("the next event");
        if *attempts == 0 {
            print_notice(&format!("{reason}; coming back after {position}"));
        }
        tokio::time::sleep(reconnect_delay(*attempts, rand::random())).await;
        *attempts += 1;
    }

    /// Opens the stream once and shows its events.
    async fn show_until_end(&mut self, token: &str) -> anyhow::Result<End> {
        let mut request =
            http::Request::get(&self.url).header(header::AUTHORIZATION, format!("Bearer {token}"));
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Empty::new()).context("--after is no position")?;
        let response = match tokio::time::timeout(OPEN_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => return Ok(End::Interrupted("no connection".to_owned())),
            Err(_) => return Ok(End::Interrupted("no answer in time".to_owned())),
        };
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            return refused(
                status,
                body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default().as_ref(),
            );
        }
        let mut parser = Parser::new(self.last_id.clone());
        loop {
            let chunk = match tokio::time::timeout(SILENCE_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(_)) | None) => return Ok(End::Interrupted("the connection ended".to_owned())),
                Err(_) => return Ok(End::Interrupted("the stream is silent".to_owned())),
            };
            for data in parser.feed(&chunk)? {
                let frame: Value = serde_json::from_str(&data).context("a frame that is no JSON")?;
                if is_final_close(&frame) {
                    bail!("closed: {}", frame["content"]["reason"].as_str().unwrap_or_default());
                }
                self.show(&frame)?;
            }
            self.last_id.clone_from(&parser.last_id);
        }
    }

    fn show(&self, frame: &Value) -> anyhow::Result<()> {
        let content = &frame["content"];
        match frame["type"].as_str() {
            Some("order") => print_line(&row(frame, self.shows_user)?),
            Some("ready") if content["recovered"] == false => {
                print_notice(&format!("missed events cannot be replayed; going on after {}", content["seq"]));
            }
            // The gateway says the reason, and ends the stream.
            _ => {}
        }
        Ok(())
    }
}

/// Returns the end that a refusal means, or the error if no retry mends it.
fn refused(status: StatusCode, body: &[u8]) -> anyhow::Result<End> {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    if status == StatusCode::UNAUTHORIZED {
        return Ok(End::Unauthenticated);
    }
    let detail = problem["detail"].as_str().unwrap_or_default();
    if is_transient(status, &problem) {
        return Ok(End::Interrupted(format!("{} {detail}", status.as_u16())));
    }
    bail!("{}: {detail}", status.as_u16());
}

/// Formats a frame of a step: its time, its number or its user, the order and the statuses.
fn row(frame: &Value, shows_user: bool) -> anyhow::Result<String> {
    let content = &frame["content"];
    let text = |field: &str| content[field].as_str().unwrap_or_default();
    let time =
        OffsetDateTime::from_unix_timestamp(frame["time"].as_i64().context("a frame without a time")?)?;
    let (hour, minute, second) = time.to_hms();
    let number = if shows_user { format!("user {}", frame["user_id"]) } else { format!("#{}", frame["seq"]) };
    let step = match text("previous_status") {
        "" => text("status").to_owned(),
        previous => format!("{previous} → {}", text("status")),
    };
    let total = content["total"].as_i64().unwrap_or_default();
    let money = format!("{}.{:02} {}", total / 100, total % 100, text("currency"));
    Ok(format!(
        "{hour:02}:{minute:02}:{second:02}  {number:<10}  {}  {:<21}  {money}",
        text("order_id"),
        styled(Style::Bold, &step)
    ))
}

/// Returns the delay before a reconnect; `share` is a random number from 0 to 1.
fn reconnect_delay(attempts: u32, share: f64) -> Duration {
    let bound = MIN_RECONNECT_DELAY.saturating_mul(2_u32.saturating_pow(attempts.min(16)));
    bound.min(MAX_RECONNECT_DELAY).mul_f64(share)
}

/// Reports whether a frame is the end of a stream after which a client does not come back.
fn is_final_close(frame: &Value) -> bool {
    frame["type"] == "close" && frame["content"]["code"].as_i64().is_some_and(|code| code >= 4500)
}

fn print_notice(text: &str) {
    print_line(&styled(Style::Notice, text));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reconnect_delay_is_random_and_grows_to_its_bound() {
        assert_eq!(reconnect_delay(0, 1.0), MIN_RECONNECT_DELAY);
        assert_eq!(reconnect_delay(0, 0.5), MIN_RECONNECT_DELAY / 2);
        assert_eq!(reconnect_delay(3, 1.0), MIN_RECONNECT_DELAY * 8);
        assert_eq!(reconnect_delay(u32::MAX, 1.0), MAX_RECONNECT_DELAY);
    }

    #[test]
    fn a_row_has_time_number_order_step_and_total() {
        let content = json!({"order_id": "019b", "status": "paid", "previous_status": "pending", "total": 1905,
                             "currency": "EUR", "version": 2});
        let frame =
            json!({"type": "order", "content": content, "user_id": 7, "time": 1_702_886_400, "seq": 42});
        let cells = |row: &str| {
            row.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>().join("|")
        };
        assert_eq!(cells(&row(&frame, false).unwrap()), "08:00:00|#42|019b|pending → paid|19.05 EUR");
        assert_eq!(cells(&row(&frame, true).unwrap()), "08:00:00|user 7|019b|pending → paid|19.05 EUR");
    }

    #[test]
    fn a_refusal_is_final_unless_a_retry_or_another_token_may_succeed() {
        let problem = br#"{"detail":"because"}"#;
        assert!(matches!(refused(StatusCode::UNAUTHORIZED, problem), Ok(End::Unauthenticated)));
        assert!(matches!(refused(StatusCode::SERVICE_UNAVAILABLE, b""), Ok(End::Interrupted(_))));
        for status in [StatusCode::FORBIDDEN, StatusCode::GONE, StatusCode::BAD_REQUEST] {
            assert!(refused(status, problem).is_err_and(|error| error.to_string().ends_with("because")));
        }
    }
}
