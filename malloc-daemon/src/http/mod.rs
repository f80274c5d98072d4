//! Answers over HTTP: the current snapshot to whoever is allowed to ask; nothing here touches the kernel.

mod access;
mod changes;
mod dashboard;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod history;
mod listen;
mod negotiate;
mod pages;
mod places;
mod push;
mod router;
mod serve;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use self::changes::Changes;
use self::pages::Pages;
use crate::aggregate::model::{Configuration, Snapshot};
use crate::history::Reader;
use crate::report::prometheus::Totals;

pub use self::access::{Access, SecretError, Token};
pub(crate) use self::history::COMPLETE;
pub use self::listen::{BindError, Listen, ListenParseError, Listener, SocketOptions};
pub use self::push::{Collector, CollectorParseError, push};
pub use self::router::router;
pub use self::serve::serve;
pub use self::tls::Tls;

/// Where the daemon listens unless told otherwise: this machine only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7878";

/// Whether the probes are in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Probes are being attached.
    Starting,
    /// They are attached.
    Ready,
    /// They cannot be: why.
    Failed(String),
}

/// Bounds on what a client can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at one time. For one more, the one that has asked nothing for longest is closed; where all are
    /// being answered, it waits.
    pub connections: usize,
    /// From the begin of a connection, or the end of an answer, to the end of the next request's headers.
    pub header_timeout: Duration,
    /// The age at which a connection is closed after the answer under way: a client that does not read
    /// gives its place back.
    pub lifetime: Duration,
    /// How long a connection may still write when it is to be closed.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            header_timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(60),
            drain: Duration::from_secs(1),
        }
    }
}

/// What the answers are made from; cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    sources: Sources,
    pages: Arc<Mutex<Arc<Pages>>>,
    totals: Arc<Mutex<Totals>>,
    changes: Arc<Mutex<Changes>>,
    /// Tells answers of this run from those of another, in which the sequences are others.
    run: u64,
    version: Arc<str>,
    history: Option<Reader>,
    questions: Arc<Semaphore>,
}

/// What changes while the daemon runs.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The current snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether probes are attached.
    pub readiness: watch::Receiver<Readiness>,
    /// Which configuration is in force.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// Who may ask.
    pub access: watch::Receiver<Arc<Access>>,
}

impl Api {
    /// `totals` are what `/metrics` sums up from now on; `version` is the daemon's.
    #[must_use]
    pub fn new(sources: Sources, totals: Totals, version: &str) -> Self {
        let pages = Pages::of(Arc::clone(&sources.snapshots.borrow()));
        Self {
            sources,
            pages: Arc::new(Mutex::new(Arc::new(pages))),
            totals: Arc::new(Mutex::new(totals)),
            changes: Arc::default(),
            run: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
            version: Arc::from(version),
            history: None,
            questions: Arc::new(Semaphore::new(history::AT_ONCE)),
        }
    }

    /// With what the history on disk knows.
    #[must_use]
    pub fn with_history(self, history: Option<Reader>) -> Self {
        Self { history, ..self }
    }
}

#[cfg(test)]
mod tests;
