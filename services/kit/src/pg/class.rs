//! Classes of PostgreSQL failures: each `sqlx::Error` and SQLSTATE by its name in logs, metrics and `/readyz`, with its
//! consequence. A new kind of error is added to [`Class`] and to the `match` that finds it.

use std::io;

use sqlx::Error;

/// The cause of a failure, as far as an operator acts on it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    ConnectionRefused,
    ConnectionLost,
    NameNotResolved,
    TimedOut,
    Tls,
    Authentication,
    MissingDatabase,
    TooManyConnections,
    /// A server that is shutting down, starting up, or recovering from a crash.
    NotAccepting,
    ReadOnly,
    LockNotAvailable,
    Conflict,
    StatementTimeout,
    IdleInTransaction,
    OutOfResources,
    /// A coordinator reports that another node failed.
    NodeLost,
    PoolExhausted,
    Closing,
    Protocol,
    /// The schema or the permissions are not those that the query was written for.
    Schema,
    /// A rule of the schema that no use case has translated.
    Constraint,
    /// A value that has not the type of its column, or none.
    Data,
    Settings,
    Internal,
    Unknown,
}

/// The answer to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// A failure that passes: 503, and the same request may succeed later.
    Temporary,
    /// A fault of ours, or of the schema: 500.
    Fault,
}

impl Class {
    pub const ALL: [Self; 25] = [
        Self::ConnectionRefused,
        Self::ConnectionLost,
        Self::NameNotResolved,
        Self::TimedOut,
        Self::Tls,
        Self::Authentication,
        Self::MissingDatabase,
        Self::TooManyConnections,
        Self::NotAccepting,
        Self::ReadOnly,
        Self::LockNotAvailable,
        Self::Conflict,
        Self::StatementTimeout,
        Self::IdleInTransaction,
        Self::OutOfResources,
        Self::NodeLost,
        Self::PoolExhausted,
        Self::Closing,
        Self::Protocol,
        Self::Schema,
        Self::Constraint,
        Self::Data,
        Self::Settings,
        Self::Internal,
        Self::Unknown,
    ];

