//! Tests of the auth service through its gRPC client, on a real PostgreSQL. [`shop`] has the fixture.

mod admin;
mod audit_log;
mod authorization;
mod cleanup;
mod concurrency;
mod forged_tokens;
mod initial_admin;
mod key_rotation;
mod login_attempts;
mod outbox;
mod passwords;
mod refresh;
mod registration;
mod service_accounts;
mod sessions;
mod shop;
mod sign_in;
mod startup;
mod tickets;
