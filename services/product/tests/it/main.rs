//! The service through its gRPC clients, on a real PostgreSQL, with tokens that a real auth service signed.

mod attributes;
mod audit;
mod batch;
mod cache;
mod callers;
mod catalogue;
mod categories;
mod conservation;
mod holds;
mod idempotency;
mod listing;
mod lookup;
mod replicas;
mod search;
mod server;
mod shop;
mod start;
