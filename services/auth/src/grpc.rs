//! The gRPC handlers of `AuthService`. Each method parses the request, runs the use case and converts the result. The
//! server has checked the caller by the rule in the proto.

mod status;

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use shoppee_kit::{
    audit_log, caller,
    grpc::Services,
    idempotency::{check_key, respond},
    readiness::Readiness,
    status::Violations,
};
use shoppee_proto::auth::v1 as proto;
use shoppee_proto::auth::v1::{
    auth_service_server::{AuthService, AuthServiceServer},
    status_service_server::StatusServiceServer,
};
use tonic::{Request, Response, Status};

use crate::{
    AuthContext,
    account::{Email, LoginName, Password, Role, Username},
    error::Error,
    refresh, registration, revocation, service_account, service_client, session, sign_in,
    store::{account::Account, audit_log::AuditLog},
    user,
};
use status::ProcessStatus;

/// Bounds a request. The largest has a password and a few texts.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
const PAGE_SIZES: std::ops::RangeInclusive<i32> = 1..=100;
const DEFAULT_PAGE_SIZE: i32 = 20;
const LIMIT_MESSAGE: &str = "must be between 1 and 100";
const MAX_QUERY_CHARS: usize = 254;

type RpcResult<T> = Result<Response<T>, Status>;

pub fn services(context: Arc<AuthContext>, readiness: &Readiness) -> Services {
    let status = ProcessStatus { context: context.clone(), readiness: readiness.clone() };
    Services::default()
        .with(audit_log::service::new::<AuditLog>(context.pool.clone()))
        .with(AuthServiceServer::new(Service(context)).max_decoding_message_size(MAX_REQUEST_BYTES))
        .with(StatusServiceServer::new(status))
}

#[derive(Debug)]
struct Service(Arc<AuthContext>);

