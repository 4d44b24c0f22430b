//! Tests of the service through its gRPC client, on a real PostgreSQL. They speak as people do: [`shop`] is
//! who registers, signs in and looks on.

mod admin;
mod cleaning;
mod first_admin;
mod forged_tokens;
mod keys;
mod outbox;
mod passwords;
mod races;
mod refresh;
mod registration;
mod sessions;
mod shop;
mod sign_in;
mod start;
mod tickets;
mod tries;
mod who_may_call;
