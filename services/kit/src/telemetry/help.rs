//! Help texts of the metrics of every process.

/// The name of a metric and its help text, without a period at the end.
pub type Help = (&'static str, &'static str);

/// The metrics of every process.
pub(super) const HELP: &[Help] = &[
    ("build_info", "The version of this process, as a label; always 1"),
    ("clock_offset_seconds", "The time by which the clock of this machine is ahead of that of PostgreSQL"),
    ("db_errors_total", "Errors of PostgreSQL, by their class"),
    ("db_pool_connections", "Connections to PostgreSQL, by their state"),
    ("db_pool_wait_seconds", "The wait for a connection to PostgreSQL"),
    ("dependency_up", "1 while a dependency is up, else 0"),
    ("log_lines_dropped_total", "Log lines that were dropped because the reader of the log is slow"),
    ("process_cpu_seconds_total", "User and system processor time of this process"),
    ("process_max_fds", "The maximum number of open file descriptors of this process"),
    ("process_memory_limit_bytes", "The memory limit of the container, or the memory of the machine"),
    ("process_open_fds", "Open file descriptors of this process"),
    ("process_resident_memory_bytes", "Resident memory of this process"),
    ("process_start_time_seconds", "The start of this process, in seconds since 1970"),
    ("redis_errors_total", "Errors of Redis, by their class"),
    ("revocation_list_sheds_total", "Evictions of the older half of the full list of revoked sessions"),
    ("revoked_sessions", "Revoked sessions whose tokens have not expired"),
    ("rpc_server_call_duration_seconds", "The duration of gRPC calls, from request to response"),
    ("worker_failures_total", "Failed runs of a periodic worker"),
    ("worker_last_success_seconds", "The last success of a periodic worker, in seconds since 1970"),
    ("worker_max_age_seconds", "The age of the last success beyond which a periodic worker is late"),
];

/// Registers the help texts of metrics.
pub fn describe(help: &[Help]) {
    for (name, text) in help {
        // The exporter applies the text to every kind of metric.
        metrics::describe_gauge!(*name, *text);
    }
}