#[tonic::async_trait]
impl AuthService for Service {
    async fn register(&self, request: Request<proto::RegisterRequest>) -> RpcResult<proto::User> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let username = violations.collect("username", Username::parse(request.username));
        let email = violations.collect("email", Email::parse(request.email));
        let password = violations.collect("password", Password::new(request.password));
        let (Some(username), Some(email), Some(password)) = (username, email, password) else {
            return Err(Error::Invalid(violations).into());
        };
        let key = parse_key(request.idempotency_key)?;
        let (account, is_repeat) =
            registration::register(&self.0, username, email, password, key.as_deref()).await?;
        Ok(respond(user_message(account), is_repeat))
    }

    async fn login(&self, request: Request<proto::LoginRequest>) -> RpcResult<proto::Tokens> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let name = violations.collect("username", LoginName::parse(&request.username));
        let password = violations.collect("password", Password::for_verification(request.password));
        let (Some(name), Some(password)) = (name, password) else {
            return Err(Error::Invalid(violations).into());
        };
        let user_agent = session::sanitize_user_agent(&request.user_agent);
        let device_token = request.device_token.as_deref();
        let issued = sign_in::sign_in(&self.0, &name, password, &user_agent, device_token).await?;
        Ok(Response::new(tokens(issued)))
    }

    async fn refresh(&self, request: Request<proto::RefreshRequest>) -> RpcResult<proto::Tokens> {
        let presented = SecretString::from(request.into_inner().refresh_token);
        Ok(Response::new(tokens(refresh::refresh(&self.0, presented.expose_secret()).await?)))
    }

    async fn logout(&self, request: Request<proto::LogoutRequest>) -> RpcResult<()> {
        let caller = caller::require(&request)?;
        session::logout(&self.0, &caller).await?;
        Ok(Response::new(()))
    }

    async fn logout_all(&self, request: Request<proto::LogoutAllRequest>) -> RpcResult<()> {
        let caller = caller::require(&request)?;
        session::logout_all(&self.0, &caller).await?;
        Ok(Response::new(()))
    }

    async fn get_user_info(&self, request: Request<proto::GetUserInfoRequest>) -> RpcResult<proto::User> {
        let caller = caller::require(&request)?;
        Ok(Response::new(user_message(user::get(&self.0, caller.user_id()).await?)))
    }

    async fn change_password(&self, request: Request<proto::ChangePasswordRequest>) -> RpcResult<()> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::default();
        let current =
            violations.collect("current_password", Password::for_verification(request.current_password));
        let new = violations.collect("new_password", Password::new(request.new_password));
        let (Some(current), Some(new)) = (current, new) else {
            return Err(Error::Invalid(violations).into());
        };
        user::change_password(&self.0, &caller, current, new).await?;
        Ok(Response::new(()))
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> RpcResult<proto::ListSessionsResponse> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let limit = page_size(request.limit).map_err(Error::Malformed)?;
        let (page, next_cursor) = session::list(&self.0, &caller, limit, request.cursor.as_deref()).await?;
        let items = page.into_iter().map(|session| proto::Session {
            id: session.id.to_string(),
            created_at: Some(session.created_at.into()),
            last_used_at: Some(session.last_used_at.into()),
            user_agent: session.user_agent,
            current: session.id == caller.claims.sid,
        });
        Ok(Response::new(proto::ListSessionsResponse { items: items.collect(), next_cursor }))
    }

    async fn revoke_session(&self, request: Request<proto::RevokeSessionRequest>) -> RpcResult<()> {
        let caller = caller::require(&request)?;
        session::revoke(&self.0, &caller, &request.get_ref().id).await?;
        Ok(Response::new(()))
    }

    async fn create_ws_ticket(
        &self,
        request: Request<proto::CreateWsTicketRequest>,
    ) -> RpcResult<proto::WsTicket> {
        let caller = caller::require(&request)?;
        let (ticket, expires_in) = session::create_ticket(&self.0, &caller)?;
        Ok(Response::new(proto::WsTicket { ticket: ticket.expose_secret().to_owned(), expires_in }))
    }

    async fn redeem_ws_ticket(
        &self,
        request: Request<proto::RedeemWsTicketRequest>,
    ) -> RpcResult<proto::SocketToken> {
        let ticket = caller::require(&request)?;
        let (token, expires_in) = session::redeem_ticket(&self.0, &ticket).await?;
        Ok(Response::new(proto::SocketToken { token: token.expose_secret().to_owned(), expires_in }))
    }

    async fn list_users(
        &self,
        request: Request<proto::ListUsersRequest>,
    ) -> RpcResult<proto::ListUsersResponse> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let query = request.q;
        let is_valid = query.as_deref().is_none_or(|query| {
            (1..=MAX_QUERY_CHARS).contains(&query.chars().count()) && !query.contains('\0')
        });
        violations.require(is_valid, "q", "must have 1 to 254 characters and no NUL");
        let role = violations.collect("role", request.role.map(parse_role).transpose()).flatten();
        let limit = page_size(request.limit);
        violations.require(limit.is_ok(), "limit", LIMIT_MESSAGE);
        violations.finish().map_err(Error::Malformed)?;
        let limit = limit.map_err(Error::Malformed)?;
        let (users, next_cursor) = user::list(&self.0, query, role, limit, request.cursor.as_deref()).await?;
        let items = users.into_iter().map(user_message_for_admin).collect();
        Ok(Response::new(proto::ListUsersResponse { items, next_cursor }))
    }

    async fn get_user(&self, request: Request<proto::GetUserRequest>) -> RpcResult<proto::User> {
        Ok(Response::new(user_message_for_admin(user::get(&self.0, request.get_ref().id).await?)))
    }

    async fn update_user(&self, request: Request<proto::UpdateUserRequest>) -> RpcResult<proto::User> {
        let admin = caller::require(&request)?;
        let request = request.into_inner();
        let role =
            request.role.map(parse_role).transpose().map_err(|message| Error::invalid("role", message))?;
        let change = user::Change { role, disabled: request.disabled };
        let account = user::update(&self.0, &admin, request.id, &change).await?;
        Ok(Response::new(user_message_for_admin(account)))
    }

    async fn get_jwks(&self, request: Request<proto::GetJwksRequest>) -> RpcResult<proto::GetJwksResponse> {
        Ok(Response::new(revocation::verifier_state(&self.0, request.get_ref().cursor.as_deref()).await?))
    }

    async fn issue_service_token(
        &self,
        request: Request<proto::IssueServiceTokenRequest>,
    ) -> RpcResult<proto::ServiceToken> {
        let proto::IssueServiceTokenRequest { client_id, client_secret, scope } = request.into_inner();
        let issued =
            service_client::issue(&self.0, &client_id, &client_secret.into(), scope.as_deref()).await?;
        Ok(Response::new(proto::ServiceToken {
            access_token: issued.token.expose_secret().to_owned(),
            expires_in: issued.expires_in,
            scope: issued.scope,
        }))
    }

    async fn create_service_account(
        &self,
        request: Request<proto::CreateServiceAccountRequest>,
    ) -> RpcResult<proto::ServiceAccount> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::default();
        let name = violations.collect("name", service_account::Name::parse(request.name));
        let scopes = violations.collect("scopes", service_account::Scopes::parse(request.scopes));
        let lifetime = violations.collect("expires_in", service_account::parse_lifetime(request.expires_in));
        let (Some(name), Some(scopes), Some(lifetime)) = (name, scopes, lifetime) else {
            return Err(Error::Invalid(violations).into());
        };
        let key = parse_key(request.idempotency_key)?;
        let request = service_account::CreateServiceAccount { name, scopes, lifetime };
        let (account, is_repeat) = service_account::create(&self.0, &caller, request, key).await?;
        Ok(respond(account, is_repeat))
    }

    async fn list_service_accounts(
        &self,
        request: Request<proto::ListServiceAccountsRequest>,
    ) -> RpcResult<proto::ListServiceAccountsResponse> {
        let request = request.into_inner();
        let limit = page_size(request.limit).map_err(Error::Malformed)?;
        let (items, next_cursor) = service_account::list(&self.0, limit, request.cursor.as_deref()).await?;
        Ok(Response::new(proto::ListServiceAccountsResponse { items, next_cursor }))
    }

    async fn get_service_account(
        &self,
        request: Request<proto::GetServiceAccountRequest>,
    ) -> RpcResult<proto::ServiceAccount> {
        Ok(Response::new(service_account::get(&self.0, &request.get_ref().id).await?))
    }

    async fn rotate_service_account(
        &self,
        request: Request<proto::RotateServiceAccountRequest>,
    ) -> RpcResult<proto::ServiceAccount> {
        let caller = caller::require(&request)?;
        let request = request.into_inner();
        let key = parse_key(request.idempotency_key)?;
        let (account, is_repeat) = service_account::rotate(&self.0, &caller, &request.id, key).await?;
        Ok(respond(account, is_repeat))
    }

    async fn revoke_service_account(
        &self,
        request: Request<proto::RevokeServiceAccountRequest>,
    ) -> RpcResult<()> {
        let admin = caller::require(&request)?;
        service_account::revoke(&self.0, &admin, &request.get_ref().id).await?;
        Ok(Response::new(()))
    }
}

