//! Tests of the whole repository: its structure, its scripts, and the system that they start.

mod commits;
mod demo_on_deployed_shop;
mod flash_sale;
mod import_circles;
mod lifecycle;
mod model;
mod proto_comments;
mod rules;
mod server_limits;
mod start_matrix;
mod tls;
mod traces;
mod vocabulary;
mod warehouse;
