//! A gateway in a process of its own, which a test kills or measures.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use shoppee_kit::testing::{eventually, free_addr};

use super::{RealtimeFixture, Socket, open};

/// A gateway in a process of its own.
pub struct GatewayProcess {
    url: String,
    process: Child,
}

impl GatewayProcess {
    pub async fn start(fixture: &RealtimeFixture) -> Self {
        let addr = free_addr();
        let process = Command::new(env!("CARGO_BIN_EXE_shoppee-gateway"))
            .env_clear()
            .envs([("SHOPPEE_ENV", "development"), ("RATE_LIMITS", "off"), ("LOG", "off")])
            .envs([("LISTEN_ADDR", addr.to_string())])
            .envs([("REDIS_URL", format!("redis://127.0.0.1:{}", fixture.redis.port()))])
            .envs([("AUTH_URL", &fixture.auth_url), ("ORDER_URL", &fixture.order_url)])
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let gateway = Self { url: format!("ws://{addr}/ws"), process };
        eventually("the gateway answers", async || {
            let ready = reqwest::get(format!("http://{addr}/readyz?need=vital")).await;
            ready.is_ok_and(|response| response.status().is_success())
        })
        .await;
        gateway
    }

    /// Opens a socket with an access token, and reads its `ready`.
    pub async fn socket(&self, token: &str) -> Socket {
        let bearer = format!("Bearer {token}");
        let (mut socket, _) = open(&self.url, &[("authorization", &bearer)]).await.expect("a socket");
        socket.ready().await;
        socket
    }

    /// Returns the resident memory. Bytes.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
