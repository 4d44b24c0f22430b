//! A test fixture: a running auth service and its callers.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use shoppee_auth::Settings;
use shoppee_kit::{
    caller::authorize,
    clock::Clock,
    settings::Redis,
    status,
    testing::{Database, TestProcess, common, free_addr},
};
use shoppee_proto::auth::v1::{auth_service_client::AuthServiceClient, *};
use sqlx::{Connection as _, PgConnection};
use tonic::{Code, Request, Response, Status, transport::Channel};

pub const SECRET: &str = "a secret of the tests with more than 32 bytes";
pub const ORDER_SECRET: &str = "the order service's secret";
pub const PASSWORD: &str = "correct horse battery";

/// A replica of the service, with its database.
pub struct TestAuth {
    pub database: std::sync::Arc<Database>,
    pub process: TestProcess,
    pub settings: Settings,
    pub client: AuthServiceClient<Channel>,
}

/// Returns the address of no Redis: only the outbox may depend on Redis.
fn no_redis() -> Redis {
    Redis::at("redis://127.0.0.1:1")
}

impl TestAuth {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let database = Database::create().await;
        let mut settings = settings(&database);
        change(&mut settings);
        Self::launch(database.into(), settings, Clock::default()).await
    }

    /// Starts another replica with the same database, settings and clock.
    pub async fn replica(&self) -> Self {
        self.replica_with(|_| {}).await
    }

    pub async fn replica_with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings =
            Settings { listen_addr: free_addr(), metrics_addr: free_addr(), ..self.settings.clone() };
        change(&mut settings);
        Self::launch(self.database.clone(), settings, self.process.process.clock.clone()).await
    }

    async fn launch(database: std::sync::Arc<Database>, settings: Settings, clock: Clock) -> Self {
        let mut process = TestProcess::default();
        process.process.clock = clock;
        shoppee_auth::start(settings.clone(), process.process.clone()).await.expect("starts");
        process.wait_ready().await;
        let channel =
            shoppee_kit::client::channel(&format!("http://{}", settings.listen_addr)).expect("a URL");
        Self { database, process, settings, client: AuthServiceClient::new(channel) }
    }

    /// Registers with [`PASSWORD`] and an address of the same name.
    pub async fn registers(&self, name: &str) -> User {
        self.try_register(name, &format!("{name}@example.com"), PASSWORD).await.expect("registers")
    }

    pub async fn try_register(&self, username: &str, email: &str, password: &str) -> Result<User, Status> {
        let request = RegisterRequest {
            username: username.to_owned(),
            email: email.to_owned(),
            password: password.to_owned(),
            idempotency_key: None,
        };
        self.client.clone().register(request).await.map(Response::into_inner)
    }

    /// Registers under an idempotency key. Also returns whether the response is a replay.
    pub async fn registers_with_key(
        &self,
        key: &str,
        username: &str,
        email: &str,
        password: &str,
    ) -> Result<(User, bool), Status> {
        let request = RegisterRequest {
            username: username.to_owned(),
            email: email.to_owned(),
            password: password.to_owned(),
            idempotency_key: Some(key.to_owned()),
        };
        let (metadata, user, _) = self.client.clone().register(request).await?.into_parts();
        Ok((user, metadata.contains_key("idempotent-replayed")))
    }

    /// Signs in with [`PASSWORD`].
    pub async fn signs_in(&self, name: &str) -> Person {
        self.try_sign_in(name, PASSWORD).await.expect("signs in")
    }

    pub async fn try_sign_in(&self, name: &str, password: &str) -> Result<Person, Status> {
        self.try_sign_in_from(None, name, password).await
    }

    /// Signs in from a device with this token.
    pub async fn try_sign_in_from(
        &self,
        device_token: Option<&str>,
        name: &str,
        password: &str,
    ) -> Result<Person, Status> {
        let request = LoginRequest {
            username: name.to_owned(),
            password: password.to_owned(),
            user_agent: "the tests".to_owned(),
            device_token: device_token.map(str::to_owned),
        };
        let mut request = Request::new(request);
        // Longer than the limits of the service, which should decide also on a busy machine.
        request.set_timeout(Duration::from_secs(30));
        let tokens = self.client.clone().login(request).await?.into_inner();
        Ok(Person { client: self.client.clone(), tokens })
    }

    pub async fn registers_and_signs_in(&self, name: &str) -> Person {
        self.registers(name).await;
        self.signs_in(name).await
    }

    /// Registers a user, and makes it an admin in the database.
    pub async fn admin(&self, name: &str) -> Person {
        let user = self.registers(name).await;
        let mut conn = self.connection().await;
        sqlx::query("update auth.account set role = 'admin' where id = $1")
            .bind(user.id)
            .execute(&mut conn)
            .await
            .expect("makes an admin");
        self.signs_in(name).await
    }

    pub async fn refreshes(&self, refresh_token: &str) -> Result<Tokens, Status> {
        let request = RefreshRequest { refresh_token: refresh_token.to_owned() };
        self.client.clone().refresh(request).await.map(Response::into_inner)
    }

    /// Returns the user of a token.
    pub async fn me(&self, access_token: &str) -> Result<User, Status> {
        let request = with(access_token, GetUserInfoRequest {});
        self.client.clone().get_user_info(request).await.map(Response::into_inner)
    }

    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.database.url("auth")).await.expect("connects")
    }

    /// Sets the time of all attempts to `seconds` ago, by the database's clock.
    pub async fn age_attempts(&self, seconds: f64) {
        sqlx::query(
            "update auth.password_try set tried_at =
                 array_fill(clock_timestamp() - make_interval(secs => $1), array[cardinality(tried_at)])",
        )
        .bind(seconds)
        .execute(&mut self.connection().await)
        .await
        .expect("ages");
    }

    pub fn advance_clock(&self, by: Duration) {
        self.process.process.clock.advance(by);
    }

    /// Asserts that this replica rejects `token` as revoked within a second.
    pub async fn rejects_within_a_second(&self, token: &str) {
        let started = Instant::now();
        loop {
            match self.me(token).await {
                Err(status) => {
                    assert_eq!(
                        code_and_reason(&status),
                        (Code::Unauthenticated, "SESSION_REVOKED".to_owned())
                    );
                    return;
                }
                Ok(_) => assert!(started.elapsed() < Duration::from_secs(1), "still accepted after a second"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub fn settings(database: &Database) -> Settings {
    Settings {
        common: common(),
        postgres: database.settings("auth"),
        redis: no_redis(),
        listen_addr: free_addr(),
        metrics_addr: free_addr(),
        grpc_reflection: false,
        jwt_secret: SECRET.into(),
        jwt_secret_previous: None,
        access_token_ttl: Duration::from_hours(24),
        refresh_token_ttl: Duration::from_hours(30 * 24),
        admin_username: None,
        admin_email: None,
        admin_password: None,
        service_clients: Some(format!("order={ORDER_SECRET}").into()),
        password_hashes: None,
        audit_log: shoppee_kit::settings::AuditLog::default(),
    }
}

/// A signed-in user.
#[derive(Debug)]
pub struct Person {
    pub client: AuthServiceClient<Channel>,
    pub tokens: Tokens,
}

impl Person {
    pub fn token(&self) -> &str {
        &self.tokens.access_token
    }

    /// Returns the device token of this sign-in.
    pub fn device_token(&self) -> &str {
        self.tokens.device_token.as_deref().expect("signed in")
    }

    pub fn id(&self) -> i64 {
        self.tokens.user.as_ref().expect("tokens have a user").id
    }

    /// Builds a request with this person's access token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        with(self.token(), message)
    }

    pub async fn logs_out(&self) {
        self.client.clone().logout(self.request(LogoutRequest {})).await.expect("logs out");
    }

    pub async fn sessions(&self) -> Vec<Session> {
        let sessions = self
            .client
            .clone()
            .list_sessions(self.request(ListSessionsRequest { limit: Some(100), cursor: None }))
            .await;
        sessions.expect("lists sessions").into_inner().items
    }

    pub async fn changes_password(&self, current: &str, new: &str) -> Result<(), Status> {
        let request =
            ChangePasswordRequest { current_password: current.to_owned(), new_password: new.to_owned() };
        self.client.clone().change_password(self.request(request)).await.map(|_| ())
    }

    pub async fn updates(&self, id: i64, role: Option<Role>, disabled: Option<bool>) -> Result<User, Status> {
        let request = UpdateUserRequest { id, role: role.map(Into::into), disabled };
        self.client.clone().update_user(self.request(request)).await.map(Response::into_inner)
    }

    pub async fn lists_users(&self, request: ListUsersRequest) -> Result<ListUsersResponse, Status> {
        self.client.clone().list_users(self.request(request)).await.map(Response::into_inner)
    }
}

/// Retries a call while a busy machine sheds it.
pub async fn retry_while_shed<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    loop {
        match call().await {
            Err(status) if code_and_reason(&status).1 == "UNAVAILABLE" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Builds a request with an access token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    authorize(&mut request, &SecretString::from(token));
    request
}

/// Returns the code and the reason of an error.
pub fn code_and_reason(status: &Status) -> (Code, String) {
    (status.code(), status::parse(status).reason)
}

/// Asserts that `outcome` is an error with this code and reason.
#[track_caller]
pub fn expect_error<T>(outcome: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = outcome.err().expect("is an error");
    assert_eq!(code_and_reason(&status), (code, reason.to_owned()));
    status
}

/// Returns the invalid fields of an error.
pub fn fields(status: &Status) -> Vec<String> {
    status::parse(status).violations.into_iter().map(|(field, _)| field).collect()
}
