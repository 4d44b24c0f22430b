//! The REST handlers. The extractors of a handler define its callers and its parameters; its body makes one call, in
//! [`audit`] one to each service. The table of routes is in [`crate::app`].

pub mod admin;
pub mod audit;
pub mod auth;
pub mod cart;
pub mod categories;
pub mod docs;
pub mod fallback;
pub mod idempotency;
pub mod oauth;
pub mod order_streams;
pub mod orders;
pub mod problems;
pub mod products;
pub mod service_accounts;
pub mod status;
pub mod well_known;
pub mod ws;

mod batch;
mod cache_control;
mod pagination;
mod patch;
