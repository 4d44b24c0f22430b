//! Tests of the classification, with at least one case for each class.

use std::{borrow::Cow, collections::BTreeSet, error, fmt};

use sqlx::error::{DatabaseError, ErrorKind};

use super::*;

#[derive(Debug)]
struct State(&'static str, &'static str);

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
}

impl error::Error for State {}

impl DatabaseError for State {
    fn message(&self) -> &str {
        self.1
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        (!self.0.is_empty()).then(|| self.0.into())
    }

    fn as_error(&self) -> &(dyn error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

fn state(code: &'static str) -> Error {
    with_message(code, "message")
}

fn with_message(code: &'static str, message: &'static str) -> Error {
    Error::Database(Box::new(State(code, message)))
}

fn io(kind: io::ErrorKind) -> Error {
    Error::Io(kind.into())
}

#[test]
fn every_error_has_the_class_of_its_cause() {
    let lookup =
        || Error::Io(io::Error::other("failed to lookup address information: Name or service not known"));
    let cases = [
        (ErrorClass::ConnectionRefused, vec![io(io::ErrorKind::ConnectionRefused)]),
        (
            ErrorClass::ConnectionLost,
            vec![
                io(io::ErrorKind::ConnectionReset),
                io(io::ErrorKind::BrokenPipe),
                io(io::ErrorKind::UnexpectedEof),
                io(io::ErrorKind::HostUnreachable),
                Error::WorkerCrashed,
                state("08000"),
                state("08006"),
                state("08001"),
            ],
        ),
        (ErrorClass::NameNotResolved, vec![lookup()]),
        (ErrorClass::TimedOut, vec![io(io::ErrorKind::TimedOut)]),
        (
            ErrorClass::Tls,
            vec![Error::Tls("server does not support TLS".into()), io(io::ErrorKind::InvalidData)],
        ),
        (ErrorClass::Authentication, vec![state("28P01"), state("28000")]),
        (ErrorClass::MissingDatabase, vec![state("3D000"), state("57P04")]),
        (ErrorClass::TooManyConnections, vec![state("53300")]),
        (
            ErrorClass::NotAccepting,
            vec![
                state("57P01"),
                state("57P02"),
                state("57P03"),
                with_message("55000", "database \"shop\" is not currently accepting connections"),
            ],
        ),
        (ErrorClass::ReadOnly, vec![state("25006")]),
        (ErrorClass::LockNotAvailable, vec![state("55P03")]),
        (ErrorClass::Conflict, vec![state("40001"), state("40P01"), state("40003")]),
        (ErrorClass::StatementTimeout, vec![state("57014")]),
        (ErrorClass::IdleInTransaction, vec![state("25P03"), state("57P05"), state("25P04")]),
        (ErrorClass::OutOfResources, vec![state("53000"), state("53100"), state("53200"), state("58030")]),
        (
            ErrorClass::NodeLost,
            vec![
                with_message("XX000", "connection to the remote node worker-2:5432 failed"),
                with_message("XX000", "failure on connection marked as essential: worker-2:5432"),
                with_message("XX000", "server closed the connection unexpectedly"),
            ],
        ),
        (ErrorClass::PoolExhausted, vec![Error::PoolTimedOut]),
        (ErrorClass::Closing, vec![Error::PoolClosed]),
        (ErrorClass::Protocol, vec![Error::Protocol("odd".to_owned()), Error::BeginFailed, state("08P01")]),
        (
            ErrorClass::Schema,
            vec![state("42P01"), state("42501"), state("0A000"), Error::ColumnNotFound("x".to_owned())],
        ),
        (ErrorClass::Constraint, vec![state("23505"), state("23514")]),
        (ErrorClass::Data, vec![state("22003"), Error::RowNotFound, Error::Decode("odd".into())]),
        (ErrorClass::Settings, vec![Error::Configuration("no such file".into())]),
        (
            ErrorClass::Internal,
            vec![
                with_message("XX000", "cache lookup failed for relation 16384"),
                state("XX001"),
                state("25P02"),
                state("P0001"),
            ],
        ),
        (ErrorClass::Unknown, vec![state(""), state("ZZ999")]),
    ];
    for (class, errors) in &cases {
        for error in errors {
            assert_eq!(ErrorClass::from_error(error), *class, "{error}");
        }
    }
    let covered: BTreeSet<ErrorClass> = cases.iter().map(|(class, _)| *class).collect();
    assert_eq!(covered, ErrorClass::ALL.into_iter().collect(), "a case for every class");
    let names: BTreeSet<&str> = ErrorClass::ALL.map(ErrorClass::as_str).into_iter().collect();
    assert_eq!(names.len(), ErrorClass::ALL.len());
}

#[test]
fn transient_errors_are_told_from_faults() {
    for transient in ["25006", "57014", "53200", "55P03", "40P01", "25P03", "57P03", "08006", "28P01"] {
        assert!(ErrorClass::from_error(&state(transient)).is_transient(), "{transient}");
    }
    for fault in ["42P01", "23505", "22003", "XX000", "ZZ999"] {
        assert!(!ErrorClass::from_error(&state(fault)).is_transient(), "{fault}");
    }
}

#[test]
fn only_errors_of_the_settings_are_config_errors() {
    let config_errors: Vec<ErrorClass> =
        ErrorClass::ALL.into_iter().filter(|class| class.is_config_error()).collect();
    assert_eq!(
        config_errors,
        [ErrorClass::Tls, ErrorClass::Authentication, ErrorClass::MissingDatabase, ErrorClass::Settings]
    );
}
