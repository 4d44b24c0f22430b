//! Log queue: lines of the log on their way to standard output. A request that wrote its own would pay for a system
//! call. Here a thread writes, a few milliseconds later, all that has come together by then. No other thread ever waits
//! for standard output: where it does not keep up, lines are dropped and counted in `log_lines_dropped_total`.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Between two writes.
const PAUSE: Duration = Duration::from_millis(5);
/// The size of the queue; as much again may be in the hands of the thread that writes.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// The time that [`Writer::close`] gives to a standard output that takes nothing: a part of what a process has for its
/// end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// Lines dropped since the last report.
    dropped: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the queue that is written to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

/// The thread that empties the queue.
#[derive(Debug)]
pub struct Writer {
    lines: Lines,
    ended: mpsc::Receiver<()>,
}

impl Lines {
    pub fn start(mut to: impl Write + Send + 'static) -> io::Result<(Self, Writer)> {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut closed = false;
            while !closed {
                let idle = |queue: &mut Queue| queue.lines.is_empty() && !queue.closed;
                let mut queue =
                    shared.filled.wait_while(shared.lock(), idle).unwrap_or_else(PoisonError::into_inner);
                let lines = std::mem::take(&mut queue.lines);
                let dropped = std::mem::take(&mut queue.dropped);
                closed = queue.closed;
                drop(queue);
                // A log that cannot be written can be reported nowhere.
                let _ = to.write_all(&lines).and_then(|()| to.flush());
                if dropped > 0 {
                    tracing::warn!(dropped, "lines of the log were dropped: standard output did not keep up");
                }
                if !closed {
                    std::thread::sleep(PAUSE);
                }
            }
            let _ = end.send(());
        })?;
        Ok((lines.clone(), Writer { lines, ended }))
    }
}

impl Writer {
    /// Returns when all that was logged is written, or after [`CLOSE_TIMEOUT`].
    pub fn close(self) {
        self.lines.0.lock().closed = true;
        self.lines.0.filled.notify_one();
        let _ = self.ended.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.lock();
        if queue.lines.len() + line.len() > MAX_QUEUED_BYTES {
            queue.dropped += 1;
            drop(queue);
            metrics::counter!("log_lines_dropped_total").increment(1);
            return Ok(line.len());
        }
        let first = queue.lines.is_empty();
        queue.lines.extend_from_slice(line);
        drop(queue);
        if first {
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_many_log_at_once_is_written_whole_and_once() {
        let paper = Paper::default();
        let (lines, writer) = Lines::start(paper.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let lines = &lines;
                scope.spawn(move || {
                    for number in 0..5000 {
                        // Fewer than would be dropped.
                        while lines.0.lock().lines.len() > MAX_QUEUED_BYTES / 2 {
                            std::thread::yield_now();
                        }
                        lines
                            .make_writer()
                            .write_all(format!("{thread} {number} {}\n", "x".repeat(50)).as_bytes())
                            .unwrap();
                    }
                });
            }
        });
        writer.close();
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let mut next = [0; 8];
        for line in written.lines() {
            let (thread, rest) = line.split_once(' ').unwrap();
            let thread: usize = thread.parse().unwrap();
            assert_eq!(rest, format!("{} {}", next[thread], "x".repeat(50)));
            next[thread] += 1;
        }
        assert_eq!(next, [5000; 8]);
    }

    /// Standard output that takes nothing until the gate opens.
    struct Blocked(mpsc::Receiver<()>, Paper);

    impl Write for Blocked {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts_lines_and_reports_them_when_output_flows_again() {
        let (gate, blocked) = mpsc::channel();
        let paper = Paper::default();
        let (lines, writer) = Lines::start(Blocked(blocked, paper.clone())).unwrap();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone());
        // The thread that writes reports by the subscriber of the process, as there.
        log.try_init().expect("the only test that sets it");
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        let count = 4 * MAX_QUEUED_BYTES / line.len();
        for _ in 0..count {
            (&lines).write_all(&line).unwrap();
        }
        let dropped = lines.0.lock().dropped;
        assert!(dropped > 0 && lines.0.lock().lines.len() <= MAX_QUEUED_BYTES);
        drop(gate);
        while lines.0.lock().dropped > 0 || !lines.0.lock().lines.is_empty() {
            std::thread::yield_now();
        }
        writer.close();
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let kept = written.lines().filter(|line| line.starts_with('x')).count() as u64;
        assert_eq!(kept + dropped, count as u64);
        let reports: Vec<&str> = written.lines().filter(|line| line.contains("dropped=")).collect();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains(&format!("dropped={dropped}")), "{}", reports[0]);
    }

    #[test]
    fn closing_does_not_wait_for_an_output_that_takes_nothing() {
        let (gate, blocked) = mpsc::channel();
        let (lines, writer) = Lines::start(Blocked(blocked, Paper::default())).unwrap();
        (&lines).write_all(b"a line\n").unwrap();
        let (closed, closing) = mpsc::channel();
        std::thread::spawn(move || {
            writer.close();
            let _ = closed.send(());
        });
        assert!(closing.recv_timeout(10 * CLOSE_TIMEOUT).is_ok());
        drop(gate);
    }
}
