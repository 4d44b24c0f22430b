//! The SQL of this service, but for the outbox's own. One file a table; each function takes the connection,
//! so that its caller says where a transaction begins and ends.
//!
//! Locks are taken in one order: accounts before sessions, each by id.

pub mod account;
pub mod password_try;
pub mod registration_key;
pub mod session;
