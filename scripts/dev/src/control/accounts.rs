//! The accounts of the demonstration: 300 buyers, the owner of the devices, and the admin. Each signs in by gRPC, because
//! the gateways limit the sign-ins of one address.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shoppee_proto::auth::v1::{LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{shop::Shop, view::View};
use crate::secrets::SignIn;

/// The buyers of a sale.
pub const BUYERS: usize = 300;
/// The account whose devices are shown. The buyers are copies of it, as to hash a password takes 25 ms.
const OWNER: &str = "buyer-000";
/// Bounds the sign-ins at once: the auth service hashes one password for each core, and refuses a long queue.
const MAX_CONCURRENT_SIGN_INS: usize = 2;
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the repeats of a call that a busy auth service refuses.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The part of a token's lifetime for which it is used.
const TOKEN_USE: u32 = 2;

/// An access token, and the end of its use.
#[derive(Clone, Debug)]
struct Token {
    token: Arc<str>,
    use_until: Instant,
}

#[derive(Debug)]
pub struct Accounts {
    postgres_url: String,
    auth: Endpoint,
    password: String,
    admin: SignIn,
    buyers: Mutex<Vec<Token>>,
    owner: Mutex<Option<Token>>,
    admin_token: Mutex<Option<Token>>,
}

impl Accounts {
    pub fn new(shop: &Shop) -> Self {
        Self {
            postgres_url: shop.postgres_url.clone(),
            auth: shop.auth.clone(),
            password: shop.buyer_password.clone(),
            admin: shop.admin.clone(),
            buyers: Mutex::default(),
            owner: Mutex::default(),
            admin_token: Mutex::default(),
        }
    }

    /// Returns a token of each buyer, and shows the progress of the sign-ins.
    pub async fn buyers(&self, view: &watch::Sender<View>) -> anyhow::Result<Vec<Arc<str>>> {
        let mut buyers = self.buyers.lock().await;
        if buyers.is_empty() || buyers.iter().any(|token| token.use_until < Instant::now()) {
            view.send_modify(|view| (view.buyers.ready, view.buyers.error) = (0, None));
            self.register().await?;
            let sign_ins = (1..=BUYERS).map(|number| async move {
                let token = self.sign_in(&format!("buyer-{number:03}"), &self.password).await?;
                view.send_modify(|view| view.buyers.ready += 1);
                anyhow::Ok(token)
            });
            *buyers = stream::iter(sign_ins).buffered(MAX_CONCURRENT_SIGN_INS).try_collect().await?;
        }
        Ok(buyers.iter().map(|token| token.token.clone()).collect())
    }

    /// Returns a token of the account whose devices are shown.
    pub async fn owner(&self) -> anyhow::Result<Arc<str>> {
        let mut owner = self.owner.lock().await;
        if owner.is_none() {
            self.register().await?;
        }
        self.renew(&mut owner, OWNER, &self.password).await
    }

    pub async fn admin(&self) -> anyhow::Result<Arc<str>> {
        let mut admin = self.admin_token.lock().await;
        self.renew(&mut admin, &self.admin.username, &self.admin.password).await
    }

    async fn renew(
        &self,
        token: &mut Option<Token>,
        username: &str,
        password: &str,
    ) -> anyhow::Result<Arc<str>> {
        match token {
            Some(token) if token.use_until > Instant::now() => Ok(token.token.clone()),
            _ => Ok(token.insert(self.sign_in(username, password).await?).token.clone()),
        }
    }

    /// Registers the accounts that do not exist yet.
    async fn register(&self) -> anyhow::Result<()> {
        let request = RegisterRequest {
            username: OWNER.to_owned(),
            email: format!("{OWNER}@customers.example"),
            password: self.password.clone(),
            idempotency_key: None,
        };
        match retry(|| async { self.client().register(request.clone()).await }).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(status).context("the registration of the buyers"),
        }
        let mut connection = PgConnection::connect(&self.postgres_url).await?;
        sqlx::query(
            "insert into auth.account (username, email, password_hash, created_at) \
             select format('buyer-%s', to_char(number, 'FM000')), \
                    format('buyer-%s@customers.example', to_char(number, 'FM000')), password_hash, created_at \
             from auth.account, generate_series(1, $2) as number where username = $1 on conflict do nothing",
        )
        .bind(OWNER)
        .bind(i32::try_from(BUYERS)?)
        .execute(&mut connection)
        .await?;
        connection.close().await?;
        Ok(())
    }

    async fn sign_in(&self, username: &str, password: &str) -> anyhow::Result<Token> {
        let request = LoginRequest {
            username: username.to_owned(),
            password: password.to_owned(),
            user_agent: "scripts/up".to_owned(),
            device_token: None,
        };
        let tokens = retry(|| async { self.client().login(request.clone()).await }).await;
        let tokens = tokens.with_context(|| format!("the sign-in of {username}"))?.into_inner();
        let lifetime = Duration::from_secs(u64::try_from(tokens.expires_in)?);
        Ok(Token { token: tokens.access_token.into(), use_until: Instant::now() + lifetime / TOKEN_USE })
    }

    fn client(&self) -> AuthServiceClient<Channel> {
        AuthServiceClient::new(self.auth.clone().timeout(SIGN_IN_TIMEOUT).connect_lazy())
    }
}

/// Repeats a call until its outcome is known.
async fn retry<T, F>(call: impl Fn() -> F) -> Result<Response<T>, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let deadline = Instant::now() + RETRY_TIMEOUT;
    loop {
        match call().await {
            Err(status) if is_transient(status.code()) && Instant::now() < deadline => {
                sleep(RETRY_DELAY).await;
            }
            outcome => return outcome,
        }
    }
}

/// Reports whether a call may succeed later. A timeout of the client is `Cancelled`.
fn is_transient(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}
