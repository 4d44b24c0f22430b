//! Readiness checks: polls a server until it answers.

use std::time::Duration;

const POLL_INTERVAL: Duration = Duration::from_millis(30);
/// Bounds one check; a later answer counts as a failure.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Repeats a check until it returns `true`.
pub async fn wait_until<F, Fut>(check: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    while !matches!(tokio::time::timeout(CHECK_TIMEOUT, check()).await, Ok(true)) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Requests `/readyz` once.
///
/// # Errors
/// The reason why the process is not ready.
pub async fn check(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let response = client.get(format!("{url}/readyz")).timeout(CHECK_TIMEOUT).send().await;
    let response = response.map_err(|_| "does not answer yet".to_owned())?;
    if response.status().is_success() {
        return Ok(());
    }
    Err(response.text().await.unwrap_or_default().trim().to_owned())
}
