//! The classification of Redis errors: maps each error of the client to a class, which names it in logs, metrics and
//! `/readyz`. A new kind of error is added to [`ErrorClass`] and to its `match`.

use fred::error::{Error, ErrorKind};

use crate::tls::Failure;

/// Redacts the text of an error for the log. Redis repeats the arguments of an unknown command, which are the credentials
/// for `AUTH`.
pub fn redact(error: &Error) -> &str {
    let text = error.details();
    if let Some(failure) = ErrorClass::tls_failure(error) {
        return failure.description();
    }
    text.split(", with args").next().unwrap_or(text)
}

/// The cause of an error; causes with the same remedy for an operator share a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    ConnectionRefused,
    ConnectionLost,
    NameNotResolved,
    TimedOut,
    Tls,
    Authentication,
    Permission,
    Configuration,
    Loading,
    ReadOnly,
    OutOfMemory,
    TooManyConnections,
    ClusterDown,
    NotConnected,
    Overload,
    Protocol,
    Command,
    Unknown,
}

impl ErrorClass {
    pub const ALL: [Self; 18] = [
        Self::ConnectionRefused,
        Self::ConnectionLost,
        Self::NameNotResolved,
        Self::TimedOut,
        Self::Tls,
        Self::Authentication,
        Self::Permission,
        Self::Configuration,
        Self::Loading,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::TooManyConnections,
        Self::ClusterDown,
        Self::NotConnected,
        Self::Overload,
        Self::Protocol,
        Self::Command,
        Self::Unknown,
    ];

