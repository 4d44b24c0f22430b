//! Hashing passwords: argon2id, on as many threads as there are permits and no more.
//!
//! A hash takes 19 MiB and tens of milliseconds of one core, and cannot be interrupted: its permit travels
//! with it, so that callers who hang up leave no more hashes running than there are permits. Who finds too
//! many waiting is sent away at once. The memory is kept for the next hash: given back each time, it would stay with the
//! allocator, 19 MiB for each of the many threads that ever hashed.

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
    /// Right, and its hash was weaker than today's, or made of another form of the text: a new one of the same password.
    RightButWeak(String),
}

#[derive(Clone, Debug)]
pub struct Hasher {
    permits: Arc<Semaphore>,
    /// Hashes that run or wait.
    places: Arc<Semaphore>,
    /// What is not in use, and since when: together at most as many as there are permits.
    memories: Arc<Mutex<Vec<(Memory, Instant)>>>,
}

/// What a hash is computed in; every word is written before it is read.
type Memory = Vec<Block>;

impl Hasher {
    /// As many hashes at once as `permits`; without, as many as there are cores: more would only take longer
    /// each.
    pub fn new(permits: Option<u16>) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let permits = permits.map_or(cores, usize::from);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            places: Arc::new(Semaphore::new(permits * (1 + WAITING_PER_PERMIT))),
            memories: Arc::default(),
        }
    }

    /// The PHC string to store.
    pub async fn hash(&self, password: Password) -> Result<String, HashError> {
        self.run(move |memory| hash(memory, &password)).await
    }

    /// Reports whether `password` is the one that `stored` was made of. Costs the same where nothing is stored. `begun`
    /// becomes true when it is compared.
    pub async fn verify(
        &self,
        password: Password,
        stored: Option<String>,
        begun: Arc<AtomicBool>,
    ) -> Result<Verdict, HashError> {
        self.run(move |memory| {
            begun.store(true, Ordering::Release);
            verify(memory, &password, stored.as_deref())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Memory) -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| HashError::Busy)?;
        let permit = tokio::time::timeout(LONGEST_WAIT, self.permits.clone().acquire_owned()).await;
        let held: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            (place, permit.map_err(|_| HashError::Busy)?.map_err(|_| HashError::Lost)?);
        let memories = self.memories.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let _held = held;
            let free = || memories.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut memory, _) = free().pop().unwrap_or_else(|| (Memory::new(), Instant::now()));
            let outcome = work(&mut memory);
            free().push((memory, Instant::now()));
            outcome
        });
        hashed.await.map_err(|_| HashError::Lost)?
    }

    /// Gives back the memory that was not used for so long.
    pub fn give_back_unused(&self, idle: Duration) {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.retain(|(_, since)| since.elapsed() < idle);
    }
}