    /// Finds the class of `error`.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Database(error) => {
                error.code().map_or(Self::Unknown, |code| Self::of_state(&code, error.message()))
            }
            Error::Io(error) => Self::of_io(error),
            Error::Tls(_) => Self::Tls,
            Error::PoolTimedOut => Self::PoolExhausted,
            Error::PoolClosed => Self::Closing,
            Error::WorkerCrashed => Self::ConnectionLost,
            Error::Protocol(_) | Error::BeginFailed => Self::Protocol,
            Error::Configuration(_) | Error::ConfigFile(_) => Self::Settings,
            Error::TypeNotFound { .. }
            | Error::ColumnIndexOutOfBounds { .. }
            | Error::ColumnNotFound(_)
            | Error::Migrate(_) => Self::Schema,
            Error::ColumnDecode { .. } | Error::Decode(_) | Error::Encode(_) | Error::RowNotFound => {
                Self::Data
            }
            Error::InvalidArgument(_) | Error::AnyDriverError(_) | Error::InvalidSavePointStatement => {
                Self::Internal
            }
            _ => Self::Unknown,
        }
    }

    /// Reports whether the connection that met the failure has ended, and others may have ended with it.
    pub(super) fn loses_connection(self) -> bool {
        matches!(self, Self::ConnectionLost | Self::NotAccepting)
    }

    fn of_io(error: &io::Error) -> Self {
        const KINDS: [(io::ErrorKind, Class); 4] = [
            (io::ErrorKind::ConnectionRefused, Class::ConnectionRefused),
            (io::ErrorKind::TimedOut, Class::TimedOut),
            // rustls reports a refused certificate as invalid data.
            (io::ErrorKind::InvalidData, Class::Tls),
            (io::ErrorKind::InvalidInput, Class::Tls),
        ];
        if let Some((_, class)) = KINDS.iter().find(|(kind, _)| *kind == error.kind()) {
            *class
        } else if error.to_string().contains("lookup") {
            // An unknown name has no kind of its own.
            Self::NameNotResolved
        } else {
            Self::ConnectionLost
        }
    }

    /// Finds the class of a SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), the more exact
    /// first. Poolers and engines that forward queries report failures of their own under codes that say little;
    /// `message` tells.
    fn of_state(code: &str, message: &str) -> Self {
        match code {
            "08P01" => Self::Protocol,
            "25006" => Self::ReadOnly,
            // The session or its transaction was idle for too long.
            "25P03" | "25P04" | "57P05" => Self::IdleInTransaction,
            // The database is not there, or was dropped.
            "3D000" | "57P04" => Self::MissingDatabase,
            "55P03" => Self::LockNotAvailable,
            "57014" => Self::StatementTimeout,
            "53300" => Self::TooManyConnections,
            "XX000" if is_forwarded(message) => Self::NodeLost,
            // "database … is not currently accepting connections"
            "55000" if message.contains("not currently accepting connections") => Self::NotAccepting,
            _ => match code.get(..2).unwrap_or_default() {
                "08" => Self::ConnectionLost,
                "28" => Self::Authentication,
                "40" => Self::Conflict,
                "53" | "58" => Self::OutOfResources,
                "57" => Self::NotAccepting,
                "22" => Self::Data,
                "23" | "44" => Self::Constraint,
                "0A" | "2B" | "3F" | "42" => Self::Schema,
                "XX" | "25" | "2D" | "3B" | "21" | "24" | "26" | "34" | "54" | "55" | "P0" => Self::Internal,
                _ => Self::Unknown,
            },
        }
    }

    /// Returns the name of the class in metrics.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Returns the text of the class in logs and in `/readyz`.
    pub const fn words(self) -> &'static str {
        self.names().1
    }

    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ConnectionRefused => ("connection_refused", "connection refused"),
            Self::ConnectionLost => ("connection_lost", "connection lost"),
            Self::NameNotResolved => ("name_not_resolved", "name not resolved"),
            Self::TimedOut => ("timed_out", "timed out"),
            Self::Tls => ("tls", "TLS"),
            Self::Authentication => ("authentication", "authentication"),
            Self::MissingDatabase => ("missing_database", "missing database"),
            Self::TooManyConnections => ("too_many_connections", "too many connections"),
            Self::NotAccepting => ("not_accepting", "shutting down or starting up"),
            Self::ReadOnly => ("read_only", "read only"),
            Self::LockNotAvailable => ("lock_not_available", "lock not available"),
            Self::Conflict => ("conflict", "serialization failure or deadlock"),
            Self::StatementTimeout => ("statement_timeout", "statement timeout"),
            Self::IdleInTransaction => ("idle_in_transaction", "idle in transaction for too long"),
            Self::OutOfResources => ("out_of_resources", "out of resources"),
            Self::NodeLost => ("node_lost", "a node of the database is lost"),
            Self::PoolExhausted => ("pool_exhausted", "no connection in time"),
            Self::Closing => ("closing", "the pool is closed"),
            Self::Protocol => ("protocol", "protocol"),
            Self::Schema => ("schema", "schema or permissions"),
            Self::Constraint => ("constraint", "constraint"),
            Self::Data => ("data", "data"),
            Self::Settings => ("settings", "settings"),
            Self::Internal => ("internal", "internal"),
            Self::Unknown => ("unknown", "unknown"),
        }
    }

    /// Returns the answer to the caller of a failed request.
    pub const fn consequence(self) -> Consequence {
        match self {
            Self::ConnectionRefused
            | Self::ConnectionLost
            | Self::NameNotResolved
            | Self::TimedOut
            | Self::Tls
            | Self::Authentication
            | Self::MissingDatabase
            | Self::TooManyConnections
            | Self::NotAccepting
            | Self::ReadOnly
            | Self::LockNotAvailable
            | Self::Conflict
            | Self::StatementTimeout
            | Self::IdleInTransaction
            | Self::OutOfResources
            | Self::NodeLost
            | Self::PoolExhausted
            | Self::Closing
            | Self::Protocol
            | Self::Settings => Consequence::Temporary,
            Self::Schema | Self::Constraint | Self::Data | Self::Internal | Self::Unknown => {
                Consequence::Fault
            }
        }
    }

    /// Reports whether the settings cannot be right: a process refuses to start with them.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::Authentication | Self::MissingDatabase | Self::Tls | Self::Settings)
    }
}

/// Reports whether a message is about a connection of the server itself to another node.
fn is_forwarded(message: &str) -> bool {
    [
        "remote node",
        "connection to the",
        "could not connect",
        "could not receive",
        "server closed the connection",
        "terminating connection",
        "failure on connection",
        "no worker",
        "node group",
    ]
    .iter()
    .any(|part| message.contains(part))
}

#[cfg(test)]
mod tests;
