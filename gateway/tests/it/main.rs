//! Tests of the gateway through HTTP and WebSocket, with the real services behind it.

mod access;
mod accounts;
mod attributes;
mod coherence;
mod edge;
mod faults;
mod hostile;
mod limits;
mod memory;
mod openapi;
mod problems;
mod promises;
mod realtime;
mod realtime_edges;
mod realtime_events;
mod realtime_stage;
mod routes;
mod shop;
mod slow_clients;
mod standards;
mod start;
mod together;
