//! Waiting until something answers.

use std::time::Duration;

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(30);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks again and again.
pub async fn until<F, Fut>(answers: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    while !matches!(tokio::time::timeout(PATIENCE, answers()).await, Ok(true)) {
        tokio::time::sleep(LOOK).await;
    }
}

/// What `/readyz` says: `Ok` when ready, else why not.
pub async fn ready(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let asked = client.get(format!("{url}/readyz")).timeout(PATIENCE).send().await;
    let answer = asked.map_err(|_| "does not answer yet".to_owned())?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(answer.text().await.unwrap_or_default().trim().to_owned())
}
