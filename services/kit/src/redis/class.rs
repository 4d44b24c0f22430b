//! Classes of Redis failures: each error of the client by its name in logs, metrics and `/readyz`. A new kind of error
//! is added to [`Class`] and to the `match` that finds it.

use fred::error::{Error, ErrorKind};

use crate::tls::Failure;

/// Returns the part of an error's text that may be logged. Redis repeats the arguments of a command it does not know,
/// which for `AUTH` are the credentials.
pub fn text(error: &Error) -> &str {
    let text = error.details();
    if let Some(failure) = Class::tls_failure(error) {
        return failure.words();
    }
    text.split(", with args").next().unwrap_or(text)
}

/// The cause of a failure, as far as an operator acts on it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
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

impl Class {
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

    /// Finds the class of `error`.
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::IO => Self::of_io(error.details()),
            ErrorKind::Tls => Self::Tls,
            ErrorKind::Timeout => Self::TimedOut,
            ErrorKind::Auth => Self::Authentication,
            ErrorKind::Config | ErrorKind::Url => Self::Configuration,
            ErrorKind::Canceled => Self::NotConnected,
            ErrorKind::Backpressure => Self::Overload,
            ErrorKind::Cluster | ErrorKind::Sentinel => Self::ClusterDown,
            ErrorKind::Protocol | ErrorKind::Parse | ErrorKind::Routing => Self::Protocol,
            ErrorKind::InvalidCommand | ErrorKind::InvalidArgument | ErrorKind::NotFound => {
                Self::of_answer(error.details()).unwrap_or(Self::Command)
            }
            ErrorKind::Unknown => Self::of_answer(error.details()).unwrap_or(Self::Unknown),
        }
    }

    /// Returns the fault of TLS, where that is the cause.
    pub fn tls_failure(error: &Error) -> Option<Failure> {
        (Self::of(error) == Self::Tls).then(|| Failure::find_in_text(error.details())).flatten()
    }

    /// The client keeps no kind of an I/O error, only its text.
    fn of_io(text: &str) -> Self {
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

    /// Finds the class of an error that Redis itself answers with, by the words it begins with.
    fn of_answer(text: &str) -> Option<Self> {
        const BEGINNINGS: [(&str, Class); 21] = [
            ("WRONGPASS", Class::Authentication),
            ("NOAUTH", Class::Authentication),
            ("ERR AUTH", Class::Authentication),
            ("ERR invalid password", Class::Authentication),
            ("ERR Client sent AUTH", Class::Authentication),
            ("ERR unknown command 'AUTH'", Class::Configuration),
            ("ERR unknown command `AUTH`", Class::Configuration),
            ("ERR DB index", Class::Configuration),
            ("ERR invalid DB index", Class::Configuration),
            ("DENIED", Class::Permission),
            ("NOPERM", Class::Permission),
            ("LOADING", Class::Loading),
            ("READONLY", Class::ReadOnly),
            ("NOREPLICAS", Class::ReadOnly),
            ("MISCONF", Class::ReadOnly),
            ("OOM", Class::OutOfMemory),
            ("ERR max number of clients", Class::TooManyConnections),
            ("MASTERDOWN", Class::ClusterDown),
            ("CLUSTERDOWN", Class::ClusterDown),
            ("BUSY ", Class::Overload),
            ("ERR", Class::Command),
        ];
        BEGINNINGS.iter().find(|(beginning, _)| text.starts_with(beginning)).map(|(_, class)| *class)
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

    /// Reports whether the settings cannot be right: the process refuses to start with them.
    pub const fn is_refusal(self) -> bool {
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
            (ErrorKind::IO, refused, Class::ConnectionRefused),
            (ErrorKind::IO, "Connection closed.", Class::ConnectionLost),
            (ErrorKind::IO, "Os { code: 104, kind: ConnectionReset }", Class::ConnectionLost),
            (ErrorKind::IO, unresolved, Class::NameNotResolved),
            (ErrorKind::IO, "Os { code: 110, kind: TimedOut }", Class::TimedOut),
            (ErrorKind::IO, untrusted, Class::Tls),
            (ErrorKind::Tls, "InvalidDnsNameError", Class::Tls),
            (ErrorKind::Timeout, "Request timed out.", Class::TimedOut),
            (ErrorKind::Auth, "WRONGPASS invalid username-password pair", Class::Authentication),
            (ErrorKind::Auth, "NOAUTH Authentication required.", Class::Authentication),
            (
                ErrorKind::Unknown,
                "ERR AUTH <password> called without any password configured",
                Class::Authentication,
            ),
            (ErrorKind::Unknown, "NOPERM this user has no permissions", Class::Permission),
            (ErrorKind::Unknown, "DENIED Redis is running in protected mode", Class::Permission),
            (ErrorKind::Unknown, "ERR DB index is out of range", Class::Configuration),
            (ErrorKind::Config, "ERR This instance has cluster support disabled", Class::Configuration),
            (ErrorKind::Url, "", Class::Configuration),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", Class::Loading),
            (ErrorKind::Unknown, "READONLY You can't write against a read only replica.", Class::ReadOnly),
            (ErrorKind::Unknown, "MISCONF Redis is configured to save RDB snapshots", Class::ReadOnly),
            (
                ErrorKind::Unknown,
                "OOM command not allowed when used memory > 'maxmemory'.",
                Class::OutOfMemory,
            ),
            (ErrorKind::Unknown, "ERR max number of clients reached", Class::TooManyConnections),
            (ErrorKind::Cluster, "CLUSTERDOWN The cluster is down", Class::ClusterDown),
            (ErrorKind::Unknown, "MASTERDOWN Link with MASTER is down", Class::ClusterDown),
            (ErrorKind::Sentinel, "no sentinel answers", Class::ClusterDown),
            (ErrorKind::Canceled, "Connection closed unexpectedly.", Class::NotConnected),
            (ErrorKind::Backpressure, "Max in-flight commands reached.", Class::Overload),
            (ErrorKind::Unknown, "BUSY Redis is busy running a script.", Class::Overload),
            (ErrorKind::Protocol, "Could not decode", Class::Protocol),
            (ErrorKind::Parse, "not a number", Class::Protocol),
            (ErrorKind::Routing, "", Class::Protocol),
            (ErrorKind::Unknown, "ERR syntax error", Class::Command),
            (ErrorKind::InvalidArgument, "WRONGTYPE Operation against a key", Class::Command),
            (ErrorKind::InvalidCommand, "", Class::Command),
            (ErrorKind::NotFound, "", Class::Command),
            (ErrorKind::Unknown, "", Class::Unknown),
        ] {
            assert_eq!(Class::of(&Error::new(kind, text)), class, "{text}");
        }
        let mut names = Class::ALL.map(Class::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Class::ALL.len());
    }

    #[test]
    fn the_text_of_an_error_repeats_no_credentials() {
        let error = Error::new(
            ErrorKind::Unknown,
            "ERR unknown command 'AUTH', with args beginning with: 'hunter22'",
        );
        assert_eq!(text(&error), "ERR unknown command 'AUTH'");
        assert!(Class::of(&error).is_refusal());
    }
}
