//! Tests of the service through its gRPC client, on a real PostgreSQL.
