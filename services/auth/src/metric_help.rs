//! The help texts of the auth service's metrics. Each metric needs an entry here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("outbox_lag_seconds", "The age of the oldest unpublished registration"),
    ("outbox_pending", "Unpublished registrations"),
];
