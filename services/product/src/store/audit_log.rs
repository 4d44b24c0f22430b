//! The audit log.

shoppee_kit::audit_log_store!("product", "product");