    /// Classifies an error.
    pub fn from_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::IO => Self::from_io(error.details()),
            ErrorKind::Tls => Self::Tls,
            ErrorKind::Timeout => Self::TimedOut,
            ErrorKind::Auth => Self::Authentication,
            ErrorKind::Config | ErrorKind::Url => Self::Configuration,
            ErrorKind::Canceled => Self::NotConnected,
            ErrorKind::Backpressure => Self::Overload,
            ErrorKind::Cluster | ErrorKind::Sentinel => Self::ClusterDown,
            ErrorKind::Protocol | ErrorKind::Parse | ErrorKind::Routing => Self::Protocol,
            ErrorKind::InvalidCommand | ErrorKind::InvalidArgument | ErrorKind::NotFound => {
                Self::from_reply(error.details()).unwrap_or(Self::Command)
            }
            ErrorKind::Unknown => Self::from_reply(error.details()).unwrap_or(Self::Unknown),
        }
    }

    /// Returns the TLS failure that caused the error, if any.
    pub fn tls_failure(error: &Error) -> Option<Failure> {
        (Self::from_error(error) == Self::Tls).then(|| Failure::from_text(error.details())).flatten()
    }

    /// Classifies an I/O error by its text, as the client drops its kind.
    fn from_io(text: &str) -> Self {
        let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        if any(&["ConnectionRefused"]) {
            Self::ConnectionRefused
        } else if any(&["lookup", "resolve", "Name or service"]) {
            Self::NameNotResolved
        } else if any(&["TimedOut"]) {
            Self::TimedOut
        } else if any(&[
            "InvalidData",
            "certificate",
            "InvalidCertificate",
            "HandshakeFailure",
            "AlertReceived",
        ]) {
            // rustls reports a refused certificate as invalid data.
            Self::Tls
        } else {
            Self::ConnectionLost
        }
    }

    /// Classifies an error reply of Redis by its prefix.
    fn from_reply(text: &str) -> Option<Self> {
        const PREFIXES: [(&str, ErrorClass); 21] = [
            ("WRONGPASS", ErrorClass::Authentication),
            ("NOAUTH", ErrorClass::Authentication),
            ("ERR AUTH", ErrorClass::Authentication),
            ("ERR invalid password", ErrorClass::Authentication),
            ("ERR Client sent AUTH", ErrorClass::Authentication),
            ("ERR unknown command 'AUTH'", ErrorClass::Configuration),
            ("ERR unknown command `AUTH`", ErrorClass::Configuration),
            ("ERR DB index", ErrorClass::Configuration),
            ("ERR invalid DB index", ErrorClass::Configuration),
            ("DENIED", ErrorClass::Permission),
            ("NOPERM", ErrorClass::Permission),
            ("LOADING", ErrorClass::Loading),
            ("READONLY", ErrorClass::ReadOnly),
            ("NOREPLICAS", ErrorClass::ReadOnly),
            ("MISCONF", ErrorClass::ReadOnly),
            ("OOM", ErrorClass::OutOfMemory),
            ("ERR max number of clients", ErrorClass::TooManyConnections),
            ("MASTERDOWN", ErrorClass::ClusterDown),
            ("CLUSTERDOWN", ErrorClass::ClusterDown),
            ("BUSY ", ErrorClass::Overload),
            ("ERR", ErrorClass::Command),
        ];
        PREFIXES.iter().find(|(prefix, _)| text.starts_with(prefix)).map(|(_, class)| *class)
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
            Self::Permission => ("permission", "permission"),
            Self::Configuration => ("configuration", "configuration"),
            Self::Loading => ("loading", "loading"),
            Self::ReadOnly => ("read_only", "read only"),
            Self::OutOfMemory => ("out_of_memory", "out of memory"),
            Self::TooManyConnections => ("too_many_connections", "too many connections"),
            Self::ClusterDown => ("cluster_down", "cluster down"),
            Self::NotConnected => ("not_connected", "not connected"),
            Self::Overload => ("overload", "overload"),
            Self::Protocol => ("protocol", "protocol"),
            Self::Command => ("command", "command"),
            Self::Unknown => ("unknown", "unknown"),
        }
    }

    /// Returns whether the settings are invalid, so that the process must not start with them.
    pub const fn is_config_error(self) -> bool {
        matches!(self, Self::Authentication | Self::Permission | Self::Configuration | Self::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_class_of_its_cause() {
        let refused = "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }";
        let unresolved = "Custom { kind: Uncategorized, error: \"failed to lookup address information: Name or service not known\" }";
        let untrusted = "Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }";
        for (kind, text, class) in [
            (ErrorKind::IO, refused, ErrorClass::ConnectionRefused),
            (ErrorKind::IO, "Connection closed.", ErrorClass::ConnectionLost),
            (ErrorKind::IO, "Os { code: 104, kind: ConnectionReset }", ErrorClass::ConnectionLost),
            (ErrorKind::IO, unresolved, ErrorClass::NameNotResolved),
            (ErrorKind::IO, "Os { code: 110, kind: TimedOut }", ErrorClass::TimedOut),
            (ErrorKind::IO, untrusted, ErrorClass::Tls),
            (ErrorKind::Tls, "InvalidDnsNameError", ErrorClass::Tls),
            (ErrorKind::Timeout, "Request timed out.", ErrorClass::TimedOut),
            (ErrorKind::Auth, "WRONGPASS invalid username-password pair", ErrorClass::Authentication),
            (ErrorKind::Auth, "NOAUTH Authentication required.", ErrorClass::Authentication),
            (
                ErrorKind::Unknown,
                "ERR AUTH <password> called without any password configured",
                ErrorClass::Authentication,
            ),
            (ErrorKind::Unknown, "NOPERM this user has no permissions", ErrorClass::Permission),
            (ErrorKind::Unknown, "DENIED Redis is running in protected mode", ErrorClass::Permission),
            (ErrorKind::Unknown, "ERR DB index is out of range", ErrorClass::Configuration),
            (ErrorKind::Config, "ERR This instance has cluster support disabled", ErrorClass::Configuration),
            (ErrorKind::Url, "", ErrorClass::Configuration),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", ErrorClass::Loading),
            (
                ErrorKind::Unknown,
                "READONLY You can't write against a read only replica.",
                ErrorClass::ReadOnly,
            ),
            (ErrorKind::Unknown, "MISCONF Redis is configured to save RDB snapshots", ErrorClass::ReadOnly),
            (
                ErrorKind::Unknown,
                "OOM command not allowed when used memory > 'maxmemory'.",
                ErrorClass::OutOfMemory,
            ),
            (ErrorKind::Unknown, "ERR max number of clients reached", ErrorClass::TooManyConnections),
            (ErrorKind::Cluster, "CLUSTERDOWN The cluster is down", ErrorClass::ClusterDown),
            (ErrorKind::Unknown, "MASTERDOWN Link with MASTER is down", ErrorClass::ClusterDown),
            (ErrorKind::Sentinel, "no sentinel answers", ErrorClass::ClusterDown),
            (ErrorKind::Canceled, "Connection closed unexpectedly.", ErrorClass::NotConnected),
            (ErrorKind::Backpressure, "Max in-flight commands reached.", ErrorClass::Overload),
            (ErrorKind::Unknown, "BUSY Redis is busy running a script.", ErrorClass::Overload),
            (ErrorKind::Protocol, "Could not decode", ErrorClass::Protocol),
            (ErrorKind::Parse, "not a number", ErrorClass::Protocol),
            (ErrorKind::Routing, "", ErrorClass::Protocol),
            (ErrorKind::Unknown, "ERR syntax error", ErrorClass::Command),
            (ErrorKind::InvalidArgument, "WRONGTYPE Operation against a key", ErrorClass::Command),
            (ErrorKind::InvalidCommand, "", ErrorClass::Command),
            (ErrorKind::NotFound, "", ErrorClass::Command),
            (ErrorKind::Unknown, "", ErrorClass::Unknown),
        ] {
            assert_eq!(ErrorClass::from_error(&Error::new(kind, text)), class, "{text}");
        }
        let mut names = ErrorClass::ALL.map(ErrorClass::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorClass::ALL.len());
    }

    #[test]
    fn a_redacted_error_has_no_credentials() {
        let error = Error::new(
            ErrorKind::Unknown,
            "ERR unknown command 'AUTH', with args beginning with: 'hunter22'",
        );
        assert_eq!(redact(&error), "ERR unknown command 'AUTH'");
        assert!(ErrorClass::from_error(&error).is_config_error());
    }
}
