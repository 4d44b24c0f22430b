//! Integration tests of the service through its gRPC clients, on a real PostgreSQL, with tokens of a real
//! auth service.

mod adjustments;
mod attributes;
mod audit;
mod audit_log;
mod authorization;
mod batch;
mod cache;
mod catalogue;
mod categories;
mod hold_batches;
mod holds;
mod idempotency;
mod listing;
mod product_cache;
mod replicas;
mod search;
mod server;
mod startup;
mod status;
mod stock_changes;
mod stock_invariant;
mod test_shop;
