//! Tickets (contract §4): what a browser opens a socket with, once, within 30 seconds. Which were used is
//! known to all gateways through Redis, and to each by itself, so that a ticket does not work twice here
//! while Redis is away.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use fred::{
    clients::{Client, WithOptions},
    interfaces::{ClientLike as _, KeysInterface as _},
    types::{Expiration, SetOptions},
};
use shoppee_kit::{
    caller::{Caller, Kind, TokenError, Verifier},
    clock::Clock,
    redis,
};
use uuid::Uuid;

use crate::error::Problem;

/// Seconds from its making to its use.
const GOOD_FOR: i64 = 30;
/// Seconds a used one is remembered: for longer than it is good, whatever the clocks of the machines say.
const REMEMBERED: i64 = 60;
/// Used ones that are remembered at a time: 1 600 sockets opened a second. Then no more are let in.
const MOST: usize = 100_000;

pub struct Tickets {
    redis: WithOptions<Client>,
    /// Used tickets, and when (Unix seconds).
    used: Mutex<HashMap<Uuid, i64>>,
    clock: Clock,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub fn new(redis: &Client, clock: Clock) -> Self {
        Self { redis: redis.with_options(&redis::on_request_path()), used: Mutex::default(), clock }
    }

    /// Whose ticket it is, if it is one and still fresh; it can be used until [`Self::claim`].
    pub fn verify(&self, verifier: &Verifier, ticket: &str) -> Result<Caller, TokenError> {
        let caller = verifier.verify(ticket, Kind::WsTicket)?;
        if self.clock.unix() - caller.claims.iat > GOOD_FOR {
            return Err(TokenError::Expired);
        }
        Ok(caller)
    }

    /// Uses a verified ticket.
    pub async fn claim(&self, ticket: &Caller) -> Result<(), Problem> {
        let jti = ticket.claims.jti;
        self.claim_here(jti)?;
        let (expires, only_new) = (Expiration::EX(REMEMBERED), SetOptions::NX);
        let key = format!("ws-ticket:{jti}");
        match self.redis.set::<Option<String>, _, _>(key, 1, Some(expires), Some(only_new), false).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(TokenError::Invalid.into()),
            Err(error) => {
                tracing::debug!(%error, "a ticket is known here alone");
                Ok(())
            }
        }
    }

    fn claim_here(&self, jti: Uuid) -> Result<(), Problem> {
        let now = self.clock.unix();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MOST {
            used.retain(|_, at| now - *at <= REMEMBERED);
        }
        if used.contains_key(&jti) {
            return Err(TokenError::Invalid.into());
        }
        if used.len() >= MOST {
            return Err(Problem::unavailable());
        }
        used.insert(jti, now);
        Ok(())
    }
}
