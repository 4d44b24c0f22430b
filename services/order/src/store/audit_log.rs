//! The audit log.

shoppee_kit::audit_log_store!("order", "orders");
