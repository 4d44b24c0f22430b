//! The classification of PostgreSQL errors: maps each `sqlx::Error` and SQLSTATE to a class. The class names the error in
//! logs, metrics and `/readyz`, and tells whether it is transient. A new kind of error is added to [`ErrorClass`] and to
//! its `match`.

use std::io;

use sqlx::Error;

/// The cause of an error; causes with the same remedy for an operator share a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    ConnectionRefused,
    ConnectionLost,
    NameNotResolved,
    TimedOut,
    Tls,
    Authentication,
    MissingDatabase,
    TooManyConnections,
    /// The server is shutting down, starting up, or recovering from a crash.
    NotAccepting,
    ReadOnly,
    LockNotAvailable,
    Conflict,
    StatementTimeout,
    IdleInTransaction,
    OutOfResources,
    /// A coordinator node reports the failure of another node.
    NodeLost,
    PoolExhausted,
    Closing,
    Protocol,
    /// The schema or the permissions do not match the query.
    Schema,
    /// A violated constraint that no use case handles.
    Constraint,
    /// A value without the type of its column, or a missing row.
    Data,
    Settings,
    Internal,
    Unknown,
}

impl ErrorClass {
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

    /// Classifies an error.
    pub fn from_error(error: &Error) -> Self {
        match error {
            Error::Database(error) => {
                error.code().map_or(Self::Unknown, |code| Self::from_sqlstate(&code, error.message()))
            }
            Error::Io(error) => Self::from_io(error),
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

    /// Returns whether the failed connection has ended, and other connections may have ended with it.
    pub(super) fn ends_connections(self) -> bool {
        matches!(self, Self::ConnectionLost | Self::NotAccepting)
    }

    /// Returns whether a statement that failed so may have been committed: its response was lost, or the failure says
    /// too little. A server that shuts down may end a session between the commit and its response.
    pub(super) fn may_have_committed(self) -> bool {
        self.ends_connections()
            || matches!(
                self,
                Self::TimedOut | Self::NodeLost | Self::Closing | Self::Protocol | Self::Tls | Self::Unknown
            )
    }

    fn from_io(error: &io::Error) -> Self {
        const KINDS: [(io::ErrorKind, ErrorClass); 4] = [
            (io::ErrorKind::ConnectionRefused, ErrorClass::ConnectionRefused),
            (io::ErrorKind::TimedOut, ErrorClass::TimedOut),
            // rustls reports a refused certificate as invalid data.
            (io::ErrorKind::InvalidData, ErrorClass::Tls),
            (io::ErrorKind::InvalidInput, ErrorClass::Tls),
        ];
        if let Some((_, class)) = KINDS.iter().find(|(kind, _)| *kind == error.kind()) {
            *class
        } else if error.to_string().contains("lookup") {
            // An unresolved name has no kind of its own.
            Self::NameNotResolved
        } else {
            Self::ConnectionLost
        }
    }

    /// Classifies a SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), the most specific codes
    /// first. Poolers and engines that forward queries report their own failures under generic codes, which `message`
    /// distinguishes.
    fn from_sqlstate(code: &str, message: &str) -> Self {
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
            "XX000" if is_about_remote_node(message) => Self::NodeLost,
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

    /// Returns the label of the class in metrics.
    pub const fn as_str(self) -> &'static str {
        self.names().0
    }

    /// Returns the description of the class in logs and `/readyz`.
    pub const fn description(self) -> &'static str {
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

    /// Returns whether the error is transient: the caller gets 503, and the same request may succeed later. Any other
    /// error is a fault of the code or the schema: the caller gets 500.
    pub const fn is_transient(self) -> bool {
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
            | Self::Settings => true,
            Self::Schema | Self::Constraint | Self::Data | Self::Internal | Self::Unknown => false,
        }
    }

    /// Returns whether the settings are invalid, so that the process must not start with them.
    pub const fn is_config_error(self) -> bool {
        matches!(self, Self::Authentication | Self::MissingDatabase | Self::Tls | Self::Settings)
    }
}

/// Returns whether a message is about a connection of the server to another node.
fn is_about_remote_node(message: &str) -> bool {
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
