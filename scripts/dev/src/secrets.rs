//! Passwords and keys of this checkout's shop, generated at the first start and stored in `.shoppee/secrets`.

use std::{collections::BTreeMap, fs};

use anyhow::Context as _;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::{
    redis,
    state::{self, State},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Secrets {
    pub postgres: String,
    pub auth_role: String,
    pub product_role: String,
    pub order_role: String,
    /// The passwords of the Redis users, by name.
    #[serde(default = "redis_passwords")]
    pub redis: BTreeMap<String, String>,
    pub jwt_secret: String,
    /// The client secret of the order service at the auth service.
    pub order_client: String,
    pub admin: SignIn,
    pub customers: Vec<SignIn>,
    /// The password of the buyers of a flash sale.
    #[serde(default = "generate_password")]
    pub buyer_password: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignIn {
    pub username: String,
    pub password: String,
}

impl Secrets {
    pub fn open(state: &State) -> anyhow::Result<Self> {
        let path = state.secrets();
        if path.exists() {
            return serde_json::from_str(&fs::read_to_string(&path)?)
                .with_context(|| format!("{} is damaged", path.display()));
        }
        let secrets = Self {
            postgres: generate_key(),
            auth_role: generate_key(),
            product_role: generate_key(),
            order_role: generate_key(),
            redis: redis_passwords(),
            jwt_secret: generate_key(),
            order_client: generate_key(),
            admin: SignIn::new("admin"),
            customers: vec![SignIn::new("ann"), SignIn::new("ben")],
            buyer_password: generate_password(),
        };
        secrets.save(state)?;
        Ok(secrets)
    }

    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        state::write_atomically(&state.secrets(), &serde_json::to_string_pretty(self)?, 0o600)
    }
}

impl SignIn {
    fn new(username: &str) -> Self {
        Self { username: username.to_owned(), password: generate_password() }
    }
}

fn redis_passwords() -> BTreeMap<String, String> {
    redis::users().map(|name| (name.to_owned(), generate_key())).collect()
}

/// Generates 256 random bits in hexadecimal digits.
pub fn generate_key() -> String {
    let mut random = rand::rng();
    (0..64).map(|_| char::from(b"0123456789abcdef"[random.random_range(0..16)])).collect()
}

/// Generates a password that a person can type: 75 bits in 17 characters. Production requires 12 characters.
pub fn generate_password() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = rand::rng();
    let mut group =
        || (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect::<String>();
    format!("{}-{}-{}", group(), group(), group())
}
