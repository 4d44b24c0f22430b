//! The help texts of this process's metrics. A new metric is added here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("held_without_order", "Holds whose order does not exist"),
    ("order_audit_age_seconds", "The time since a pass of the audit last finished"),
    ("order_payment_mismatches", "Orders whose payment does not match their status"),
    ("order_stock_mismatches", "Orders whose holds or ledger rows do not match their lines or status"),
    ("order_transitions_total", "Orders that reached a status"),
    ("orders_amount_total", "The total of the orders that reached a status, in minor units"),
    ("orders_overdue", "Unpaid orders past their time"),
    ("orders_overdue_oldest_seconds", "How long the oldest unpaid order is past its time"),
    ("orders_refunded_amount_total", "Refunded money, in minor units"),
    ("outbox_dead_letters", "Events that could not be published and wait for an operator"),
    ("outbox_failures_total", "Events that were not published, by the cause"),
    ("outbox_lag_seconds", "The age of the oldest event that is not published"),
    ("outbox_pending", "Events that are not published"),
    ("paid_without_hold", "Paid orders whose stock is not held"),
    ("payment_attempts_oldest_open_seconds", "The age of the oldest payment attempt without an outcome"),
    ("payment_attempts_open", "Payment attempts without an outcome"),
    ("payment_recovery_failures_total", "Payment attempts whose outcome could not be learnt in a round"),
    ("refund_failures_total", "Refunds that the provider did not make in a try"),
    ("refunds_failed", "Refunds that the provider refuses for good"),
    ("refunds_oldest_pending_seconds", "The age of the oldest refund that is not made"),
    ("refunds_pending", "Refunds that are not made"),
    ("registrations_skipped_total", "Registrations in the stream that could not be read"),
    ("stock_tasks_due", "Stock tasks that are due"),
    ("stock_tasks_oldest_due_seconds", "How long the oldest stock task has been due"),
    ("stock_tasks_without_hold_total", "Stock tasks whose hold does not exist, by their step"),
];
