//! A warehouse: follows paid orders by `OrderService.WatchEvents`, and ships each once. It may be killed at any moment: the
//! cursor is saved after the shipment, and a repeated shipment with the same tracking number changes nothing.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use shoppee_proto::{
    auth::v1::{IssueServiceTokenRequest, auth_service_client::AuthServiceClient},
    order::v1::{
        OrderStatus, ShipOrderRequest, WatchEventsRequest, order_service_client::OrderServiceClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, metadata::AsciiMetadataValue, transport::Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The stream has a message about every ten seconds.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_RECONNECT_DELAY_MS: u64 = 1000;

/// A warehouse. Its service account has the scopes `events:watch` and `orders:ship`
#[derive(Debug, Parser)]
struct Warehouse {
    #[arg(long, env = "AUTH_URL", default_value = "http://127.0.0.1:50051")]
    auth_url: String,
    #[arg(long, env = "ORDER_URL", default_value = "http://127.0.0.1:50053")]
    order_url: String,
    #[arg(long, env = "CLIENT_ID")]
    client_id: String,
    #[arg(long, env = "CLIENT_SECRET", hide_env_values = true)]
    client_secret: String,
    #[arg(long, env = "CURSOR_FILE", default_value = "warehouse.cursor")]
    cursor_file: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let warehouse = Warehouse::parse();
    loop {
        // The stream ends with the token, and with the process that serves it.
        if let Err(error) = warehouse.follow().await {
            eprintln!("{error:#}");
        }
        sleep(Duration::from_millis(rand::random_range(0..MAX_RECONNECT_DELAY_MS))).await;
    }
}

impl Warehouse {
    /// Ships orders until the stream ends.
    async fn follow(&self) -> anyhow::Result<()> {
        let token = self.token().await.context("token")?;
        let channel =
            Endpoint::from_shared(self.order_url.clone())?.connect_timeout(CONNECT_TIMEOUT).connect().await?;
        let mut orders = OrderServiceClient::with_interceptor(channel, move |mut request: Request<()>| {
            request.metadata_mut().insert("authorization", token.clone());
            Ok(request)
        });
        let cursor = fs::read_to_string(&self.cursor_file).unwrap_or_default();
        let statuses = vec![OrderStatus::Paid.into()];
        let mut events =
            orders.watch_events(WatchEventsRequest { cursor, from_now: false, statuses }).await?.into_inner();
        while let Some(message) = timeout(MESSAGE_TIMEOUT, events.message()).await?? {
            if let Some(event) = message.event {
                let tracking_number = format!("W-{}", event.order_id);
                let (id, carrier) = (event.order_id, "Post".to_owned());
                match orders
                    .ship_order(ShipOrderRequest { id, carrier, tracking_number, idempotency_key: None })
                    .await
                {
                    // Cancelled, or shipped by other means.
                    Err(status) if status.code() == Code::FailedPrecondition => {}
                    shipped => drop(shipped?),
                }
            }
            // Renamed, so that a file is whole at any moment.
            let new = self.cursor_file.with_extension("new");
            fs::write(&new, message.cursor).and_then(|()| fs::rename(&new, &self.cursor_file))?;
        }
        Ok(())
    }

    /// Gets an access token by client credentials.
    async fn token(&self) -> anyhow::Result<AsciiMetadataValue> {
        let channel =
            Endpoint::from_shared(self.auth_url.clone())?.connect_timeout(CONNECT_TIMEOUT).connect().await?;
        let (client_id, client_secret) = (self.client_id.clone(), self.client_secret.clone());
        let request = IssueServiceTokenRequest { client_id, client_secret, scope: None };
        let token = AuthServiceClient::new(channel).issue_service_token(request).await?.into_inner();
        Ok(format!("Bearer {}", token.access_token).parse()?)
    }
}
