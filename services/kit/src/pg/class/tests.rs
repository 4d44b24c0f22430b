//! Tests with at least one case for each class.

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
    because(code, "message")
}

fn because(code: &'static str, message: &'static str) -> Error {
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
        (Class::ConnectionRefused, vec![io(io::ErrorKind::ConnectionRefused)]),
        (
            Class::ConnectionLost,
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
        (Class::NameNotResolved, vec![lookup()]),
        (Class::TimedOut, vec![io(io::ErrorKind::TimedOut)]),
        (Class::Tls, vec![Error::Tls("server does not support TLS".into()), io(io::ErrorKind::InvalidData)]),
        (Class::Authentication, vec![state("28P01"), state("28000")]),
        (Class::MissingDatabase, vec![state("3D000"), state("57P04")]),
        (Class::TooManyConnections, vec![state("53300")]),
        (
            Class::NotAccepting,
            vec![
                state("57P01"),
                state("57P02"),
                state("57P03"),
                because("55000", "database \"shop\" is not currently accepting connections"),
            ],
        ),
        (Class::ReadOnly, vec![state("25006")]),
        (Class::LockNotAvailable, vec![state("55P03")]),
        (Class::Conflict, vec![state("40001"), state("40P01"), state("40003")]),
        (Class::StatementTimeout, vec![state("57014")]),
        (Class::IdleInTransaction, vec![state("25P03"), state("57P05"), state("25P04")]),
        (Class::OutOfResources, vec![state("53000"), state("53100"), state("53200"), state("58030")]),
        (
            Class::NodeLost,
            vec![
                because("XX000", "connection to the remote node worker-2:5432 failed"),
                because("XX000", "failure on connection marked as essential: worker-2:5432"),
                because("XX000", "server closed the connection unexpectedly"),
            ],
        ),
        (Class::PoolExhausted, vec![Error::PoolTimedOut]),
        (Class::Closing, vec![Error::PoolClosed]),
        (Class::Protocol, vec![Error::Protocol("odd".to_owned()), Error::BeginFailed, state("08P01")]),
        (
            Class::Schema,
            vec![state("42P01"), state("42501"), state("0A000"), Error::ColumnNotFound("x".to_owned())],
        ),
        (Class::Constraint, vec![state("23505"), state("23514")]),
        (Class::Data, vec![state("22003"), Error::RowNotFound, Error::Decode("odd".into())]),
        (Class::Settings, vec![Error::Configuration("no such file".into())]),
        (
            Class::Internal,
            vec![
                because("XX000", "cache lookup failed for relation 16384"),
                state("XX001"),
                state("25P02"),
                state("P0001"),
            ],
        ),
        (Class::Unknown, vec![state(""), state("ZZ999")]),
    ];
    for (class, errors) in &cases {
        for error in errors {
            assert_eq!(Class::of(error), *class, "{error}");
        }
    }
    let covered: BTreeSet<Class> = cases.iter().map(|(class, _)| *class).collect();
    assert_eq!(covered, Class::ALL.into_iter().collect(), "a case for every class");
    let names: BTreeSet<&str> = Class::ALL.map(Class::name).into_iter().collect();
    assert_eq!(names.len(), Class::ALL.len());
}

#[test]
fn what_passes_is_unavailable_and_what_is_our_fault_is_not() {
    for passing in ["25006", "57014", "53200", "55P03", "40P01", "25P03", "57P03", "08006", "28P01"] {
        assert_eq!(Class::of(&state(passing)).consequence(), Consequence::Temporary, "{passing}");
    }
    for fault in ["42P01", "23505", "22003", "XX000", "ZZ999"] {
        assert_eq!(Class::of(&state(fault)).consequence(), Consequence::Fault, "{fault}");
    }
}

#[test]
fn only_what_the_settings_cause_ends_the_start() {
    let refusals: Vec<Class> = Class::ALL.into_iter().filter(|class| class.is_refusal()).collect();
    assert_eq!(refusals, [Class::Tls, Class::Authentication, Class::MissingDatabase, Class::Settings]);
}
