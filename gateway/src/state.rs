//! The state that all handlers share.

use std::{convert::Infallible, ops::Deref, sync::Arc};

use axum::extract::FromRequestParts;
use http::request::Parts;
use shoppee_kit::{caller::Verifier, process::Process};
use tokio::sync::Semaphore;

use crate::{
    cors::AllowedOrigins, docs::Docs, extract::BodyLimiter, product_cache::ProductCache,
    rate_limit::RateLimiter, realtime::Realtime, shop_status::StatusCache, upstream::Upstream,
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState(Arc<Inner>);

#[derive(Debug)]
pub struct Inner {
    pub process: Process,
    /// Clients of the three services.
    pub upstream: Upstream,
    pub product_cache: ProductCache,
    pub verifier: Arc<Verifier>,
    pub rate_limiter: RateLimiter,
    pub allowed_origins: AllowedOrigins,
    pub realtime: Realtime,
    pub docs: Docs,
    pub status: StatusCache,
    /// Enables the storefront.
    pub storefront: bool,
    /// The control port of `scripts/up`, if its page is served.
    pub demo_control_url: Option<String>,
    /// Restricts cookies to TLS.
    pub secure_cookies: bool,
    /// A permit per request in progress.
    pub request_permits: Arc<Semaphore>,
    pub bodies: Arc<BodyLimiter>,
}

impl From<Inner> for AppState {
    fn from(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

impl Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FromRequestParts<AppState> for Upstream {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        Ok(state.upstream.clone())
    }
}

impl FromRequestParts<AppState> for ProductCache {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        Ok(state.product_cache.clone())
    }
}
