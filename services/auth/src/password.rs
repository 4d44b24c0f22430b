//! Password hashing by argon2id, with a bounded number of concurrent hashes and a bounded queue.
//!
//! A hash takes 19 MiB and tens of milliseconds of one core, and cannot be interrupted. Its permit moves into the
//! hashing task, so that cancelled requests do not raise the number of running hashes. A request is rejected at once if
//! the queue is full. The memory is pooled: freed after each hash, it would stay in the allocator, 19 MiB for each
//! thread that ever hashed.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, Instant},
};

use argon2::{
    Algorithm, Argon2, Block, Params, PasswordHash, Version,
    password_hash::{self, Output, ParamsString, Salt, SaltString},
};
use rand::{TryRngCore as _, rngs::OsRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::account::Password;

/// The memory cost of OWASP's first choice for argon2id.
const MEMORY_COST_KIB: u32 = 19_456;
const TIME_COST: u32 = 2;
const PARALLELISM: u32 = 1;
/// The salt size that RFC 9106 recommends (128 bits).
const SALT_BYTES: usize = 16;
/// Bounds the wait in the queue. Of the caller's 2 s it leaves time for the hash and the database.
const MAX_QUEUE_WAIT: Duration = Duration::from_millis(1500);
/// Bounds the queue to the hashes that one thread makes within [`MAX_QUEUE_WAIT`], at about 25 ms each.
const MAX_QUEUED_PER_PERMIT: usize = 60;

/// The hash that the password of an unknown user is verified against, at the same cost.
const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c2hvcHBlZS1ub2JvZHkhIQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The queue is full, or the wait timed out.
    #[error("too many passwords are being hashed")]
    Overloaded,
    #[error("argon2: {0}")]
    Argon2(#[from] password_hash::Error),
    #[error("random source of the operating system failed")]
    RandomSource,
    #[error("the hashing task ended without a result")]
    WorkerLost,
}

/// The result of a verification.
#[derive(Debug, PartialEq, Eq)]
pub enum Verification {
    Invalid,
    Valid,
    /// The password is valid, and its stored hash is outdated: weaker than the current parameters, or made of another
    /// form of the text. Contains a new hash.
    ValidNeedsRehash(String),
}

#[derive(Clone, Debug)]
pub struct Hasher {
    permits: Arc<Semaphore>,
    /// Permits for hashes that run or wait.
    queue_permits: Arc<Semaphore>,
    /// Unused memory with the time of its last use. The pool never exceeds the number of permits.
    memory_pool: Arc<Mutex<Vec<(Memory, Instant)>>>,
}

/// The working memory of a hash. Every word is written before it is read.
type Memory = Vec<Block>;

impl Hasher {
    /// Creates a hasher with `permits` concurrent hashes, by default one per core.
    pub fn new(permits: Option<u16>) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let permits = permits.map_or(cores, usize::from);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            queue_permits: Arc::new(Semaphore::new(permits * (1 + MAX_QUEUED_PER_PERMIT))),
            memory_pool: Arc::default(),
        }
    }

    /// Hashes a password to a PHC string.
    pub async fn hash(&self, password: Password) -> Result<String, HashError> {
        self.run(move |memory| hash(memory, &password)).await
    }

    /// Verifies `password` against the hash `stored`, at the same cost if nothing is stored. Sets `is_started` when the
    /// hash starts.
    pub async fn verify(
        &self,
        password: Password,
        stored: Option<String>,
        is_started: Arc<AtomicBool>,
    ) -> Result<Verification, HashError> {
        self.run(move |memory| {
            is_started.store(true, Ordering::Release);
            verify(memory, &password, stored.as_deref())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Memory) -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let queue_permit =
            self.queue_permits.clone().try_acquire_owned().map_err(|_| HashError::Overloaded)?;
        let permit = tokio::time::timeout(MAX_QUEUE_WAIT, self.permits.clone().acquire_owned()).await;
        let permits: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            (queue_permit, permit.map_err(|_| HashError::Overloaded)?.map_err(|_| HashError::WorkerLost)?);
        let memory_pool = self.memory_pool.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let _permits = permits;
            let pool = || memory_pool.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut memory, _) = pool().pop().unwrap_or_else(|| (Memory::new(), Instant::now()));
            let outcome = work(&mut memory);
            pool().push((memory, Instant::now()));
            outcome
        });
        outcome.await.map_err(|_| HashError::WorkerLost)?
    }

    /// Releases memory that was unused for `idle`.
    pub fn release_idle(&self, idle: Duration) {
        let mut memory_pool = self.memory_pool.lock().unwrap_or_else(PoisonError::into_inner);
        memory_pool.retain(|(_, since)| since.elapsed() < idle);
    }
}

