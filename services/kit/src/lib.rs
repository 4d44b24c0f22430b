//! Plumbing that every process of the shop shares, without a business word in it. One idea a module:
//!
//! - [`process`]: from `main` to the exit code; [`tasks`] are what runs until then, [`readiness`] whether it can serve,
//!   [`probe`] asks it
//! - [`worker`]: periodic work with the time of its last success; [`age`]: the time since a success, as a gauge;
//!   [`log_throttle`]: one line a minute of a lasting failure
//! - [`secret_files`]: a secret setting by file; [`tls`]: certificates, and the causes of a failed TLS connection
//! - [`settings`], [`telemetry`], [`clock`]: the first parts of every process; [`resources`]: the memory it uses
//! - [`idempotency`]: keys that make a write safe to repeat
//! - [`caller`]: who calls, from a verified token; [`keys`] keeps what verifying needs up to date
//! - [`grpc`]: the server's layers; `listener`: its connections; [`client`]: calls to other services, over a [`pool`] of connections; [`status`]: errors
//!   that carry a reason
//! - [`pg`], [`database_clock`], [`redis`], [`cursor`]: storage; [`fold`]: many equal things as few
//! - [`testing`] (feature `testing`): a database and a Redis of its own for each test

pub mod age;
pub mod caller;
pub mod client;
pub mod clock;
pub mod cursor;
pub mod database_clock;
pub mod fold;
pub mod grpc;
pub mod idempotency;
pub mod keys;
mod listener;
pub mod log_throttle;
pub mod ops;
pub mod pg;
pub mod pool;
pub mod probe;
pub mod process;
pub mod readiness;
pub mod redis;
pub mod resources;
mod revocation_list;
pub mod secret_files;
pub mod settings;
pub mod status;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
mod token_header;
mod verifier;
pub mod worker;
