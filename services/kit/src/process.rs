//! The context of a process, which [`crate::lifecycle`] creates.

use crate::{clock::Clock, readiness::Readiness, tasks::Tasks, tls::GrpcTls};

/// The handles that the components of a process share.
#[derive(Clone, Debug)]
pub struct Process {
    pub clock: Clock,
    pub tasks: Tasks,
    pub readiness: Readiness,
    /// The TLS configuration of gRPC, for the server and for clients.
    pub tls: GrpcTls,
}