fn hash(memory: &mut Memory, password: &Password) -> Result<String, HashError> {
    let mut salt = [0; SALT_BYTES];
    OsRng.try_fill_bytes(&mut salt).map_err(|_| HashError::RandomSource)?;
    let salt = SaltString::encode_b64(&salt)?;
    let params =
        Params::new(MEMORY_COST_KIB, TIME_COST, PARALLELISM, None).map_err(password_hash::Error::from)?;
    let hashed = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params)?,
        salt: Some(salt.as_salt()),
        hash: Some(compute_output(
            memory,
            password.expose(),
            Algorithm::Argon2id,
            Version::V0x13,
            params,
            salt.as_salt(),
        )?),
    };
    Ok(hashed.to_string())
}

fn verify(memory: &mut Memory, password: &Password, stored: Option<&str>) -> Result<Verification, HashError> {
    let stored_hash = PasswordHash::new(stored.unwrap_or(DUMMY_HASH))?;
    let (Some(salt), Some(expected)) = (stored_hash.salt, stored_hash.hash) else {
        return Ok(Verification::Invalid);
    };
    // The stored hash names its own parameters.
    let algorithm = Algorithm::try_from(stored_hash.algorithm)?;
    let version =
        stored_hash.version.map(Version::try_from).transpose().map_err(password_hash::Error::from)?;
    let params = Params::try_from(&stored_hash)?;
    // Outputs are compared in constant time.
    let mut matches = |text: &str| -> Result<bool, HashError> {
        Ok(compute_output(memory, text, algorithm, version.unwrap_or_default(), params.clone(), salt)?
            == expected)
    };
    let is_valid = matches(password.expose())?;
    let is_valid_as_typed = match password.expose_typed() {
        Some(typed) if !is_valid => matches(typed)?,
        Some(_) | None => false,
    };
    Ok(match (is_valid || is_valid_as_typed, stored) {
        (false, _) | (_, None) => Verification::Invalid,
        (true, Some(_)) if is_valid_as_typed || needs_rehash(&stored_hash)? => {
            Verification::ValidNeedsRehash(hash(memory, password)?)
        }
        (true, Some(_)) => Verification::Valid,
    })
}

fn compute_output(
    memory: &mut Memory,
    password: &str,
    algorithm: Algorithm,
    version: Version,
    params: Params,
    salt: Salt<'_>,
) -> Result<Output, HashError> {
    if memory.len() < params.block_count() {
        memory.resize(params.block_count(), Block::new());
    }
    let mut decoded = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut decoded)?;
    let size = params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let argon2 = Argon2::new(algorithm, version, params);
    Ok(Output::init_with(size, |output| {
        Ok(argon2.hash_password_into_with_memory(password.as_bytes(), salt, output, memory.as_mut_slice())?)
    })?)
}