fn parse_key(key: Option<String>) -> Result<Option<String>, Error> {
    if let Some(key) = &key {
        check_key(key).map_err(Error::Malformed)?;
    }
    Ok(key)
}

/// Validates the number of items of a page.
fn page_size(limit: Option<i32>) -> Result<i64, Violations> {
    let limit = limit.unwrap_or(DEFAULT_PAGE_SIZE);
    if PAGE_SIZES.contains(&limit) {
        Ok(limit.into())
    } else {
        Err(Violations::from(("limit", LIMIT_MESSAGE)))
    }
}

/// Parses a role that a user can have.
fn parse_role(number: i32) -> Result<Role, &'static str> {
    match proto::Role::try_from(number) {
        Ok(proto::Role::User) => Ok(Role::User),
        Ok(proto::Role::Admin) => Ok(Role::Admin),
        Ok(proto::Role::Service | proto::Role::Unspecified) | Err(_) => Err("must be user or admin"),
    }
}

fn user_message(account: Account) -> proto::User {
    let role = match account.role {
        Role::User => proto::Role::User,
        Role::Admin => proto::Role::Admin,
    };
    proto::User {
        id: account.id,
        username: account.username,
        email: account.email,
        role: role.into(),
        created_at: Some(account.created_at.into()),
        disabled: None,
    }
}

fn user_message_for_admin(account: Account) -> proto::User {
    let disabled = Some(account.disabled);
    proto::User { disabled, ..user_message(account) }
}

fn tokens(issued: session::IssuedTokens) -> proto::Tokens {
    proto::Tokens {
        access_token: issued.access_token.expose_secret().to_owned(),
        token_type: "Bearer".to_owned(),
        expires_in: issued.access_expires_in.whole_seconds(),
        refresh_token: issued.refresh_token.expose_secret().to_owned(),
        refresh_expires_in: issued.refresh_expires_in.whole_seconds(),
        user: Some(user_message(issued.account)),
        device_token: issued.device_token.map(|token| token.expose_secret().to_owned()),
    }
}
