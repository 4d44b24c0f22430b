//! All SQL of the service but the outbox's: plain functions on a connection; the use case owns the transaction.

pub mod backlog;
pub mod cart;
pub mod event;
pub mod idempotency;
pub mod idempotent_request;
pub mod order;
pub mod payment;
pub mod sandbox;
pub mod stock_task;
pub mod stream;
