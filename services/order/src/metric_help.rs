//! The help texts of the order service's metrics. Each metric needs an entry here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("event_log_pending", "Events that the log does not have yet, counted up to 100 000"),
    ("event_streams", "Open streams of WatchEvents"),
    ("held_without_order", "Holds whose order does not exist"),
    ("holds_voided_total", "Released holds whose checkout ended without an order"),
    ("order_audit_age_seconds", "The time since the last complete pass of the audit"),
    ("order_payment_mismatches", "Orders whose payment does not match their status"),
    ("order_stock_mismatches", "Orders whose holds or ledger rows do not match their lines or status"),
    ("order_transitions_total", "Orders that reached a status"),
    ("orders_amount_total", "The total of the orders that reached a status, in minor units"),
    ("orders_overdue", "Unpaid orders past their payment deadline"),
    ("orders_overdue_oldest_seconds", "The time since the payment deadline of the longest overdue order"),
    ("orders_refunded_amount_total", "Refunded money, in minor units"),
    ("outbox_dead_letters", "Events that could not be published and need an operator"),
    ("outbox_failures_total", "Failed publications of events, by cause"),
    ("outbox_lag_seconds", "The age of the oldest unpublished event"),
    ("outbox_pending", "Unpublished events"),
    ("paid_without_hold", "Paid orders without held or sold stock"),
    ("payment_attempts_oldest_open_seconds", "The age of the oldest payment attempt without an outcome"),
    ("payment_attempts_open", "Payment attempts without an outcome"),
    ("payment_recovery_failures_total", "Failed recoveries of payment attempts"),
    ("refund_failures_total", "Failed attempts of refunds"),
    ("refunds_failed", "Refunds that failed permanently"),
    ("refunds_oldest_pending_seconds", "The age of the oldest pending refund"),
    ("refunds_pending", "Pending refunds"),
    ("registrations_skipped_total", "Registrations in the stream that could not be decoded or applied"),
    ("stock_tasks_due", "Pending stock tasks"),
    ("stock_tasks_oldest_due_seconds", "The age of the oldest stock task"),
    ("stock_tasks_without_hold_total", "Stock tasks whose hold does not exist, by operation"),
];
