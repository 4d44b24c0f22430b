//! A process supervisor: starts one program and restarts it after every exit, until it is stopped.

use std::{process::ExitStatus, sync::Arc, time::Duration};

use tokio::{
    process::Child,
    sync::{Notify, mpsc::UnboundedSender},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::program::{Program, exit_reason};

/// The delay before the restart of a program that was stable.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(100);
/// Bounds the delay between restarts of a program that exits at once. It must be back within 5 s after its dependency.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(3);
/// The run time after which a program counts as stable.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// A change of a supervised process: a few per second at most.
#[derive(Clone, Debug)]
pub struct Event {
    pub process: String,
    pub kind: EventKind,
}

#[derive(Clone, Debug)]
pub enum EventKind {
    Started { pid: u32 },
    Exited { reason: String },
}

#[derive(Debug)]
pub struct Supervisor {
    pub name: String,
    /// Kills the program (SIGKILL) when it is notified. The supervisor restarts the program as after every exit.
    pub kill_switch: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts to supervise a program. `force_stop` skips the time that the program has to stop.
    pub fn spawn(program: Program, events: UnboundedSender<Event>, force_stop: CancellationToken) -> Self {
        let (name, stop) = (program.name.clone(), CancellationToken::new());
        let kill_switch = Arc::<Notify>::default();
        let task = tokio::spawn(supervise(program, events, kill_switch.clone(), stop.clone(), force_stop));
        Self { name, kill_switch, stop, task }
    }

    /// Stops the program and returns after its exit.
    pub async fn stop(self) {
        self.stop.cancel();
        // The task fails only by a panic, which was reported already.
        let _ = self.task.await;
    }
}

async fn supervise(
    program: Program,
    events: UnboundedSender<Event>,
    kill_switch: Arc<Notify>,
    stop: CancellationToken,
    force_stop: CancellationToken,
) {
    let mut delay = MIN_RESTART_DELAY;
    let report = |kind| {
        // The receiver is gone while all supervisors are being stopped.
        let _ = events.send(Event { process: program.name.clone(), kind });
    };
    while !stop.is_cancelled() {
        let started = Instant::now();
        match program.start().await {
            Ok(mut child) => {
                if let Some(pid) = child.id() {
                    report(EventKind::Started { pid });
                }
                tokio::select! {
                    status = wait_or_kill(&mut child, &kill_switch) => {
                        let reason = status.map_or_else(|error| error.to_string(), exit_reason);
                        report(EventKind::Exited { reason });
                    }
                    () = stop.cancelled() => return program.stop(child, force_stop.cancelled()).await,
                }
            }
            Err(error) => report(EventKind::Exited { reason: format!("{error:#}") }),
        }
        let is_stable = started.elapsed() >= STABLE_AFTER;
        delay = if is_stable { MIN_RESTART_DELAY } else { MAX_RESTART_DELAY.min(delay * 2) };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Waits for the exit of a program, and kills it if the switch is used.
async fn wait_or_kill(child: &mut Child, kill_switch: &Notify) -> std::io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = kill_switch.notified() => {}
    }
    child.start_kill()?;
    child.wait().await
}
