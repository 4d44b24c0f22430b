//! Who may call, as a handler's parameter: [`User`], [`Admin`], [`MaybeUser`]; a handler without one is open
//! to all. Only a signed token says who somebody is: no other header has any say.

use std::{convert::Infallible, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use secrecy::SecretString;
use shoppee_kit::caller::{Caller, Identity, Kind, Role, TokenError, Verifier, bearer};

use crate::{error::Problem, state::State, upstream::Upstream};

/// Whom a request's `Authorization` speaks for.
pub fn identify(verifier: &Verifier, headers: &HeaderMap) -> Identity {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Identity(Err(TokenError::Missing));
    };
    // Two of them, or another scheme, is nobody we know.
    let token = value.to_str().ok().and_then(bearer).filter(|_| values.next().is_none());
    Identity(token.ok_or(TokenError::Invalid).and_then(|token| verifier.verify(token, Kind::Access)))
}

/// A person: a customer or an admin.
#[derive(Clone, Debug)]
pub struct User(pub Caller);

/// An admin.
#[derive(Clone, Debug)]
pub struct Admin(pub Caller);

/// Anybody, known or not; a token that is not good is refused even so, so that its owner learns of it.
#[derive(Clone, Debug)]
pub struct MaybeUser(pub Option<Caller>);

impl MaybeUser {
    /// Whether they are shown what others are not.
    pub fn sees_more(&self) -> bool {
        self.0.as_ref().is_some_and(|caller| caller.claims.role != Role::User)
    }
}

/// For calls that carry their own credentials, or need none.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl FromRequestParts<State> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        let caller = identity(parts)?;
        match caller.claims.role {
            Role::User | Role::Admin => Ok(Self(caller)),
            Role::Service => Err(Problem::forbidden()),
        }
    }
}

impl FromRequestParts<State> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let User(caller) = User::from_request_parts(parts, state).await?;
        if caller.is_admin() { Ok(Self(caller)) } else { Err(Problem::forbidden()) }
    }
}

impl FromRequestParts<State> for MaybeUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        match identity(parts) {
            Ok(caller) => Ok(Self(Some(caller))),
            Err(TokenError::Missing) => Ok(Self(None)),
            Err(error) => Err(error.into()),
        }
    }
}

impl FromRequestParts<State> for Upstream {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, state: &State) -> Result<Self, Infallible> {
        Ok(state.upstream.clone())
    }
}

/// What admission found.
fn identity(parts: &Parts) -> Result<Caller, TokenError> {
    parts.extensions.get::<Identity>().map_or(Err(TokenError::Missing), |identity| identity.0.clone())
}

/// Whose token a call to a service carries.
pub trait Credential {
    fn token(&self) -> Option<Arc<SecretString>>;
}

impl Credential for User {
    fn token(&self) -> Option<Arc<SecretString>> {
        Some(self.0.token.clone())
    }
}

impl Credential for Admin {
    fn token(&self) -> Option<Arc<SecretString>> {
        Some(self.0.token.clone())
    }
}

impl Credential for MaybeUser {
    fn token(&self) -> Option<Arc<SecretString>> {
        self.0.as_ref().map(|caller| caller.token.clone())
    }
}

impl Credential for Caller {
    fn token(&self) -> Option<Arc<SecretString>> {
        Some(self.token.clone())
    }
}

impl Credential for Nobody {
    fn token(&self) -> Option<Arc<SecretString>> {
        None
    }
}
