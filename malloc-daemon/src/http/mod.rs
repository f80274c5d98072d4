//! Answers over HTTP: the current snapshot to whoever is allowed to ask; nothing here touches the kernel.

mod listen;
mod pages;
mod router;
mod serve;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use self::pages::Pages;
use crate::aggregate::model::Snapshot;
use crate::report::prometheus::Totals;

pub use self::listen::{BindError, Listen, ListenParseError, Listener};
pub use self::router::router;
pub use self::serve::serve;

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
    /// Connections served at one time; more wait in the backlog of the socket.
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
    snapshots: watch::Receiver<Arc<Snapshot>>,
    readiness: watch::Receiver<Readiness>,
    pages: Arc<Mutex<Arc<Pages>>>,
    totals: Arc<Mutex<Totals>>,
    hosts: Arc<Vec<String>>,
    version: Arc<str>,
}

impl Api {
    /// `version` is the daemon's; `hosts` are names, beside those of the loopback, under which clients may reach it
    /// (no port).
    #[must_use]
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        readiness: watch::Receiver<Readiness>,
        version: &str,
        hosts: &[String],
    ) -> Self {
        let pages = Pages::of(Arc::clone(&snapshots.borrow()));
        Self {
            snapshots,
            readiness,
            pages: Arc::new(Mutex::new(Arc::new(pages))),
            totals: Arc::default(),
            hosts: Arc::new(hosts.iter().map(|host| host.to_ascii_lowercase()).collect()),
            version: Arc::from(version),
        }
    }
}

#[cfg(test)]
mod tests;
