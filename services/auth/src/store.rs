//! The SQL of this service, except for the outbox. Each file covers one table. Functions take a connection, and the use
//! case owns the transaction.
//!
//! The order of locks: accounts before sessions, each sorted by id.

pub mod account;
pub mod audit_log;
pub mod login_attempt;
pub mod registration_key;
pub mod service_account;
pub mod session;
