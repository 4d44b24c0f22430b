//! Keeps one program running until it is told to stop.

use std::time::Duration;

use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::program::{Program, how_it_ended};

/// Before a program that ran well is started again.
const SHORTEST: Duration = Duration::from_millis(100);
/// Between two starts of one that ends at once, again and again: it must be back within 5 s of what it lacks.
const LONGEST: Duration = Duration::from_secs(3);
/// One that ran for so long ran well.
const WELL: Duration = Duration::from_secs(2);

/// What a keeper tells: few words a second at most.
#[derive(Clone, Debug)]
pub struct News {
    pub part: String,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Started { pid: u32 },
    Ended { how: String },
}

#[derive(Debug)]
pub struct Keeper {
    pub name: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    /// `hurry`: stop without patience.
    pub fn keep(program: Program, news: UnboundedSender<News>, hurry: CancellationToken) -> Self {
        let (name, stop) = (program.name.clone(), CancellationToken::new());
        let task = tokio::spawn(keep(program, news, stop.clone(), hurry));
        Self { name, stop, task }
    }

    /// Returns when the program has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        // It ends only this way, or by a panic that was reported already.
        let _ = self.task.await;
    }
}

async fn keep(
    program: Program,
    news: UnboundedSender<News>,
    stop: CancellationToken,
    hurry: CancellationToken,
) {
    let mut pause = SHORTEST;
    let tell = |what| {
        // Nobody listens any more while all are being stopped.
        let _ = news.send(News { part: program.name.clone(), what });
    };
    while !stop.is_cancelled() {
        let started = Instant::now();
        match program.start().await {
            Ok(mut child) => {
                if let Some(pid) = child.id() {
                    tell(What::Started { pid });
                }
                tokio::select! {
                    status = child.wait() => {
                        let how = status.map_or_else(|error| error.to_string(), how_it_ended);
                        tell(What::Ended { how });
                    }
                    () = stop.cancelled() => return program.end(child, hurry.cancelled()).await,
                }
            }
            Err(error) => tell(What::Ended { how: format!("{error:#}") }),
        }
        pause = if started.elapsed() >= WELL { SHORTEST } else { LONGEST.min(pause * 2) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
