//! The order service as a process of its own, which a test can kill and freeze.

use std::{
    process::{Child, Command},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret as _;
use shoppee_kit::{
    client,
    testing::{eventually, free_addr},
};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::TestShop;

const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process of the order service; it is killed on drop.
pub struct OrderBinary {
    child: Child,
    pub channel: Channel,
}

impl TestShop {
    /// Starts the binary of the order service on the shop's database, with the product service at `product_url`.
    pub async fn start_binary(&self, product_url: &str) -> OrderBinary {
        let settings = &self.order_settings;
        let listen_addr = free_addr();
        let child = Command::new(env!("CARGO_BIN_EXE_shoppee-order"))
            .env_clear()
            .env("DATABASE_URL", settings.postgres.database_url.expose_secret())
            .env("REDIS_URL", settings.redis.redis_url.expose_secret())
            .env("AUTH_URL", &settings.service_client.auth_url)
            .env("SERVICE_CLIENT_ID", &settings.service_client.service_client_id)
            .env("SERVICE_CLIENT_SECRET", settings.service_client.service_client_secret.expose_secret())
            .env("PRODUCT_URL", product_url)
            .env("LISTEN_ADDR", listen_addr.to_string())
            .env("METRICS_ADDR", free_addr().to_string())
            .env("SHOPPEE_ENV", "development")
            .env("LOG", "error")
            .spawn()
            .expect("starts");
        let channel = client::channel(&format!("http://{listen_addr}")).expect("a URL");
        let binary = OrderBinary { child, channel };
        eventually("the binary serves", || async {
            let mut health = HealthClient::new(binary.channel.clone());
            let request = client::request(HealthCheckRequest::default(), None, Duration::from_secs(1));
            let answer = health.check(request).await;
            answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
        })
        .await;
        binary
    }
}

impl OrderBinary {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Ends the process, which first completes the orders that it is placing.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        while self.child.try_wait().expect("a child").is_none() {
            tokio::time::sleep(EXIT_POLL_INTERVAL).await;
        }
    }
}

impl Drop for OrderBinary {
    fn drop(&mut self) {
        // A frozen process is killed too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
