//! All SQL of the service: plain functions over a connection. The caller owns the transaction.
//!
//! The global lock order is: stock rows by product id ([`stock::lock`]), then holds ([`hold`]), then product
//! rows by id ([`product`]).

pub mod audit;
pub mod audit_log;
pub mod batch;
pub mod category;
pub mod change;
pub mod engine;
pub mod hold;
pub mod hold_audit;
pub mod idempotency;
pub mod listing;
pub mod product;
pub mod replica;
pub mod search;
pub mod stock;
pub mod stock_ledger;
