//! A non-blocking log writer: a bounded queue with a worker thread, as in `tracing_appender::non_blocking`.
//!
//! The worker thread writes the queued lines to standard output in batches, so that no request pays for a system call or
//! blocks on standard output. If standard output does not keep up, lines are dropped and counted in
//! `log_lines_dropped_total`.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// The interval between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(5);
/// Bounds the queue; the batch that the worker thread is writing may be as large again.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// Bounds [`WorkerGuard::close`], for a standard output that is blocked at the shutdown of the process.
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
    not_empty: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The producer side of the queue.
#[derive(Clone, Debug)]
pub struct NonBlocking(Arc<Shared>);

/// A guard of the worker thread, which flushes the queue.
#[derive(Debug)]
pub struct WorkerGuard {
    producer: NonBlocking,
    ended: mpsc::Receiver<()>,
}

impl NonBlocking {
    /// Starts the worker thread, which writes to `output`.
    pub fn start(mut output: impl Write + Send + 'static) -> io::Result<(Self, WorkerGuard)> {
        let producer = Self(Arc::default());
        let shared = producer.0.clone();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            loop {
                let idle = |queue: &mut Queue| queue.lines.is_empty() && !queue.closed;
                let mut queue =
                    shared.not_empty.wait_while(shared.lock(), idle).unwrap_or_else(PoisonError::into_inner);
                let lines = std::mem::take(&mut queue.lines);
                let dropped = std::mem::take(&mut queue.dropped);
                let closed = queue.closed;
                drop(queue);
                // A failure to write the log cannot be logged.
                let _ = output.write_all(&lines).and_then(|()| output.flush());
                if dropped > 0 {
                    tracing::warn!(dropped, "lines of the log were dropped: standard output did not keep up");
                } else if closed {
                    break;
                }
                if !closed {
                    std::thread::sleep(WRITE_INTERVAL);
                }
            }
            let _ = end.send(());
        })?;
        Ok((producer.clone(), WorkerGuard { producer, ended }))
    }
}

impl WorkerGuard {
    /// Flushes the queue. Returns when all lines are written, or after [`CLOSE_TIMEOUT`].
    pub fn close(self) {
        self.producer.0.lock().closed = true;
        self.producer.0.not_empty.notify_one();
        let _ = self.ended.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Write for &NonBlocking {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.lock();
        if queue.lines.len() + line.len() > MAX_QUEUED_BYTES {
            queue.dropped += 1;
            drop(queue);
            metrics::counter!("log_lines_dropped_total").increment(1);
            return Ok(line.len());
        }
        let was_empty = queue.lines.is_empty();
        queue.lines.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.0.not_empty.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for NonBlocking {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn concurrent_lines_are_each_written_completely_and_once() {
        let buffer = Buffer::default();
        let (producer, guard) = NonBlocking::start(buffer.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let producer = &producer;
                scope.spawn(move || {
                    for number in 0..5000 {
                        // Stays below the bound, so that no line is dropped.
                        while producer.0.lock().lines.len() > MAX_QUEUED_BYTES / 2 {
                            std::thread::yield_now();
                        }
                        producer
                            .make_writer()
                            .write_all(format!("{thread} {number} {}\n", "x".repeat(50)).as_bytes())
                            .unwrap();
                    }
                });
            }
        });
        guard.close();
        let written = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let mut next = [0; 8];
        for line in written.lines() {
            let (thread, rest) = line.split_once(' ').unwrap();
            let thread: usize = thread.parse().unwrap();
            assert_eq!(rest, format!("{} {}", next[thread], "x".repeat(50)));
            next[thread] += 1;
        }
        assert_eq!(next, [5000; 8]);
    }

    /// An output that blocks until the gate opens.
    struct Blocked(mpsc::Receiver<()>, Buffer);

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
    fn a_full_queue_drops_lines_and_reports_their_number_once_output_continues() {
        let (gate, blocked) = mpsc::channel();
        let buffer = Buffer::default();
        let (producer, guard) = NonBlocking::start(Blocked(blocked, buffer.clone())).unwrap();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(producer.clone());
        // The worker thread reports through the global subscriber.
        log.try_init().expect("the only test that sets it");
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        (&producer).write_all(&line).unwrap();
        // The worker thread takes the first line and blocks. It takes neither lines nor their number before the gate opens.
        while !producer.0.lock().lines.is_empty() {
            std::thread::yield_now();
        }
        let queued = MAX_QUEUED_BYTES / line.len();
        let dropped = 3 * queued;
        for _ in 0..queued + dropped {
            (&producer).write_all(&line).unwrap();
        }
        assert_eq!(producer.0.lock().dropped, dropped as u64);
        assert_eq!(producer.0.lock().lines.len(), MAX_QUEUED_BYTES);
        drop(gate);
        guard.close();
        let written = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let logged = written.lines().filter(|line| line.starts_with('x')).count();
        assert_eq!(logged, 1 + queued);
        let reports: Vec<&str> = written.lines().filter(|line| line.contains("dropped=")).collect();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains(&format!("dropped={dropped}")), "{}", reports[0]);
    }

    #[test]
    fn closing_does_not_wait_for_a_blocked_output() {
        let (gate, blocked) = mpsc::channel();
        let (producer, guard) = NonBlocking::start(Blocked(blocked, Buffer::default())).unwrap();
        (&producer).write_all(b"a line\n").unwrap();
        let (closed, closing) = mpsc::channel();
        std::thread::spawn(move || {
            guard.close();
            let _ = closed.send(());
        });
        assert!(closing.recv_timeout(10 * CLOSE_TIMEOUT).is_ok());
        drop(gate);
    }
}
