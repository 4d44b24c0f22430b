//! The help texts of this process's metrics. A new metric is added here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("cache_age_seconds", "The age of an answer from a cache"),
    ("cache_invalidation_seconds", "The time from the commit of a change to its removal from a cache"),
    ("cache_requests_total", "Look-ups in a level of the cache, by their result"),
    ("event_delivery_seconds", "The time from the commit of an event to its frame"),
    ("http_connections", "Open HTTP connections, sockets among them"),
    ("http_connections_closed_total", "HTTP connections that the gateway closed, by the reason"),
    ("http_requests_shed_total", "Requests that were answered 503 because a bound was reached"),
    ("http_server_request_duration_seconds", "The time from the head of an HTTP request to its answer"),
    ("http_unsent_bytes", "Bytes of answers that clients have not taken"),
    ("rate_limit_decisions_total", "Decisions of rate limits, by policy and result"),
    ("rate_limit_degraded", "Whether limits are counted by this gateway alone: 1 or 0"),
    ("ws_closed_total", "Closed WebSockets, by the code"),
    ("ws_connections", "Open WebSockets"),
];
