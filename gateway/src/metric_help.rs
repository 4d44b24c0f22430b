//! The help texts of the gateway's metrics. A new metric is added here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("cache_age_seconds", "Age of a response served from a cache"),
    ("cache_invalidation_seconds", "Time from the commit of a change to the invalidation of its cache entry"),
    ("cache_requests_total", "Lookups in a cache level, by result"),
    ("connection_limit_degraded", "1 while connections are counted per gateway, without Redis; else 0"),
    ("event_delivery_seconds", "Time from the commit of an event to the delivery of its frame"),
    ("http_connections", "Open HTTP connections, WebSockets included"),
    ("http_connections_closed_total", "HTTP connections closed by the gateway, by reason"),
    ("http_requests_shed_total", "Requests refused with 503 because of overload"),
    ("http_server_request_duration_seconds", "Time from the head of an HTTP request to its response"),
    ("http_unsent_bytes", "Bytes of responses that clients have not received"),
    ("rate_limit_decisions_total", "Rate limit decisions, by policy and result"),
    ("rate_limit_degraded", "1 while this gateway counts rate limits without Redis, else 0"),
    ("ws_closed_total", "Closed WebSockets, and streams of events that the gateway ended, by close code"),
    ("ws_connections", "Open WebSockets, streams of a user's events, and long polls"),
];
