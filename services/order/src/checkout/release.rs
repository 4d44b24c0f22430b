//! The release of the hold of a checkout that placed no order.

use std::{sync::Arc, time::Duration};

use shoppee_proto::product::v1::ReleaseReason;
use tokio::task::JoinHandle;
use tonic::Code;
use uuid::Uuid;

use crate::OrderContext;

/// The delay before a release is retried, doubled each time. After the last attempt the hold is left to the sweep of orphan
/// holds.
const RELEASE_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Bounds the attempts of a release to about a minute: longer than a restart of the product service, shorter than a
/// hold.
const MAX_RELEASE_ATTEMPTS: u32 = 7;

/// Releases the hold of an order that was not placed, in the background. Returns the task; `None` if too many are pending.
pub fn spawn_release(context: &OrderContext, order_id: Uuid) -> Option<JoinHandle<()>> {
    let Ok(permit) = Arc::clone(&context.release_permits).try_acquire_owned() else {
        tracing::debug!(order.id = %order_id, "too many releases, hold left to the sweep");
        return None;
    };
    let product = context.product.clone();
    Some(tokio::spawn(async move {
        let _permit = permit;
        for attempt in 0..MAX_RELEASE_ATTEMPTS {
            match product.release(order_id, ReleaseReason::CheckoutAbandoned).await {
                Ok(()) => return,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::error!(order.id = %order_id, "hold of an order that was not placed is committed");
                    return;
                }
                Err(status) => {
                    tracing::info!(code = ?status.code(), order.id = %order_id, "hold release failed");
                }
            }
            tokio::time::sleep(RELEASE_RETRY_DELAY * 2_u32.pow(attempt)).await;
        }
    }))
}
