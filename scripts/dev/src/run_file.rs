//! `run.json`: what runs, where, and who may sign in; for programs that drive the running system.

use std::{collections::BTreeMap, fs};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    secrets::SignIn,
    state::{self, State},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFile {
    pub gateways: Vec<Server>,
    pub services: BTreeMap<String, Service>,
    pub postgres: Server,
    pub redis: Server,
    pub admin: SignIn,
    pub customer: SignIn,
    pub logs: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    pub url: String,
    /// None where it is not ours.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    pub grpc: String,
    pub metrics: String,
    pub pid: Option<u32>,
}

impl RunFile {
    /// Only the owner reads it: it holds passwords.
    pub fn write(&self, state: &State) -> anyhow::Result<()> {
        state::write(&state.run_file(), &serde_json::to_string_pretty(self)?, 0o600)
    }

    /// # Errors
    /// Where nothing runs.
    pub fn read(state: &State) -> anyhow::Result<Self> {
        let text = fs::read_to_string(state.run_file())
            .context("no system of this checkout runs; scripts/up starts one")?;
        serde_json::from_str(&text).context("run.json")
    }

    pub fn remove(state: &State) {
        // There may be none.
        let _ = fs::remove_file(state.run_file());
    }
}
