//! Timeouts that end the wait and not the work.

use std::time::Duration;

use shoppee_kit::telemetry::Trace;

use crate::error::Error;

/// Waits for `work` no longer than `limit`. After the timeout the work continues in the background, so that no query
/// and no transaction is cut off half-way.
pub async fn with_timeout<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, tokio::spawn(Trace::current().instrument(work))).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_panicked)) => Err(Error::Internal("a task of a payment panicked")),
        Err(_elapsed) => Err(Error::Unavailable),
    }
}
