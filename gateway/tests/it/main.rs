//! Tests of the gateway through HTTP and WebSocket, with the real services behind it.

mod accounts;
mod attributes;
mod audit;
mod authorization;
mod cache_coherence;
mod event_streams;
mod faults;
mod guarantees;
mod http_semantics;
mod limits;
mod malformed_requests;
mod memory;
mod openapi;
mod problems;
mod realtime;
mod realtime_edges;
mod realtime_events;
mod realtime_fixture;
mod request_batching;
mod routes;
mod service_accounts;
mod shop;
mod slow_clients;
mod standards;
mod start;
mod storefront;
