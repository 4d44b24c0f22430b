//! The causes for which events are not published: what an error of Redis says about one user's key, and about Redis as
//! a whole.

use std::fmt;

use fred::error::{Error, ErrorKind};
use shoppee_kit::log_throttle::LogThrottle;

/// A cause; each is logged and counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The key holds another type.
    WrongType,
    /// The row names an event that does not exist.
    MissingEvent,
    /// Redis is at its `maxmemory`.
    OutOfMemory,
    /// Redis is a replica, or a master that was demoted.
    ReadOnly,
    /// No node of the cluster serves the key's slot, or the slot moves.
    ClusterDown,
    /// Redis reads its data set, or runs a script for too long.
    Busy,
    /// Redis cannot persist writes, or has too few replicas.
    WritesRefused,
    /// The Redis user may not do this, or is not signed in.
    Denied,
    /// No connection, or no answer in time.
    Unreachable,
    /// Another answer of Redis.
    Other,
    /// PostgreSQL.
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

    /// Classifies an error of a command.
    pub fn of(error: &Error) -> Self {
        match error.details().split_whitespace().next().unwrap_or_default() {
            "WRONGTYPE" => Self::WrongType,
            "OOM" => Self::OutOfMemory,
            "READONLY" => Self::ReadOnly,
            "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" => Self::ClusterDown,
            "LOADING" | "BUSY" => Self::Busy,
            "MISCONF" | "NOREPLICAS" => Self::WritesRefused,
            "NOPERM" | "NOAUTH" | "WRONGPASS" => Self::Denied,
            // An error that fred calls unknown, or an invalid argument, is an answer of Redis; all else never got one.
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

    /// Reports whether it is the fault of the key itself, where Redis takes writes to another key at the same time.
    pub const fn is_of_key(self) -> bool {
        matches!(self, Self::WrongType | Self::Other)
    }

    const fn word(self) -> &'static str {
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

/// The reason why a command, or a user's turn, came to nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    pub cause: Cause,
    pub reason: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { cause: Cause::of(error), reason: error.details().to_owned() }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self { cause: Cause::Database, reason: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.word(), self.reason)
    }
}

/// Counts failures, and logs one of each cause a minute.
#[derive(Debug)]
pub struct Failures([LogThrottle; Cause::ALL.len()]);

impl Failures {
    pub fn new() -> Self {
        for cause in Cause::ALL {
            metrics::counter!("outbox_failures_total", "cause" => cause.word()).absolute(0);
        }
        Self(std::array::from_fn(|_| LogThrottle::default()))
    }

    /// Records a failure at `key`, a stream in Redis or a table.
    pub fn record(&self, failure: &Failure, user_id: i64, key: &str) {
        let word = failure.cause.word();
        metrics::counter!("outbox_failures_total", "cause" => word).increment(1);
        let throttle = Cause::ALL.iter().zip(&self.0).find(|(cause, _)| **cause == failure.cause);
        if let Some(suppressed) = throttle.and_then(|(_, throttle)| throttle.admit()) {
            let reason = failure.reason.as_str();
            tracing::warn!(cause = word, reason, user.id = user_id, key, suppressed, "events not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_key_and_of_the_whole_redis_are_told_apart() {
        let of = |kind, details: &str| Cause::of(&Error::new(kind, details.to_owned()));
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
            assert_eq!(of(kind, details), cause, "{details}");
            let of_key = matches!(cause, Cause::WrongType | Cause::Other);
            assert_eq!(cause.is_of_key(), of_key, "{details}");
        }
    }
}
