//! Retries, as a client makes them: a busy machine refuses calls for now.

use std::time::{Duration, Instant};

use tonic::{Code, Status};

/// The time within which a call that is refused for now succeeds.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Makes a call that may be repeated, again while it is refused for now: a busy machine does that, and a client comes
/// back.
pub async fn retry<T, F: Future<Output = Result<T, Status>>>(call: impl Fn() -> F) -> Result<T, Status> {
    let deadline = Instant::now() + RETRY_TIMEOUT;
    loop {
        match call().await {
            Err(status) if is_temporary(status.code()) && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            answered => return answered,
        }
    }
}

/// `ABORTED` is the answer while the same request is still under way.
fn is_temporary(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Aborted)
}
