//! All SQL of the service. Plain functions over a connection; who calls owns the transaction.
//!
//! Locks are taken in one order everywhere: stock rows by product id ([`stock::lock`]), then holds
//! ([`hold`]), then product rows by id ([`product`]).

pub mod audit;
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
