//! The causes of failed publications. They separate errors of one user's key from errors of Redis as a whole.

use std::fmt;

use fred::error::{Error, ErrorKind};
use shoppee_kit::log_throttle::LogThrottle;

/// A cause of failure. Each is logged and counted separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The key has another type.
    WrongType,
    /// The row names an event that does not exist.
    MissingEvent,
    /// Redis is at its `maxmemory`.
    OutOfMemory,
    /// Redis is a replica, or a demoted primary.
    ReadOnly,
    /// No node of the cluster serves the key's slot, or the slot moves.
    ClusterDown,
    /// Redis is loading its data set, or running a script for too long.
    Busy,
    /// Redis cannot persist writes, or has too few replicas.
    WritesRefused,
    /// The Redis user lacks the permission, or is not authenticated.
    Denied,
    /// Redis has no connection, or did not reply in time.
    Unreachable,
    /// Redis replied with another error.
    Other,
    /// PostgreSQL failed.
    Database,
}

impl Cause {
    const ALL: [Self; 11] = [
        Self::WrongType,
        Self::MissingEvent,
        Self::OutOfMemory,
        Self::ReadOnly,
        Self::ClusterDown,
        Self::Busy,
        Self::WritesRefused,
        Self::Denied,
        Self::Unreachable,
        Self::Other,
        Self::Database,
    ];

    /// Classifies the error of a command.
    pub fn from_redis(error: &Error) -> Self {
        match error.details().split_whitespace().next().unwrap_or_default() {
            "WRONGTYPE" => Self::WrongType,
            "OOM" => Self::OutOfMemory,
            "READONLY" => Self::ReadOnly,
            "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" => Self::ClusterDown,
            "LOADING" | "BUSY" => Self::Busy,
            "MISCONF" | "NOREPLICAS" => Self::WritesRefused,
            "NOPERM" | "NOAUTH" | "WRONGPASS" => Self::Denied,
            // Errors that fred calls unknown or invalid are replies of Redis. For all others no reply arrived.
            _ => match error.kind() {
                ErrorKind::Unknown | ErrorKind::InvalidArgument | ErrorKind::InvalidCommand => Self::Other,
                ErrorKind::Auth => Self::Denied,
                ErrorKind::Cluster | ErrorKind::Routing => Self::ClusterDown,
                ErrorKind::Config
                | ErrorKind::IO
                | ErrorKind::Url
                | ErrorKind::Protocol
                | ErrorKind::Tls
                | ErrorKind::Canceled
                | ErrorKind::Timeout
                | ErrorKind::Parse
                | ErrorKind::Sentinel
                | ErrorKind::NotFound
                | ErrorKind::Backpressure => Self::Unreachable,
            },
        }
    }

    /// Reports whether the key itself is at fault, if Redis accepts writes to another key at the same time.
    pub const fn is_key_specific(self) -> bool {
        matches!(self, Self::WrongType | Self::Other)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::WrongType => "wrong_type",
            Self::MissingEvent => "missing_event",
            Self::OutOfMemory => "out_of_memory",
            Self::ReadOnly => "read_only",
            Self::ClusterDown => "cluster_down",
            Self::Busy => "busy",
            Self::WritesRefused => "writes_refused",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
            Self::Database => "database",
        }
    }
}

/// The failure of a command, or of the publication of a user's events.
#[derive(Clone, Debug)]
pub struct Failure {
    pub cause: Cause,
    pub reason: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { cause: Cause::from_redis(error), reason: error.details().to_owned() }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self { cause: Cause::Database, reason: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.as_str(), self.reason)
    }
}

/// A recorder that counts failures, and logs one of each cause per minute.
#[derive(Debug)]
pub struct Failures([LogThrottle; Cause::ALL.len()]);

impl Failures {
    pub fn new() -> Self {
        for cause in Cause::ALL {
            metrics::counter!("outbox_failures_total", "cause" => cause.as_str()).absolute(0);
        }
        Self(std::array::from_fn(|_| LogThrottle::default()))
    }

    /// Records a failure at `key`, which names a stream in Redis or a table.
    pub fn record(&self, failure: &Failure, user_id: i64, key: &str) {
        let cause = failure.cause.as_str();
        metrics::counter!("outbox_failures_total", "cause" => cause).increment(1);
        let throttle = Cause::ALL.iter().zip(&self.0).find(|(cause, _)| **cause == failure.cause);
        if let Some(suppressed) = throttle.and_then(|(_, throttle)| throttle.admit()) {
            let reason = failure.reason.as_str();
            tracing::warn!(cause, reason, user.id = user_id, key, suppressed, "events not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_their_code_and_kind() {
        let classify = |kind, details: &str| Cause::from_redis(&Error::new(kind, details.to_owned()));
        for (kind, details, cause) in [
            (ErrorKind::InvalidArgument, "WRONGTYPE Operation against a key", Cause::WrongType),
            (
                ErrorKind::Unknown,
                "OOM command not allowed when used memory > 'maxmemory'.",
                Cause::OutOfMemory,
            ),
            (ErrorKind::Unknown, "READONLY You can't write against a read only replica.", Cause::ReadOnly),
            (ErrorKind::Cluster, "CLUSTERDOWN Hash slot not served", Cause::ClusterDown),
            (ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381", Cause::ClusterDown),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", Cause::Busy),
            (ErrorKind::Unknown, "MISCONF Redis is configured to save RDB snapshots", Cause::WritesRefused),
            (ErrorKind::Unknown, "NOPERM No permissions to access a key", Cause::Denied),
            (ErrorKind::Auth, "NOAUTH Authentication required.", Cause::Denied),
            (ErrorKind::Timeout, "Request timed out.", Cause::Unreachable),
            (ErrorKind::IO, "Connection reset", Cause::Unreachable),
            (ErrorKind::Canceled, "Canceled.", Cause::Unreachable),
            (ErrorKind::Unknown, "ERR something else", Cause::Other),
        ] {
            assert_eq!(classify(kind, details), cause, "{details}");
            let is_key_specific = matches!(cause, Cause::WrongType | Cause::Other);
            assert_eq!(cause.is_key_specific(), is_key_specific, "{details}");
        }
    }
}
