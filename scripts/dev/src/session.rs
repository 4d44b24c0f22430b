//! A session of a user, whose tokens are renewed.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    rest::{Response, Rest},
    secrets::SignIn,
};

#[derive(Debug)]
pub struct Session<'a> {
    rest: &'a Rest,
    sign_in: SignIn,
    access_token: String,
    refresh_token: String,
    /// Half of the lifetime of the access token has passed then.
    renew_at: Instant,
}

impl<'a> Session<'a> {
    pub async fn open(rest: &'a Rest, sign_in: SignIn) -> anyhow::Result<Self> {
        let (access_token, refresh_token) = (String::new(), String::new());
        let mut session = Self { rest, sign_in, access_token, refresh_token, renew_at: Instant::now() };
        session.sign_in().await?;
        Ok(session)
    }

    /// Returns an access token, and renews it first if half of its lifetime has passed.
    pub async fn token(&mut self) -> anyhow::Result<&str> {
        if Instant::now() >= self.renew_at {
            let tokens = self.rest.post("/auth/refresh").body(json!({"refresh_token": self.refresh_token}));
            let response = tokens.send().await?;
            // The session has ended: another one begins.
            if response.status == 401 { self.sign_in().await? } else { self.accept(&response)? }
        }
        Ok(&self.access_token)
    }

    /// Renews the token before its next use: the shop refused it.
    pub fn expire(&mut self) {
        self.renew_at = Instant::now();
    }

    async fn sign_in(&mut self) -> anyhow::Result<()> {
        let SignIn { username, password } = &self.sign_in;
        let sign_in = self.rest.post("/auth/login").body(json!({"username": username, "password": password}));
        let response = sign_in.send().await?;
        if response.status == 401 {
            bail!("{username} cannot sign in with this password");
        }
        self.accept(&response)
    }

    fn accept(&mut self, response: &Response) -> anyhow::Result<()> {
        let tokens = response.expect_success("tokens")?;
        let text = |field: &str| tokens[field].as_str().map(str::to_owned).context("tokens without a token");
        (self.access_token, self.refresh_token) = (text("access_token")?, text("refresh_token")?);
        let lifetime = Duration::from_secs(tokens["expires_in"].as_u64().unwrap_or_default());
        self.renew_at = Instant::now() + lifetime / 2;
        Ok(())
    }
}
