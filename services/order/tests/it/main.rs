//! Tests of the order service through its gRPC client, with the real auth and product services beside it, on a real
//! PostgreSQL and Redis.

mod audit;
mod cart;
mod events;
mod faults;
mod idempotency;
mod keys;
mod payment;
mod plans;
mod races;
mod refunds;
mod refusals;
mod shop;
mod start;
mod steps;
mod time;
mod unpaid;
