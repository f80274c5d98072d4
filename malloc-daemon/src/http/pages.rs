//! Answers that everyone gets alike: made once for each snapshot, off the reactor when they are large.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use tokio::sync::OnceCell;

use super::Api;
use crate::aggregate::model::Snapshot;
use crate::report::json;
use crate::report::prometheus::{self, Format};

/// Processes up to which an answer is made on the reactor: about a millisecond of work.
const SMALL: usize = 64;

/// An answer that depends on nothing but the snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Page {
    Snapshot,
    Processes,
    Metrics(Format),
}

/// One snapshot and the answers made from it so far.
#[derive(Debug)]
pub(super) struct Pages {
    snapshot: Arc<Snapshot>,
    snapshot_page: OnceCell<Bytes>,
    processes: OnceCell<Bytes>,
    classic: OnceCell<Bytes>,
    open_metrics: OnceCell<Bytes>,
}

impl Pages {
    pub(super) fn of(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            snapshot_page: OnceCell::new(),
            processes: OnceCell::new(),
            classic: OnceCell::new(),
            open_metrics: OnceCell::new(),
        }
    }
}

impl Api {
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.sources.snapshots.borrow())
    }

    /// The answer; several who ask at once share the work.
    pub(super) async fn page(&self, page: Page) -> Bytes {
        let pages = self.pages();
        let cell = match page {
            Page::Snapshot => &pages.snapshot_page,
            Page::Processes => &pages.processes,
            Page::Metrics(Format::Classic) => &pages.classic,
            Page::Metrics(Format::OpenMetrics) => &pages.open_metrics,
        };
        let (api, snapshot) = (self.clone(), Arc::clone(&pages.snapshot));
        let processes = snapshot.processes.len();
        cell.get_or_init(|| off_reactor(processes, move || Bytes::from(api.render(page, &snapshot)))).await.clone()
    }

    /// Adds each snapshot to the sums of the metrics, until no more come.
    pub(super) async fn accumulate(self) {
        let mut snapshots = self.sources.snapshots.clone();
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let api = self.clone();
            off_reactor(snapshot.processes.len(), move || lock(&api.totals).feed(&snapshot)).await;
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    fn render(&self, page: Page, snapshot: &Snapshot) -> Vec<u8> {
        match page {
            Page::Snapshot => json::to_vec(&json::snapshot(snapshot)),
            Page::Processes => json::to_vec(&json::process_list(snapshot)),
            Page::Metrics(format) => {
                let mut totals = lock(&self.totals);
                totals.feed(snapshot);
                prometheus::render(&totals, &self.version, format).into_bytes()
            }
        }
    }

    /// Those of the current snapshot.
    fn pages(&self) -> Arc<Pages> {
        let snapshot = self.snapshot();
        let mut pages = lock(&self.pages);
        if !Arc::ptr_eq(&pages.snapshot, &snapshot) {
            *pages = Arc::new(Pages::of(snapshot));
        }
        Arc::clone(&pages)
    }
}

/// Runs `work` where it holds nobody up.
pub(super) async fn off_reactor<T: Send + 'static>(processes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if processes <= SMALL {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // A blocking task is cancelled only while the runtime shuts down, and this one with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a thread left behind that panicked is still the sum of whole steps or is made anew.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
