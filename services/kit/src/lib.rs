//! Infrastructure that every process of the shop shares; it contains no business rule. One pattern per module:
//!
//! - [`lifecycle`]: the start and the shutdown of a process; [`process`]: the context that its components share; [`tasks`]:
//!   supervised tasks and graceful shutdown; [`readiness`]: readiness probes, [`probe`] the client of one; [`ops`]: the
//!   HTTP endpoints for metrics and health
//! - [`worker`]: periodic workers; [`age`]: a gauge of the time since a success
//! - [`settings`], [`secret_files`]: settings and secrets; [`telemetry`]: logs, traces and metrics; [`resources`]: process
//!   metrics
//! - [`clock`], [`database_clock`]: clocks that tests can set; the latter is synchronised with the database
//! - [`grpc`]: the gRPC server with admission control; `listener`: its TCP listener; [`client`]: calls to other services,
//!   [`service_token`]: in the name of a service; [`load_balancer`]: client-side load balancing with health checks and a
//!   retry budget; [`status`]: the error model
//! - [`request_id`]: the id of a request; [`audit_log`]: the log of grants and of acts of admins and services
//! - [`access`]: access control by the rules in the `.proto` files; [`caller`]: the caller of a call and JWT verification,
//!   with `token_header` and `revocation_list`; [`verifier_sync`] keeps it up to date; [`tls`]: TLS configuration
//! - [`pg`], [`redis`]: connection pools and clients, with error classification; [`cursor`]: keyset pagination;
//!   [`idempotency`]: idempotency keys
//! - [`throttle`]: a keyed throttle; [`log_throttle`]: a throttle of log lines
//! - `testing` (feature `testing`): test fixtures

pub mod access;
pub mod age;
pub mod audit_log;
pub mod batch_queue;
pub mod caller;
pub mod client;
pub mod clock;
pub mod cursor;
pub mod database_clock;
pub mod grpc;
mod http2_preface;
pub mod idempotency;
pub mod lifecycle;
mod listener;
pub mod load_balancer;
pub mod log_throttle;
pub mod ops;
pub mod pg;
pub mod probe;
pub mod process;
pub mod readiness;
pub mod redis;
pub mod request_id;
pub mod resources;
mod revocation_list;
pub mod secret_files;
pub mod service_token;
pub mod settings;
pub mod status;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;
pub mod tls;
mod token_header;
pub mod verifier_sync;
pub mod worker;
