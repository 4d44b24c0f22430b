//! Tests of the order service through its gRPC client, with the real auth and product services, on a real PostgreSQL
//! and Redis.

mod audit;
mod audit_log;
mod cart;
mod concurrency;
mod error_details;
mod event_log;
mod events;
mod fault_injection;
mod idempotency;
mod idempotent_requests;
mod order_batches;
mod order_expiry;
mod orphan_holds;
mod payment;
mod query_plans;
mod refunds;
mod shop;
mod startup;
mod status;
mod transitions;
mod unpaid_caps;
