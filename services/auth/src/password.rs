//! Hashing passwords: argon2id, on as many threads as there are permits and no more.
//!
//! A hash takes 19 MiB and tens of milliseconds of one core, and cannot be interrupted: its permit travels
//! with it, so that callers who hang up leave no more hashes running than there are permits. Who finds too
//! many waiting is sent away at once.

use std::{sync::Arc, thread::available_parallelism, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{self, SaltString},
};
use rand::{TryRngCore as _, rngs::OsRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::account::Password;

/// OWASP's first choice for argon2id. KiB.
const MEMORY: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// 128 bits, as RFC 9106 recommends.
const SALT: usize = 16;
/// Of the caller's 2 s: after the wait there must be time for the hash and the database.
const LONGEST_WAIT: Duration = Duration::from_millis(1500);
/// What one thread hashes within [`LONGEST_WAIT`], at about 25 ms each.
const WAITING_PER_PERMIT: usize = 60;

/// Nobody's password: what is hashed against for an unknown user, at the same cost.
const DUMMY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c2hvcHBlZS1ub2JvZHkhIQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Too many are waiting.
    #[error("too many passwords are being hashed")]
    Busy,
    #[error("argon2: {0}")]
    Argon2(#[from] password_hash::Error),
    #[error("no randomness from the operating system")]
    Random,
    #[error("a hash ended early")]
    Lost,
}

/// What a try came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Wrong,
    Right,
    /// Right, and its hash was weaker than today's: a new one of the same password.
    RightButWeak(String),
}

#[derive(Clone, Debug)]
pub struct Hasher {
    permits: Arc<Semaphore>,
    /// Hashes that run or wait.
    places: Arc<Semaphore>,
}

impl Hasher {
    /// As many hashes at once as `permits`; without, as many as there are cores: more would only take longer
    /// each.
    pub fn new(permits: Option<u16>) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let permits = permits.map_or(cores, usize::from);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            places: Arc::new(Semaphore::new(permits * (1 + WAITING_PER_PERMIT))),
        }
    }

    /// The PHC string to store.
    pub async fn hash(&self, password: Password) -> Result<String, HashError> {
        self.run(move || hash(&password)).await
    }

    /// Whether `password` is the one that `stored` was made of. Costs the same where nothing is stored.
    pub async fn verify(&self, password: Password, stored: Option<String>) -> Result<Verdict, HashError> {
        self.run(move || verify(&password, stored.as_deref())).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| HashError::Busy)?;
        let permit = tokio::time::timeout(LONGEST_WAIT, self.permits.clone().acquire_owned()).await;
        let held: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            (place, permit.map_err(|_| HashError::Busy)?.map_err(|_| HashError::Lost)?);
        let hashed = tokio::task::spawn_blocking(move || {
            let _held = held;
            work()
        });
        hashed.await.map_err(|_| HashError::Lost)?
    }
}

fn argon2() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(password_hash::Error::from)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &Password) -> Result<String, HashError> {
    let mut salt = [0; SALT];
    OsRng.try_fill_bytes(&mut salt).map_err(|_| HashError::Random)?;
    let salt = SaltString::encode_b64(&salt)?;
    Ok(argon2()?.hash_password(password.expose().as_bytes(), &salt)?.to_string())
}

fn verify(password: &Password, stored: Option<&str>) -> Result<Verdict, HashError> {
    let known = PasswordHash::new(stored.unwrap_or(DUMMY))?;
    // With the parameters that the hash names, whatever they are today.
    match argon2()?.verify_password(password.expose().as_bytes(), &known) {
        Ok(()) if stored.is_none() => Ok(Verdict::Wrong),
        Ok(()) if is_weak(&known)? => Ok(Verdict::RightButWeak(hash(password)?)),
        Ok(()) => Ok(Verdict::Right),
        Err(password_hash::Error::Password) => Ok(Verdict::Wrong),
        Err(error) => Err(error.into()),
    }
}

fn is_weak(known: &PasswordHash<'_>) -> Result<bool, HashError> {
    let params = Params::try_from(known)?;
    Ok(known.algorithm != Algorithm::Argon2id.ident()
        || known.version != Some(Version::V0x13.into())
        || params.m_cost() < MEMORY
        || params.t_cost() < PASSES)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn password(text: &str) -> Password {
        Password::presented(text.to_owned()).unwrap()
    }

    #[test]
    fn a_hash_says_how_it_was_made_and_is_salted() {
        let hashed = hash(&password("correct horse")).unwrap();
        assert!(hashed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hashed}");
        assert_ne!(hashed, hash(&password("correct horse")).unwrap());
        assert_eq!(verify(&password("correct horse"), Some(&hashed)).unwrap(), Verdict::Right);
        assert_eq!(verify(&password("Correct horse"), Some(&hashed)).unwrap(), Verdict::Wrong);
    }

    #[test]
    fn a_weaker_hash_is_right_and_made_anew() {
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        let salt = SaltString::encode_b64(&[7; SALT]).unwrap();
        let stored = weak.hash_password(b"correct horse", &salt).unwrap().to_string();
        let Verdict::RightButWeak(anew) = verify(&password("correct horse"), Some(&stored)).unwrap() else {
            panic!("not found weak");
        };
        assert_eq!(verify(&password("correct horse"), Some(&anew)).unwrap(), Verdict::Right);
        assert_eq!(verify(&password("wrong horse"), Some(&stored)).unwrap(), Verdict::Wrong);
    }

    #[test]
    fn an_unknown_user_costs_the_same_hash() {
        let known = PasswordHash::new(DUMMY).unwrap();
        assert!(!is_weak(&known).unwrap());
        assert_eq!(known.hash.unwrap().len(), 32);
        assert_eq!(verify(&password("anything"), None).unwrap(), Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_hash_whose_caller_left_keeps_its_permit() {
        let hasher = Hasher::new(Some(1));
        let started = Instant::now();
        let left = hasher.run(|| {
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), left).await.is_err(), "hangs up");
        hasher.run(|| Ok(())).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(200), "ran beside it");
    }

    #[tokio::test]
    async fn who_finds_too_many_waiting_is_sent_away_at_once() {
        let hasher = Hasher::new(Some(1));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut waiting = tokio::task::JoinSet::new();
        let busy = hasher.clone();
        waiting.spawn(async move {
            busy.run(move || {
                let _ = held.recv();
                Ok(())
            })
            .await
        });
        for _ in 0..WAITING_PER_PERMIT {
            let busy = hasher.clone();
            waiting.spawn(async move { busy.run(|| Ok(())).await });
        }
        while hasher.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        assert!(matches!(hasher.run(|| Ok(())).await, Err(HashError::Busy)));
        assert!(started.elapsed() < LONGEST_WAIT / 2, "waited");
        drop(release);
        while let Some(outcome) = waiting.join_next().await {
            outcome.unwrap().unwrap();
        }
    }
}
