//! `run.json`: the addresses, process ids and demo credentials of a running system, for programs that drive it.

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
    /// The address of the flash sale's page, which is good once; `None` if there is no such page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demo: Option<String>,
    pub logs: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    pub url: String,
    /// `None` for a server that this system did not start.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    pub grpc: String,
    pub metrics: String,
    pub pid: Option<u32>,
}

impl RunFile {
    /// Writes the file, readable by its owner alone: it holds passwords.
    pub fn write(&self, state: &State) -> anyhow::Result<()> {
        state::write_atomically(&state.run_file(), &serde_json::to_string_pretty(self)?, 0o600)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If no system runs.
    pub fn read(state: &State) -> anyhow::Result<Self> {
        let text = fs::read_to_string(state.run_file())
            .context("no system of this checkout runs; scripts/up starts one")?;
        serde_json::from_str(&text).context("run.json")
    }

    pub fn remove(state: &State) {
        // The file may be missing.
        let _ = fs::remove_file(state.run_file());
    }
}
