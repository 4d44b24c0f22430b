//! Periodic workers: tasks that repeat a round of work, record the last success, and log failures.
//!
//! Metrics of each worker: `worker_last_success_seconds` (Unix time), `worker_max_age_seconds` (an older success raises
//! the alert `ShoppeeWorkerLate`), `worker_failures_total`. A worker is late if its rounds fail, hang, or wait for a
//! dependency.

use std::{fmt::Display, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::{log_throttle::LogThrottle, process::Process};

/// The minimum delay between two rounds, as a multiple of the duration of the last one: slow rounds do not saturate a
/// server.
const MIN_DELAY_RATIO: u32 = 1;
/// The age of the last success beyond which a worker is late, in intervals.
const MAX_AGE_INTERVALS: u32 = 5;
/// The lower bound of that age, so that a failover raises no alert.
const MIN_MAX_AGE: Duration = Duration::from_secs(45);

/// The outcome of a successful round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// All due work is done: the next round starts after the interval.
    Done,
    /// More work is due: the next round starts at once.
    More,
}

impl Round {
    /// Returns `More` if `more` is true, as after a full batch.
    pub const fn more_if(more: bool) -> Self {
        if more { Self::More } else { Self::Done }
    }
}

/// Repeats `round` every `interval` while `ready` is true, until the process stops. A failed round is logged, counted
/// and retried after the interval.
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
    let (clock, shutdown) = (process.clock.clone(), process.tasks.shutdown_token());
    let max_age = (interval * MAX_AGE_INTERVALS).max(MIN_MAX_AGE);
    metrics::gauge!("worker_max_age_seconds", "worker" => name).set(max_age.as_secs_f64());
    metrics::counter!("worker_failures_total", "worker" => name).absolute(0);
    // A worker that never succeeds is late, counted from the start.
    record_success(name, clock.now());
    process.tasks.spawn(name, async move {
        let failures = LogThrottle::default();
        while !shutdown.is_cancelled() {
            if !*ready.borrow() {
                // The first round starts as soon as the worker is ready, not an interval later.
                shutdown.run_until_cancelled(wait_ready(&mut ready)).await;
                continue;
            }
            let started = Instant::now();
            match round().await {
                Ok(outcome) => {
                    record_success(name, clock.now());
                    if failures.reset() {
                        tracing::info!(worker = name, "worker succeeds again");
                    }
                    if outcome == Round::More {
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
            let delay = interval.max(started.elapsed() * MIN_DELAY_RATIO);
            shutdown.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
        Ok(())
    });
}

async fn wait_ready(ready: &mut watch::Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        // The sender is gone, so that the value cannot change any more.
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

    fn process() -> Process {
        let (tasks, _failures) = Tasks::new();
        Process { clock: Clock::default(), tasks, readiness: Readiness::default(), tls: GrpcTls::default() }
    }

    #[tokio::test]
    async fn the_next_round_starts_after_the_interval_if_a_round_fails_or_work_is_done() {
        let process = process();
        let (_up, ready) = watch::channel(true);
        let interval = Duration::from_millis(50);
        let (starts, mut started) = tokio::sync::mpsc::unbounded_channel();
        let mut rounds = 0;
        spawn(&process, "test", interval, ready, move || {
            rounds += 1;
            starts.send(Instant::now()).expect("the test receives");
            let round = rounds;
            async move { if round == 1 { Err("on purpose") } else { Ok(Round::Done) } }
        });
        let mut next = async || started.recv().await.unwrap();
        let (first, second, third) = (next().await, next().await, next().await);
        assert!(second - first >= interval, "after a failure");
        assert!(third - second >= interval, "after all work is done");
        process.tasks.stop().await;
    }

    #[tokio::test]
    async fn the_next_round_starts_at_once_if_work_is_left() {
        let process = process();
        let (_up, ready) = watch::channel(true);
        let (starts, mut started) = tokio::sync::mpsc::unbounded_channel();
        let mut rounds = 0;
        spawn(&process, "test", Duration::from_hours(1), ready, move || {
            rounds += 1;
            starts.send(()).expect("the test receives");
            let outcome = Round::more_if(rounds < 3);
            async move { Ok::<_, &str>(outcome) }
        });
        for _ in 0..3 {
            tokio::time::timeout(Duration::from_secs(10), started.recv()).await.expect("at once").unwrap();
        }
        process.tasks.stop().await;
    }

    #[tokio::test]
    async fn the_first_round_starts_as_soon_as_the_worker_is_ready() {
        let process = process();
        let (up, ready) = watch::channel(false);
        let (rounds, mut round) = tokio::sync::mpsc::unbounded_channel();
        spawn(&process, "test", Duration::from_hours(1), ready, move || {
            rounds.send(()).expect("the test receives");
            async { Ok::<_, &str>(Round::Done) }
        });
        tokio::task::yield_now().await;
        assert!(round.try_recv().is_err(), "before it is ready");
        up.send_replace(true);
        tokio::time::timeout(Duration::from_secs(10), round.recv()).await.expect("at once").unwrap();
        process.tasks.stop().await;
    }
}