fn needs_rehash(stored_hash: &PasswordHash<'_>) -> Result<bool, HashError> {
    let params = Params::try_from(stored_hash)?;
    Ok(stored_hash.algorithm != Algorithm::Argon2id.ident()
        || stored_hash.version != Some(Version::V0x13.into())
        || params.m_cost() < MEMORY_COST_KIB
        || params.t_cost() < TIME_COST)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use argon2::PasswordHasher as _;

    use super::*;

    fn password(text: &str) -> Password {
        Password::for_verification(text.to_owned()).unwrap()
    }

    #[test]
    fn a_hash_names_its_parameters_and_is_salted() {
        let hashed = hash(&mut Memory::new(), &password("correct horse")).unwrap();
        assert!(hashed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hashed}");
        assert_ne!(hashed, hash(&mut Memory::new(), &password("correct horse")).unwrap());
        assert_eq!(
            verify(&mut Memory::new(), &password("correct horse"), Some(&hashed)).unwrap(),
            Verification::Valid
        );
        assert_eq!(
            verify(&mut Memory::new(), &password("Correct horse"), Some(&hashed)).unwrap(),
            Verification::Invalid
        );
    }

    #[test]
    fn a_weaker_hash_is_valid_and_needs_a_rehash() {
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        let salt = SaltString::encode_b64(&[7; SALT_BYTES]).unwrap();
        let stored = weak.hash_password(b"correct horse", &salt).unwrap().to_string();
        let Verification::ValidNeedsRehash(new_hash) =
            verify(&mut Memory::new(), &password("correct horse"), Some(&stored)).unwrap()
        else {
            panic!("needs no rehash");
        };
        assert_eq!(
            verify(&mut Memory::new(), &password("correct horse"), Some(&new_hash)).unwrap(),
            Verification::Valid
        );
        assert_eq!(
            verify(&mut Memory::new(), &password("wrong horse"), Some(&stored)).unwrap(),
            Verification::Invalid
        );
    }

    #[test]
    fn a_hash_of_the_typed_form_is_valid_and_needs_a_rehash() {
        let params = Params::new(MEMORY_COST_KIB, TIME_COST, PARALLELISM, None).unwrap();
        let today = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let salt = SaltString::encode_b64(&[7; SALT_BYTES]).unwrap();
        let (composed, typed) = (password("caf\u{e9} noir"), password("cafe\u{301} noir"));
        let stored = today.hash_password("cafe\u{301} noir".as_bytes(), &salt).unwrap().to_string();
        let Verification::ValidNeedsRehash(new_hash) =
            verify(&mut Memory::new(), &typed, Some(&stored)).unwrap()
        else {
            panic!("needs no rehash");
        };
        for same in [composed, typed] {
            assert_eq!(verify(&mut Memory::new(), &same, Some(&new_hash)).unwrap(), Verification::Valid);
        }
        assert_eq!(
            verify(&mut Memory::new(), &password("cafe noir"), Some(&stored)).unwrap(),
            Verification::Invalid
        );
    }

    #[test]
    fn an_unknown_user_costs_a_hash_with_current_parameters() {
        let stored_hash = PasswordHash::new(DUMMY_HASH).unwrap();
        assert!(!needs_rehash(&stored_hash).unwrap());
        assert_eq!(stored_hash.hash.unwrap().len(), 32);
        assert_eq!(verify(&mut Memory::new(), &password("anything"), None).unwrap(), Verification::Invalid);
    }

    #[test]
    fn reused_memory_does_not_change_the_result() {
        // A hash by the crate's own interface, with its own memory.
        let salt = SaltString::encode_b64(&[7; SALT_BYTES]).unwrap();
        let stored_hash = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(MEMORY_COST_KIB, TIME_COST, PARALLELISM, None).unwrap(),
        );
        let stored_hash = stored_hash.hash_password(b"correct horse", &salt).unwrap().to_string();
        let mut used = Memory::new();
        for _ in 0..2 {
            assert_eq!(
                verify(&mut used, &password("correct horse"), Some(&stored_hash)).unwrap(),
                Verification::Valid
            );
            assert_eq!(
                verify(&mut used, &password("wrong horse"), Some(&stored_hash)).unwrap(),
                Verification::Invalid
            );
        }
    }

    #[tokio::test]
    async fn the_memory_pool_is_bounded_by_the_permits() {
        let hasher = Hasher::new(Some(2));
        let attempts = (0..12).map(|_| hasher.verify(password("anything"), None, Arc::default()));
        for verification in futures_util::future::join_all(attempts).await {
            assert_eq!(verification.unwrap(), Verification::Invalid);
        }
        let pool =
            || hasher.memory_pool.lock().unwrap().iter().map(|(memory, _)| memory.len()).collect::<Vec<_>>();
        hasher.release_idle(Duration::from_mins(1));
        let sizes = pool();
        assert!((1..=2).contains(&sizes.len()), "{sizes:?}");
        assert!(sizes.iter().all(|blocks| *blocks == MEMORY_COST_KIB as usize), "{sizes:?}");
        hasher.release_idle(Duration::ZERO);
        assert!(pool().is_empty());
    }

    #[tokio::test]
    async fn a_hash_of_a_cancelled_request_keeps_its_permit() {
        let hasher = Hasher::new(Some(1));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let cancelled = hasher.run(move |_| {
            let _ = blocked.recv();
            Ok(())
        });
        let timeout = Duration::from_millis(20);
        assert!(tokio::time::timeout(timeout, cancelled).await.is_err(), "is cancelled");
        let second = tokio::time::timeout(timeout, hasher.run(|_| Ok(()))).await;
        assert!(!matches!(second, Ok(Ok(()))), "ran concurrently");
        drop(release);
        hasher.run(|_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_hash_is_rejected_at_once_if_the_queue_is_full() {
        let hasher = Hasher::new(Some(1));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let mut waiting = tokio::task::JoinSet::new();
        let busy = hasher.clone();
        waiting.spawn(async move {
            busy.run(move |_| {
                let _ = blocked.recv();
                Ok(())
            })
            .await
        });
        for _ in 0..MAX_QUEUED_PER_PERMIT {
            let busy = hasher.clone();
            waiting.spawn(async move { busy.run(|_| Ok(())).await });
        }
        while hasher.queue_permits.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        assert!(matches!(hasher.run(|_| Ok(())).await, Err(HashError::Overloaded)));
        assert!(started.elapsed() < MAX_QUEUE_WAIT / 2, "waited");
        drop(release);
        while let Some(outcome) = waiting.join_next().await {
            outcome.unwrap().unwrap();
        }
    }
}
