//! What every request may use.

use std::{ops::Deref, sync::Arc};

use shoppee_kit::{caller::Verifier, process::Process};
use tokio::sync::Semaphore;

use crate::{
    catalogue::Catalogue, extract::Bodies, limit::Limits, origin::Origins, realtime::Realtime,
    routes::docs::Docs, upstream::Upstream,
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct State(Arc<Parts>);

#[derive(Debug)]
pub struct Parts {
    pub process: Process,
    /// The three services.
    pub upstream: Upstream,
    pub catalogue: Catalogue,
    pub verifier: Arc<Verifier>,
    pub limits: Limits,
    pub origins: Origins,
    pub realtime: Realtime,
    pub docs: Docs,
    /// Restricts cookies to TLS.
    pub secure_cookies: bool,
    /// A permit for each request that is worked on.
    pub room: Arc<Semaphore>,
    pub bodies: Arc<Bodies>,
}

impl From<Parts> for State {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for State {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
