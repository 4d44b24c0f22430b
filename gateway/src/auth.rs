//! Authentication and authorization, as extractors: [`Authorized`], [`User`], [`Admin`], [`MaybeUser`]. A handler without
//! one is open to all. A signed token is the only proof of identity; no other header counts.

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use secrecy::SecretString;
use shoppee_kit::{
    access,
    caller::{Caller, Identity, Role, TokenError, TokenType, Verifier, bearer},
};

use crate::{
    error::Problem,
    upstream::{Call, Credential},
};

/// Verifies the access token in a request's `Authorization` header.
pub fn authenticate(verifier: &Verifier, headers: &HeaderMap) -> Identity {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Identity(Err(TokenError::Missing));
    };
    // A second header or another scheme is invalid.
    let token = value.to_str().ok().and_then(bearer).filter(|_| values.next().is_none());
    Identity(token.ok_or(TokenError::Invalid).and_then(|token| verifier.verify(token, TokenType::Access)))
}

/// A caller that the method of the request `C` admits. Its rule in the proto names users, admins, or services with a
/// scope.
#[derive(Debug)]
pub struct Authorized<C>(pub Caller, PhantomData<fn(C)>);

/// A signed-in person: a customer or an admin.
#[derive(Clone, Debug)]
pub struct User(pub Caller);

/// A signed-in admin.
#[derive(Clone, Debug)]
pub struct Admin(pub Caller);

/// Any caller, signed in or not. A token that is sent and invalid is refused, so that its owner notices.
#[derive(Clone, Debug)]
pub struct MaybeUser(pub Option<Caller>);

impl MaybeUser {
    /// Reports whether the caller sees more than customers do, such as archived products.
    pub fn is_privileged(&self) -> bool {
        self.0.as_ref().is_some_and(Caller::is_staff)
    }
}

/// No access token: for calls that carry credentials in their message, or need none.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous;

impl<C: Call, S: Send + Sync> FromRequestParts<S> for Authorized<C> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = caller_from_extensions(parts)?;
        if access::admits(C::access_rule(), &caller) {
            Ok(Self(caller, PhantomData))
        } else {
            Err(Problem::forbidden())
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = caller_from_extensions(parts)?;
        match caller.claims.role {
            Role::User | Role::Admin => Ok(Self(caller)),
            Role::Service => Err(Problem::forbidden()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let User(caller) = User::from_request_parts(parts, state).await?;
        if caller.is_admin() { Ok(Self(caller)) } else { Err(Problem::forbidden()) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MaybeUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match caller_from_extensions(parts) {
            Ok(caller) => Ok(Self(Some(caller))),
            Err(TokenError::Missing) => Ok(Self(None)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the caller that the request middleware authenticated.
fn caller_from_extensions(parts: &Parts) -> Result<Caller, TokenError> {
    parts.extensions.get::<Identity>().map_or(Err(TokenError::Missing), |identity| identity.0.clone())
}

impl<C> Credential for Authorized<C> {
    fn token(&self) -> Option<Arc<SecretString>> {
        Some(self.0.token.clone())
    }
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

impl Credential for Anonymous {
    fn token(&self) -> Option<Arc<SecretString>> {
        None
    }
}
