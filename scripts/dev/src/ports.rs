//! Allocates TCP ports of the private processes.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Context as _, bail};
use rand::seq::SliceRandom as _;

/// The ports of private processes. They lie below the ephemeral range (from 32768 on Linux), so that no outgoing connection
/// takes the port of a process that restarts.
const PRIVATE_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// The gateway's default port and the alternatives that are tried in order.
const GATEWAY_PORTS: std::ops::Range<u16> = 8080..8180;

/// The gRPC port of the first of [`crate::up::processes::SERVICES`]; the others follow in order. Below the ephemeral range,
/// as above.
const GRPC_BASE: u16 = 30_051;
/// The distance from a replica's gRPC port to that of the next replica.
const REPLICA_STEP: usize = 10;

/// A port allocator that returns each port once.
#[derive(Debug, Default)]
pub struct Ports {
    allocated: BTreeSet<u16>,
}

impl Ports {
    pub fn free(&mut self) -> anyhow::Result<u16> {
        let mut candidates: Vec<u16> = PRIVATE_PORTS.collect();
        candidates.shuffle(&mut rand::rng());
        self.first_free(candidates).context("no free port from 20000 to 29999")
    }

    /// Returns the requested port, or the first free one of [`GATEWAY_PORTS`].
    pub fn gateway(&mut self, requested: Option<u16>) -> anyhow::Result<u16> {
        match requested {
            Some(port) => match self.first_free([port]) {
                Some(port) => Ok(port),
                None => bail!("port {port} is taken by another program"),
            },
            None => self.first_free(GATEWAY_PORTS).context("no free port from 8080 to 8179"),
        }
    }

    /// Returns the gRPC port of a replica, counted from the requested base. Without one, the default port if it is free,
    /// else any free port.
    pub fn grpc(&mut self, requested: Option<u16>, service: usize, replica: usize) -> anyhow::Result<u16> {
        let offset = u16::try_from(service + replica * REPLICA_STEP)?;
        let port =
            requested.unwrap_or(GRPC_BASE).checked_add(offset).context("--grpc-port-base is too high")?;
        match (self.first_free([port]), requested) {
            (Some(port), _) => Ok(port),
            (None, Some(_)) => bail!("port {port} is taken by another program"),
            (None, None) => self.free(),
        }
    }

    fn first_free(&mut self, candidates: impl IntoIterator<Item = u16>) -> Option<u16> {
        candidates.into_iter().find(|port| is_free(*port) && self.allocated.insert(*port))
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_allocated_once() {
        let mut ports = Ports::default();
        let allocated: BTreeSet<u16> = (0..50).map(|_| ports.free().unwrap()).collect();
        assert_eq!(allocated.len(), 50);
    }

    #[test]
    fn a_requested_port_that_is_taken_is_an_error() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        assert!(Ports::default().gateway(Some(port)).is_err());
        assert!(Ports::default().grpc(Some(port), 0, 0).is_err());
    }

    #[test]
    fn grpc_ports_count_from_their_base() {
        let mut ports = Ports::default();
        let base =
            (20_000..29_000).find(|base| [0, 2, 11].iter().all(|offset| is_free(base + offset))).unwrap();
        let mut port = |service, replica| ports.grpc(Some(base), service, replica).unwrap();
        assert_eq!((port(0, 0), port(2, 0), port(1, 1)), (base, base + 2, base + 11));
        assert!(Ports::default().grpc(Some(u16::MAX), 1, 0).is_err());
    }
}
