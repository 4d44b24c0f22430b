//! The help texts of this process's metrics. A new metric is added here.

use shoppee_kit::telemetry::Help;

pub const HELP: &[Help] = &[
    ("audit_age_seconds", "The time since the audit last finished a round"),
    ("cache_age_seconds", "The age of an entry served from a cache"),
    ("cache_bypassed_seconds", "The time since a level of the cache was last usable; 0 while it is"),
    ("cache_invalidation_seconds", "The time from the commit of a change to its removal from a cache"),
    ("cache_requests_total", "Look-ups in a level of the cache, by their result"),
    ("search_index_age_seconds", "The time since all changes were in the search index"),
    ("search_index_documents", "Products in the search index"),
    ("search_index_pass_seconds", "The time of the last pass that built the search index or compared it"),
    ("stock_held_unpaid_share", "The largest share of a product that unpaid orders hold, from 0 to 1"),
    ("stock_invariant_violations", "Products whose stock differs from the sum of their ledger"),
];
