//! The service through its gRPC clients, on a real PostgreSQL, with tokens that a real auth service signed.

mod batch;
mod callers;
mod catalogue;
mod categories;
mod conservation;
mod holds;
mod listing;
mod search;
mod shop;
