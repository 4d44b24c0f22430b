//! Lines of the log on their way to standard output. A request that wrote its own would pay for a system call; here a
//! thread writes, a few milliseconds later, whatever has come together by then. Nothing is dropped: where standard
//! output does not keep up, whoever logs waits.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Between two writes.
const PAUSE: Duration = Duration::from_millis(5);
/// What may wait. Bytes.
const MOST_WAITING: usize = 1024 * 1024;

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
    went: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    lines: Lines,
    thread: JoinHandle<()>,
}

impl Lines {
    pub fn start(mut to: impl Write + Send + 'static) -> io::Result<(Self, Writer)> {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut closed = false;
            while !closed {
                let ready = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.closed;
                let mut waiting =
                    shared.came.wait_while(shared.lock(), ready).unwrap_or_else(PoisonError::into_inner);
                let come = std::mem::take(&mut waiting.lines);
                closed = waiting.closed;
                drop(waiting);
                shared.went.notify_all();
                // Nobody can be told that the log cannot be written.
                let _ = to.write_all(&come).and_then(|()| to.flush());
                if !closed {
                    std::thread::sleep(PAUSE);
                }
            }
        })?;
        Ok((lines.clone(), Writer { lines, thread }))
    }
}

impl Writer {
    /// Returns when all that was logged is written.
    pub fn close(self) {
        self.lines.0.lock().closed = true;
        self.lines.0.came.notify_one();
        let _ = self.thread.join();
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let full = |waiting: &mut Waiting| waiting.lines.len() >= MOST_WAITING && !waiting.closed;
        let mut waiting = self.0.went.wait_while(self.0.lock(), full).unwrap_or_else(PoisonError::into_inner);
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.came.notify_one();
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
}
