//! The help texts of this process's metrics. A new metric is added here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("outbox_lag_seconds", "The age of the oldest registration that is not published"),
    ("outbox_pending", "Registrations that are not published"),
];
