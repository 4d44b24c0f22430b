//! Periodic workers: a task that repeats a round of work, records when a round last succeeded, and logs its failures.
//!
//! Metrics of each: `worker_last_success_seconds` (Unix time), `worker_max_age_seconds` (a last success older than this
//! raises the alert `ShoppeeWorkerLate`), `worker_failures_total`. A worker is late in every case: where its rounds
//! fail, hang, or wait for a dependency.

use std::{fmt::Display, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::{log_throttle::LogThrottle, process::Process};

/// The rest of a worker, at least, in durations of its last round: slow rounds thus do not fill a server.
const MIN_REST_RATIO: u32 = 1;
/// The age of the last success at which a worker is late, in intervals …
const MAX_AGE_INTERVALS: u32 = 5;
/// … and at least this, so that a failover is not an alert.
const MIN_MAX_AGE: Duration = Duration::from_secs(45);

/// The outcome of a successful round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// A round that did all due work: the next round starts after the interval.
    Done,
    /// A round that left work due: the next round starts at once.
    More,
}

impl Round {
    /// Returns `More` where a batch was full, as more may follow.
    pub const fn more_if(more: bool) -> Self {
        if more { Self::More } else { Self::Done }
    }
}

/// Repeats `round` every `interval` while `ready` is true, until the process stops. A failed round is logged, counted
/// and tried again after the interval.
pub fn spawn<F, Fut, E>(
    process: &Process,
    name: &'static str,
    interval: Duration,
    mut ready: watch::Receiver<bool>,
    mut round: F,
) where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = Result<Round, E>> + Send,
    E: Display + Send,
{
    let (clock, stop) = (process.clock.clone(), process.tasks.stopping());
    let max_age = (interval * MAX_AGE_INTERVALS).max(MIN_MAX_AGE);
    metrics::gauge!("worker_max_age_seconds", "worker" => name).set(max_age.as_secs_f64());
    metrics::counter!("worker_failures_total", "worker" => name).absolute(0);
    // A worker that never succeeds is late, counted from the start.
    record_success(name, clock.now());
    process.tasks.spawn(name, async move {
        let failures = LogThrottle::default();
        while !stop.is_cancelled() {
            if !*ready.borrow() {
                // The first round starts when it can, not an interval later.
                stop.run_until_cancelled(becomes_ready(&mut ready)).await;
                continue;
            }
            let started = Instant::now();
            match round().await {
                Ok(found) => {
                    record_success(name, clock.now());
                    if failures.reset() {
                        tracing::info!(worker = name, "worker succeeds again");
                    }
                    if found == Round::More {
                        continue;
                    }
                }
                Err(error) => {
                    metrics::counter!("worker_failures_total", "worker" => name).increment(1);
                    if let Some(suppressed) = failures.admit() {
                        tracing::warn!(worker = name, %error, suppressed, "worker failed");
                    }
                }
            }
            let rest = interval.max(started.elapsed() * MIN_REST_RATIO);
            stop.run_until_cancelled(tokio::time::sleep(rest)).await;
        }
        Ok(())
    });
}

async fn becomes_ready(ready: &mut watch::Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        // The sender is gone, which leaves it as it is.
        std::future::pending::<()>().await;
    }
}

fn record_success(name: &'static str, at: time::OffsetDateTime) {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits")]
    let seconds = (at.unix_timestamp_nanos() / 1_000_000) as f64 / 1e3;
    metrics::gauge!("worker_last_success_seconds", "worker" => name).set(seconds);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, readiness::Readiness, tasks::Tasks, tls::GrpcTls};

    #[tokio::test]
    async fn a_failed_round_is_tried_again_after_the_interval_and_a_full_batch_at_once() {
        let (tasks, _ended) = Tasks::new();
        let process = Process {
            clock: Clock::default(),
            tasks,
            readiness: Readiness::default(),
            tls: GrpcTls::default(),
        };
        let (_up, ready) = watch::channel(true);
        let interval = Duration::from_millis(50);
        let (starts, mut started) = tokio::sync::mpsc::unbounded_channel();
        let mut rounds = 0;
        spawn(&process, "test", interval, ready, move || {
            rounds += 1;
            let _ = starts.send(Instant::now());
            let round = rounds;
            async move { if round == 1 { Err("on purpose") } else { Ok(Round::more_if(round == 2)) } }
        });
        let mut next = async || started.recv().await.unwrap();
        let (first, second, third, fourth) = (next().await, next().await, next().await, next().await);
        assert!(second - first >= interval, "after a failure");
        assert!(third - second < fourth - third, "a full batch is followed at once");
        assert!(fourth - third >= interval, "after all work is done");
        process.tasks.stop().await;
    }

    #[tokio::test]
    async fn the_first_round_starts_as_soon_as_the_worker_is_ready() {
        let (tasks, _ended) = Tasks::new();
        let process = Process {
            clock: Clock::default(),
            tasks,
            readiness: Readiness::default(),
            tls: GrpcTls::default(),
        };
        let (up, ready) = watch::channel(false);
        let (rounds, mut round) = tokio::sync::mpsc::unbounded_channel();
        spawn(&process, "test", Duration::from_hours(1), ready, move || {
            let _ = rounds.send(());
            async { Ok::<_, &str>(Round::Done) }
        });
        tokio::task::yield_now().await;
        assert!(round.try_recv().is_err(), "before it is ready");
        up.send_replace(true);
        tokio::time::timeout(Duration::from_secs(10), round.recv()).await.expect("at once").unwrap();
        process.tasks.stop().await;
    }
}