fn hash(memory: &mut Memory, password: &Password) -> Result<String, HashError> {
    let mut salt = [0; SALT];
    OsRng.try_fill_bytes(&mut salt).map_err(|_| HashError::Random)?;
    let salt = SaltString::encode_b64(&salt)?;
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(password_hash::Error::from)?;
    let hashed = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params)?,
        salt: Some(salt.as_salt()),
        hash: Some(output(
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

fn verify(memory: &mut Memory, password: &Password, stored: Option<&str>) -> Result<Verdict, HashError> {
    let known = PasswordHash::new(stored.unwrap_or(DUMMY))?;
    let (Some(salt), Some(expected)) = (known.salt, known.hash) else {
        return Ok(Verdict::Wrong);
    };
    // With the parameters that the hash names, whatever they are today.
    let algorithm = Algorithm::try_from(known.algorithm)?;
    let version = known.version.map(Version::try_from).transpose().map_err(password_hash::Error::from)?;
    let params = Params::try_from(&known)?;
    // Outputs are compared in constant time.
    let mut is_of = |text: &str| -> Result<bool, HashError> {
        Ok(output(memory, text, algorithm, version.unwrap_or_default(), params.clone(), salt)? == expected)
    };
    let right = is_of(password.expose())?;
    let right_as_typed = match password.expose_typed() {
        Some(typed) if !right => is_of(typed)?,
        Some(_) | None => false,
    };
    Ok(match (right || right_as_typed, stored) {
        (false, _) | (_, None) => Verdict::Wrong,
        (true, Some(_)) if right_as_typed || is_weak(&known)? => {
            Verdict::RightButWeak(hash(memory, password)?)
        }
        (true, Some(_)) => Verdict::Right,
    })
}

fn output(
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

    use argon2::PasswordHasher as _;

    use super::*;

    fn password(text: &str) -> Password {
        Password::presented(text.to_owned()).unwrap()
    }

    #[test]
    fn a_hash_says_how_it_was_made_and_is_salted() {
        let hashed = hash(&mut Memory::new(), &password("correct horse")).unwrap();
        assert!(hashed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hashed}");
        assert_ne!(hashed, hash(&mut Memory::new(), &password("correct horse")).unwrap());
        assert_eq!(
            verify(&mut Memory::new(), &password("correct horse"), Some(&hashed)).unwrap(),
            Verdict::Right
        );
        assert_eq!(
            verify(&mut Memory::new(), &password("Correct horse"), Some(&hashed)).unwrap(),
            Verdict::Wrong
        );
    }

    #[test]
    fn a_weaker_hash_is_right_and_made_anew() {
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        let salt = SaltString::encode_b64(&[7; SALT]).unwrap();
        let stored = weak.hash_password(b"correct horse", &salt).unwrap().to_string();
        let Verdict::RightButWeak(anew) =
            verify(&mut Memory::new(), &password("correct horse"), Some(&stored)).unwrap()
        else {
            panic!("not found weak");
        };
        assert_eq!(
            verify(&mut Memory::new(), &password("correct horse"), Some(&anew)).unwrap(),
            Verdict::Right
        );
        assert_eq!(
            verify(&mut Memory::new(), &password("wrong horse"), Some(&stored)).unwrap(),
            Verdict::Wrong
        );
    }

    #[test]
    fn a_hash_of_a_text_as_it_was_typed_is_right_and_made_anew() {
        let params = Params::new(MEMORY, PASSES, LANES, None).unwrap();
        let today = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let salt = SaltString::encode_b64(&[7; SALT]).unwrap();
        let (composed, typed) = (password("caf\u{e9} noir"), password("cafe\u{301} noir"));
        let stored = today.hash_password("cafe\u{301} noir".as_bytes(), &salt).unwrap().to_string();
        let Verdict::RightButWeak(anew) = verify(&mut Memory::new(), &typed, Some(&stored)).unwrap() else {
            panic!("not made anew");
        };
        for same in [composed, typed] {
            assert_eq!(verify(&mut Memory::new(), &same, Some(&anew)).unwrap(), Verdict::Right);
        }
        assert_eq!(
            verify(&mut Memory::new(), &password("cafe noir"), Some(&stored)).unwrap(),
            Verdict::Wrong
        );
    }

    #[test]
    fn an_unknown_user_costs_the_same_hash() {
        let known = PasswordHash::new(DUMMY).unwrap();
        assert!(!is_weak(&known).unwrap());
        assert_eq!(known.hash.unwrap().len(), 32);
        assert_eq!(verify(&mut Memory::new(), &password("anything"), None).unwrap(), Verdict::Wrong);
    }

    #[test]
    fn memory_that_was_used_before_changes_nothing() {
        // A hash made by the crate's own way, with memory of its own.
        let salt = SaltString::encode_b64(&[7; SALT]).unwrap();
        let known = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(MEMORY, PASSES, LANES, None).unwrap(),
        );
        let known = known.hash_password(b"correct horse", &salt).unwrap().to_string();
        let mut used = Memory::new();
        for _ in 0..2 {
            assert_eq!(verify(&mut used, &password("correct horse"), Some(&known)).unwrap(), Verdict::Right);
            assert_eq!(verify(&mut used, &password("wrong horse"), Some(&known)).unwrap(), Verdict::Wrong);
        }
    }

    #[tokio::test]
    async fn there_is_as_much_memory_as_there_are_permits() {
        let hasher = Hasher::new(Some(2));
        let attempts = (0..12).map(|_| hasher.verify(password("anything"), None, Arc::default()));
        for verdict in futures_util::future::join_all(attempts).await {
            assert_eq!(verdict.unwrap(), Verdict::Wrong);
        }
        let kept =
            || hasher.memories.lock().unwrap().iter().map(|(memory, _)| memory.len()).collect::<Vec<_>>();
        hasher.give_back_unused(Duration::from_mins(1));
        let there = kept();
        assert!((1..=2).contains(&there.len()), "{there:?}");
        assert!(there.iter().all(|blocks| *blocks == MEMORY as usize), "{there:?}");
        hasher.give_back_unused(Duration::ZERO);
        assert!(kept().is_empty());
    }

    #[tokio::test]
    async fn a_hash_whose_caller_left_keeps_its_permit() {
        let hasher = Hasher::new(Some(1));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let left = hasher.run(move |_| {
            let _ = held.recv();
            Ok(())
        });
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, left).await.is_err(), "hangs up");
        let second = tokio::time::timeout(soon, hasher.run(|_| Ok(()))).await;
        assert!(!matches!(second, Ok(Ok(()))), "ran beside it");
        drop(release);
        hasher.run(|_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn who_finds_too_many_waiting_is_sent_away_at_once() {
        let hasher = Hasher::new(Some(1));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut waiting = tokio::task::JoinSet::new();
        let busy = hasher.clone();
        waiting.spawn(async move {
            busy.run(move |_| {
                let _ = held.recv();
                Ok(())
            })
            .await
        });
        for _ in 0..WAITING_PER_PERMIT {
            let busy = hasher.clone();
            waiting.spawn(async move { busy.run(|_| Ok(())).await });
        }
        while hasher.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        assert!(matches!(hasher.run(|_| Ok(())).await, Err(HashError::Busy)));
        assert!(started.elapsed() < LONGEST_WAIT / 2, "waited");
        drop(release);
        while let Some(outcome) = waiting.join_next().await {
            outcome.unwrap().unwrap();
        }
    }
}
