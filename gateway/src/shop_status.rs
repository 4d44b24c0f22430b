//! The status of the shop, which all admins share for a second.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use shoppee_proto::{
    Timestamp, auth::v1::AuthServiceStatus, order::v1::OrderServiceStatus, product::v1::ProductServiceStatus,
};
use tokio::{sync::Mutex, time::Instant};

use crate::realtime::EventDelivery;

/// The lifetime of a status, which all admins share.
const STATUS_TTL: Duration = Duration::from_secs(1);

/// The status of the shop. A service that does not answer is null.
#[derive(Clone, Debug, Serialize)]
pub struct ShopStatus {
    pub at: Timestamp,
    pub gateway: GatewayStatus,
    pub auth: Option<AuthServiceStatus>,
    pub product: Option<ProductServiceStatus>,
    pub order: Option<OrderServiceStatus>,
}

/// The status of the gateway that answers.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayStatus {
    /// The names of the dependencies that do not answer this gateway.
    pub unavailable_dependencies: Vec<&'static str>,
    /// Sockets, streams and long polls of users.
    pub sockets: usize,
    /// Streams of the events of all users.
    pub admin_streams: usize,
    pub event_delivery: EventDelivery,
}

/// The last status.
#[derive(Debug, Default)]
pub struct StatusCache(Mutex<Option<(Instant, Arc<ShopStatus>)>>);

impl StatusCache {
    /// Returns the status of the last second, or else gathers the next one. Of simultaneous requests, one gathers it.
    pub async fn get_or_gather<E>(
        &self,
        gather: impl Future<Output = Result<ShopStatus, E>>,
    ) -> Result<Arc<ShopStatus>, E> {
        let mut cached = self.0.lock().await;
        if let Some((at, status)) = cached.as_ref()
            && at.elapsed() < STATUS_TTL
        {
            return Ok(status.clone());
        }
        let status = Arc::new(gather.await?);
        *cached = Some((Instant::now(), status.clone()));
        Ok(status)
    }
}
