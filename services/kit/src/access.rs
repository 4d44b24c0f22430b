//! Access control: the rules that the `.proto` files state for each method, and their enforcement.
//!
//! The option `shoppee.access.v1.rule` of a method is the only definition of its callers. The server checks it before the
//! handler runs ([`crate::grpc`]), and the gateway checks it before it makes the call.

use std::{collections::HashMap, sync::LazyLock};

use prost::Message as _;
use shoppee_proto::access::v1::AccessRule;
use tonic::{Code, Status};

use crate::{
    caller::{Caller, Role, TokenError, TokenType},
    status::ServiceError,
};

/// The scopes that a service can have (RFC 6749 §3.3), in alphabetical order.
pub const SCOPES: [&str; 8] = [
    "catalogue:write",
    "events:watch",
    "orders:cancel",
    "orders:read",
    "orders:ship",
    "stock:adjust",
    "stock:hold",
    "users:read",
];

/// A method of the `.proto` files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Package, service and method, as in `shoppee.order.v1.OrderService/CreateOrder`.
    pub name: String,
    /// A method without the option admits no caller.
    pub rule: AccessRule,
}

/// Returns all methods, by name.
pub fn methods() -> &'static HashMap<String, Method> {
    static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(read_methods);
    &METHODS
}

fn read_methods() -> HashMap<String, Method> {
    // The build encoded the set.
    let set = FileSet::decode(shoppee_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = HashMap::new();
    for file in set.file {
        for service in file.service {
            for method in service.method {
                let name = format!("{}.{}/{}", file.package, service.name, method.name);
                let rule = method.options.and_then(|options| options.rule).unwrap_or_default();
                methods.insert(name.clone(), Method { name, rule });
            }
        }
    }
    methods
}

/// Returns the caller of a call, if the rule admits it; `None` for a caller without a token. `authenticate` is not called
/// for a method that reads no token.
pub fn authorize(
    rule: &AccessRule,
    authenticate: impl FnOnce() -> Result<Caller, TokenError>,
) -> Result<Option<Caller>, Status> {
    if rule.open {
        return Ok(None);
    }
    match authenticate() {
        Ok(caller) if admits(rule, &caller) => Ok(Some(caller)),
        Ok(_) => {
            Err(ServiceError::new(Code::PermissionDenied, "FORBIDDEN", "your role does not allow this")
                .into())
        }
        Err(TokenError::Missing) if rule.anonymous => Ok(None),
        Err(error) => Err(ServiceError::from(error).into()),
    }
}

/// Reports whether the rule admits a caller with a valid token.
pub fn admits(rule: &AccessRule, caller: &Caller) -> bool {
    match (caller.token_type, caller.claims.role) {
        (TokenType::Access, Role::User) => rule.anonymous || rule.user,
        (TokenType::Access, Role::Admin) => rule.anonymous || rule.user || rule.admin,
        (TokenType::Access, Role::Service) => rule.anonymous || caller.has_scope(&rule.scope),
        (TokenType::WsTicket, Role::User | Role::Admin) => rule.ticket,
        (TokenType::Socket, Role::User | Role::Admin) => rule.socket,
        (TokenType::WsTicket | TokenType::Socket, Role::Service) => false,
    }
}

// The needed part of descriptor.proto, with the option that prost's own types omit.

#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<ServiceDescriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<MethodDescriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MethodDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<MethodOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MethodOptions {
    /// `shoppee.access.v1.rule`
    #[prost(message, optional, tag = "51013")]
    rule: Option<AccessRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_rule() {
        assert!(methods().len() > 40, "the methods are read");
        for Method { name, rule } in methods().values() {
            assert_ne!(*rule, AccessRule::default(), "{name} admits no caller: its option is missing");
            assert!(!rule.open || *rule == AccessRule { open: true, ..AccessRule::default() }, "{name}");
            assert!(rule.scope.is_empty() || SCOPES.contains(&&*rule.scope), "{name}: {}", rule.scope);
        }
    }
}
