//! The audit log.

shoppee_kit::audit_log_store!("auth", "auth");
