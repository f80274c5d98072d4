//! Where `top` has its figures from: a daemon, or a process that it observes itself.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use malloc_common::depth::Depth;

use super::super::client::{Answer, Url, get};
use super::super::recording;
use super::super::subject::{Signals, handle, watch};
use super::state::Look;
use crate::aggregate::model::Configuration;
use crate::http::Token;
use crate::observe::{Observer, Options, Selection};
use crate::report::json::{self, read};

/// Between two looks.
pub const PACE: Duration = Duration::from_secs(2);
/// How long a key or an event may wait.
pub const TICK: Duration = Duration::from_millis(50);

/// Part of a process's CPU time that counting its calls may take.
const BUDGET: f64 = 0.01;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The sequence that is known; 0: none.
    pub since: u64,
    /// The process that is shown whole.
    pub chosen: Option<u32>,
}

/// Who can be asked.
pub trait Source {
    /// What is true now.
    fn look(&mut self, ask: Ask) -> anyhow::Result<Look>;
    /// Called between looks, each [`TICK`].
    fn tick(&mut self) -> anyhow::Result<()>;
}

/// The daemon at `url`, or else the process.
pub fn source(daemon: Option<Daemon>, pid: Option<u32>) -> anyhow::Result<Box<dyn Source>> {
    match (daemon, pid) {
        (Some(daemon), _) => Ok(Box::new(daemon)),
        (None, Some(pid)) => Ok(Box::new(Own::start(pid)?)),
        (None, None) => anyhow::bail!("name a daemon with --url, or a process with --pid"),
    }
}

/// Answers until nobody asks any more.
pub fn work(source: anyhow::Result<Box<dyn Source>>, asked: &Receiver<Ask>, tell: &Sender<anyhow::Result<Look>>) {
    let mut source = match source {
        Ok(source) => source,
        Err(error) => {
            // Whoever waits for it has ended otherwise.
            let _ = tell.send(Err(error));
            return;
        }
    };
    loop {
        let answer = match asked.recv_timeout(TICK) {
            Ok(ask) => source.look(ask),
            Err(RecvTimeoutError::Timeout) => match source.tick() {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if tell.send(answer).is_err() {
            return;
        }
    }
}

/// A daemon that is asked, with the token that it wants.
pub struct Daemon {
    pub url: Url,
    pub token: Option<Token>,
}

impl Daemon {
    fn get(&self, path: &str) -> anyhow::Result<Answer> {
        get(&self.url, self.token.as_ref(), path)
    }
}

impl Source for Daemon {
    fn look(&mut self, ask: Ask) -> anyhow::Result<Look> {
        let list = self.get(&format!("/v1/processes?since={}", ask.since))?;
        let health = self.get("/v1/health")?;
        let one = ask.chosen.map(|pid| {
            let answer = self.get(&format!("/v1/processes/{pid}")).map_err(|error| format!("{error:#}"));
            (pid, answer.and_then(|answer| read::one_process(&answer.body)))
        });
        Ok(Look {
            list: read::list(&list.body).map_err(anyhow::Error::msg)?,
            one,
            health: Some(read::health(&health.body).map_err(anyhow::Error::msg)?),
        })
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// One process with its children, observed as `record` does.
struct Own {
    observer: Observer,
    signals: Signals,
}

impl Own {
    fn start(pid: u32) -> anyhow::Result<Self> {
        // Says what is wrong with the number before anything is loaded.
        drop(handle(pid)?);
        // It may be looked at for hours: what `serve` allows itself is enough here too.
        let options =
            Options { budget: Some(BUDGET), faults: false, ..recording(Depth::Call, Selection::Chosen, false, false) };
        let mut observer = Observer::start(options)?;
        if let Err(why) = observer.probe_process(pid, Depth::Call) {
            tracing::warn!(pid, why, "its system calls alone are shown");
        }
        observer.choose(pid)?;
        Ok(Self { observer, signals: Signals::catch(&[])? })
    }
}

impl Source for Own {
    fn look(&mut self, ask: Ask) -> anyhow::Result<Look> {
        self.tick()?;
        let snapshot = self.observer.collect();
        let list = json::to_vec(&json::list_difference(&snapshot, ask.since, None));
        let health = json::to_vec(&json::health(&snapshot, &Configuration::default(), env!("CARGO_PKG_VERSION")));
        let one = ask.chosen.map(|pid| {
            let told = json::one_process(&snapshot, pid).ok_or_else(|| format!("process {pid} is not observed"));
            (pid, told.and_then(|told| read::one_process(&json::to_vec(&told))))
        });
        Ok(Look {
            list: read::list(&list).map_err(anyhow::Error::msg)?,
            one,
            health: Some(read::health(&health).map_err(anyhow::Error::msg)?),
        })
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        let drain = &mut |observer: &mut Observer| {
            observer.drain_events(&mut |_| {});
            false
        };
        watch(&mut self.observer, None, &mut self.signals, Some(Instant::now()), Duration::ZERO, &|_| false, drain)?;
        Ok(())
    }
}
