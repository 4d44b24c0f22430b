//! All SQL of the service: plain functions on a connection; the use case owns the transaction.

pub mod audit;
pub mod cart;
pub mod event;
pub mod idempotency;
pub mod order;
pub mod outbox;
pub mod payment;
pub mod stock_task;
pub mod stream;
