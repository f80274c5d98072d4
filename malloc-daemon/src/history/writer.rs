//! The thread that writes: takes snapshots from a bounded queue, opens the store, comes back after failures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use redb::Database;

use super::batch::Recorder;
use super::store::{self, Source, Store, StoreError};
use super::{Shared, State};
use crate::aggregate::model::Snapshot;

/// Between two attempts to open a store that could not be opened.
const RETRY: Duration = Duration::from_secs(60);
/// How long the readers of a store that is closed are waited for; each has a shorter deadline of its own.
const READERS: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    folder: PathBuf,
    max_bytes: u64,
    shared: Arc<Shared>,
    recorder: Recorder,
    store: Option<Store>,
    /// When opening failed last.
    failed_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(folder: PathBuf, max_bytes: u64, shared: Arc<Shared>) -> Self {
        Self { folder, max_bytes, shared, recorder: Recorder::default(), store: None, failed_at: None }
    }

    /// Writes until no more comes.
    pub(super) fn run(mut self, queue: &Receiver<Arc<Snapshot>>) {
        self.open();
        for snapshot in queue {
            if self.store.is_none() && self.failed_at.is_none_or(|at| at.elapsed() >= RETRY) {
                self.open();
            }
            self.step(&snapshot);
        }
        self.close();
    }

    fn open(&mut self) {
        let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        match store::open(&self.folder, self.max_bytes, &date) {
            Ok(opened) => {
                if let Some((aside, why)) = opened.set_aside {
                    let aside = aside.display().to_string();
                    tracing::error!(why, aside, "the history was damaged: it is set aside and started anew");
                    self.recorder.forget_images();
                    self.shared.status(|status| status.set_aside = Some(aside));
                }
                let store = opened.store;
                self.recorder.forget_names();
                self.failed_at = None;
                self.share(Some(store.database()));
                self.store = Some(store);
                self.tell(State::Recording);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.failed_at = Some(Instant::now());
        tracing::warn!(%error, "running on without a history");
        self.tell(State::Off(error.to_string()));
    }

    fn step(&mut self, snapshot: &Snapshot) {
        match self.write(snapshot) {
            Ok(()) => {}
            Err(Some(StoreError::NoRoom(why))) => {
                // A failed write leaves the store as it was before, but closed.
                tracing::warn!(why, "the history has no room: its oldest part goes");
                self.close();
                self.open();
                let live = self.recorder.live();
                if let Some(store) = &mut self.store {
                    store.note_full_disk();
                    if let Err(error) = store.make_room(store.bytes() / 4, &live) {
                        tracing::warn!(%error, "the history cannot be made smaller");
                    }
                }
                if let Err(error) = self.write(snapshot) {
                    self.drop_step(error);
                }
            }
            Err(error) => self.drop_step(error),
        }
        let (bytes, pruned) = self.store.as_ref().map_or((0, 0), |store| (store.bytes(), store.pruned));
        let missed = self.recorder.missed;
        self.shared.status(|status| (status.bytes, status.pruned, status.missed) = (bytes, pruned, missed));
    }

    /// `Err(None)`: there is no store.
    fn write(&mut self, snapshot: &Snapshot) -> Result<(), Option<StoreError>> {
        let Some(store) = &mut self.store else { return Err(None) };
        let recorder = &mut self.recorder;
        let written = catch_unwind(AssertUnwindSafe(|| {
            let pending = recorder.batch(snapshot, store.next.image);
            store.append(&pending.batch)?;
            recorder.committed(pending, snapshot);
            store.keep_within(&recorder.live())
        }));
        match written {
            Ok(Ok(())) => {
                self.shared.status(|status| {
                    status.steps += 1;
                    status.last_unix_ms = Some(snapshot.window.end_unix_ms);
                });
                Ok(())
            }
            Ok(Err(error)) => Err(Some(store.told(error))),
            Err(panic) => Err(Some(StoreError::Damaged(store::panic_text(&*panic)))),
        }
    }

    /// The step is lost; its counts are part of the next one that is written.
    fn drop_step(&mut self, error: Option<StoreError>) {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = error {
            self.close();
            match error {
                // Opening it looks at the whole file, and sets it aside if it is damaged.
                StoreError::Damaged(_) => self.open(),
                other => self.failed(&other),
            }
        }
    }

    fn close(&mut self) {
        self.share(None);
        let Some(store) = self.store.take() else { return };
        let held = store.database();
        drop(store);
        let patience = Instant::now() + READERS;
        while Arc::strong_count(&held) > 1 && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn share(&self, database: Option<Arc<Database>>) {
        *self.shared.source.write().unwrap_or_else(PoisonError::into_inner) =
            database.map(|database| Arc::new(Source::Shared(database)));
    }

    fn tell(&self, state: State) {
        self.shared.status(|status| status.state = state);
    }
}
