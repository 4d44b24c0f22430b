//! Retries of calls that a busy machine rejects temporarily.

use std::time::{Duration, Instant};

use tonic::{Code, Status};

/// Bounds the time until a retried call has to succeed.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Makes an idempotent call, and retries it while it fails temporarily, like a client of a busy service.
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

/// Reports whether a code is temporary. `ABORTED` means that the same request is still running.
fn is_temporary(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Aborted)
}
