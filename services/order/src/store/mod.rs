//! The SQL of the service: plain functions on a connection. The use case owns the transaction.

pub mod audit;
pub mod audit_log;
pub mod backlog;
pub mod cart;
pub mod checkout;
pub mod event;
pub mod event_log;
pub mod idempotency;
pub mod idempotent_request;
pub mod order;
pub mod order_rate;
pub mod outbox;
pub mod payment;
pub mod sandbox;
pub mod stock_task;
pub mod stream;
pub mod voided_order;
