//! The flight recorder: counters at falling resolution and what happened, in a store of bounded size on disk.

mod answer;
mod backend;
mod batch;
mod codec;
mod passing;
pub mod query;
pub mod record;
pub mod row;
mod store;
pub mod tiers;
pub mod time;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::aggregate::model::Snapshot;
use crate::host::privileges::{self, Keep};
use query::View;
use store::Source;
use tiers::TIERS;

pub use store::{FILE, LEAST_BYTES, StoreError};

/// Size of the store unless told otherwise.
pub const DEFAULT_BYTES: u64 = 64 << 20;
/// Snapshots that wait to be written: a disk may stall for this many steps.
const WAITING: usize = 6;
/// How long the end waits for the last step to be written.
const LAST_STEP: Duration = Duration::from_secs(3);

/// Whether there is a history, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It is being opened.
    #[default]
    Starting,
    /// Steps are written.
    Recording,
    /// They are not: why.
    Off(String),
}

/// How the history is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it records.
    pub state: State,
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes that it may have.
    pub max_bytes: u64,
    /// Steps written by this daemon.
    pub steps: u64,
    /// End of the last of them, milliseconds since 1970.
    pub last_unix_ms: Option<u64>,
    /// Steps that were not written: the queue was full, or the store failed. Their counts are part of the next one;
    /// images that began and ended in them are lost.
    pub dropped: u64,
    /// Raises and crossings that left the daemon's memory before they could be written.
    pub missed: u64,
    /// Steps and incidents that went before their time because the store was full, since the store was made.
    pub pruned: u64,
    /// Where the damaged store is that this one replaces.
    pub set_aside: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    status: Mutex<Status>,
    source: RwLock<Option<Arc<Source>>>,
    dropped: AtomicU64,
}

impl Shared {
    fn status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Hands snapshots to the thread that writes them.
#[derive(Debug)]
pub struct History {
    queue: SyncSender<Arc<Snapshot>>,
    done: Receiver<()>,
    shared: Arc<Shared>,
    next_ms: u64,
    passing: passing::Passing,
}

/// What others may know and read of the history; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl History {
    /// Starts the thread, which opens the store in `folder`.
    ///
    /// # Errors
    ///
    /// The system gives no thread. A store that cannot be opened is no error: [`Status::state`] tells.
    pub fn start(folder: &Path, max_bytes: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.status(|status| (status.folder, status.max_bytes) = (folder.to_owned(), max_bytes.max(LEAST_BYTES)));
        let (queue, waiting) = sync_channel(WAITING);
        let (finished, done) = sync_channel(1);
        let writer = writer::Writer::new(folder.to_owned(), max_bytes, Arc::clone(&shared));
        std::thread::Builder::new().name("history".to_owned()).spawn(move || {
            privileges::keep_or_say(Keep::Nothing);
            writer.run(&waiting);
            // Nobody waits any more when the disk was too slow.
            let _ = finished.try_send(());
        })?;
        Ok(Self { queue, done, shared, next_ms: 0, passing: passing::Passing::default() })
    }

    /// Takes a snapshot when a step is due; never waits.
    pub fn offer(&mut self, snapshot: &Arc<Snapshot>) {
        let now_ms = snapshot.window.duration_ms;
        if now_ms >= self.next_ms {
            // A step that comes late is not made up for.
            self.next_ms = (self.next_ms + TIERS[0].step_ms).max(now_ms + TIERS[0].step_ms / 2);
            let whole = self.passing.whole(snapshot);
            self.write(&whole);
        } else {
            self.passing.note(snapshot);
        }
    }

    fn write(&self, snapshot: &Arc<Snapshot>) {
        if self.queue.try_send(Arc::clone(snapshot)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Steps and incidents that were not written so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let status = self.reader().status();
        status.dropped + status.missed
    }

    /// For those who ask.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// Writes a last step and closes the store; a disk that hangs is not waited for.
    pub fn stop(mut self, last: &Arc<Snapshot>) {
        if last.sequence != 0 {
            let whole = self.passing.whole(last);
            self.write(&whole);
        }
        drop(self.queue);
        if matches!(self.done.recv_timeout(LAST_STEP), Err(RecvTimeoutError::Timeout)) {
            tracing::warn!("the disk is too slow for the last step of the history");
        }
    }
}

/// The store in a folder at this moment, while a daemon writes it or not.
///
/// # Errors
///
/// See [`StoreError`].
pub fn view(folder: &Path, patience: Duration) -> Result<View, StoreError> {
    View::new(Arc::new(store::open_for_reading(folder)?), Instant::now() + patience)
}

impl Reader {
    /// The store at this moment; what is asked of it must be answered within `patience`.
    ///
    /// # Errors
    ///
    /// There is no store at the moment, or it cannot be read.
    pub fn view(&self, patience: Duration) -> Result<View, StoreError> {
        let source = self.shared.source.read().unwrap_or_else(PoisonError::into_inner).clone();
        let source = source.ok_or_else(|| {
            StoreError::Failed(match self.status().state {
                State::Off(why) => why,
                State::Starting | State::Recording => "it is being opened".to_owned(),
            })
        })?;
        View::new(source, Instant::now() + patience)
    }

    /// How the history is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.dropped = self.shared.dropped.load(Ordering::Relaxed);
        status
    }
}

#[cfg(test)]
mod tests;
