//! Answers that everyone gets alike: made once for each snapshot, packed once, off the reactor when they are large.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::OnceCell;

use super::Api;
use super::changes::Difference;
use crate::aggregate::model::Snapshot;
use crate::report::json;
use crate::report::prometheus::{self, Format};

/// Processes up to which an answer is made on the reactor: about a millisecond of work.
const SMALL: usize = 64;
/// Bytes up to which an answer is not worth packing: it fits one packet.
const PACKED_FROM: usize = 1_400;
/// Differences kept ready for one snapshot: clients that ask at the same pace ask for the same one.
const DIFFERENCES: usize = 8;

/// An answer that depends on nothing but the snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Page {
    Snapshot,
    Since(u64),
    Processes,
    ProcessesSince(u64),
    Metrics(Format),
}

/// An answer as it is and packed.
#[derive(Debug, Default)]
pub(super) struct Body {
    plain: OnceCell<Bytes>,
    gzip: OnceCell<Bytes>,
}

/// One snapshot and the answers made from it so far.
#[derive(Debug)]
pub(super) struct Pages {
    pub snapshot: Arc<Snapshot>,
    whole: Arc<Body>,
    processes: Arc<Body>,
    classic: Arc<Body>,
    open_metrics: Arc<Body>,
    differences: Mutex<BTreeMap<u64, Arc<Body>>>,
    list_differences: Mutex<BTreeMap<u64, Arc<Body>>>,
}

impl Pages {
    pub(super) fn of(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            whole: Arc::default(),
            processes: Arc::default(),
            classic: Arc::default(),
            open_metrics: Arc::default(),
            differences: Mutex::default(),
            list_differences: Mutex::default(),
        }
    }

    fn body(&self, page: Page) -> Arc<Body> {
        match page {
            Page::Snapshot => Arc::clone(&self.whole),
            Page::Processes => Arc::clone(&self.processes),
            Page::Metrics(Format::Classic) => Arc::clone(&self.classic),
            Page::Metrics(Format::OpenMetrics) => Arc::clone(&self.open_metrics),
            Page::Since(since) => kept(&self.differences, since),
            Page::ProcessesSince(since) => kept(&self.list_differences, since),
        }
    }
}

/// The difference since `since`, as long as there is room for it.
fn kept(differences: &Mutex<BTreeMap<u64, Arc<Body>>>, since: u64) -> Arc<Body> {
    let mut kept = lock(differences);
    if kept.len() >= DIFFERENCES && !kept.contains_key(&since) {
        return Arc::default();
    }
    Arc::clone(kept.entry(since).or_default())
}

impl Api {
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.sources.snapshots.borrow())
    }

    /// The answer, and whether it is packed; several who ask at once share the work.
    pub(super) async fn page(&self, pages: &Arc<Pages>, page: Page, takes_gzip: bool) -> (Bytes, bool) {
        let body = pages.body(page);
        let (api, snapshot) = (self.clone(), Arc::clone(&pages.snapshot));
        let processes = snapshot.processes.len();
        let made = body.plain.get_or_init(|| off_reactor(processes, move || Bytes::from(api.render(page, &snapshot))));
        let plain = made.await.clone();
        if !takes_gzip || plain.len() < PACKED_FROM {
            return (plain, false);
        }
        let packed = body.gzip.get_or_init(|| off_reactor(processes, move || pack(&plain)));
        (packed.await.clone(), true)
    }

    /// Adds each snapshot to the sums of the metrics, until no more come.
    pub(super) async fn accumulate(self) {
        let mut snapshots = self.sources.snapshots.clone();
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let api = self.clone();
            off_reactor(snapshot.processes.len(), move || {
                lock(&api.totals).follow(&snapshot);
                lock(&api.changes).feed(&snapshot);
            })
            .await;
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    fn render(&self, page: Page, snapshot: &Snapshot) -> Vec<u8> {
        match page {
            Page::Snapshot => json::to_vec(&json::snapshot(snapshot)),
            Page::Since(since) => {
                let difference = lock(&self.changes).since(since, snapshot);
                json::to_vec(&json::difference(snapshot, since, known(difference.as_ref())))
            }
            Page::ProcessesSince(since) => {
                let difference = lock(&self.changes).since(since, snapshot);
                json::to_vec(&json::list_difference(snapshot, since, known(difference.as_ref())))
            }
            Page::Processes => json::to_vec(&json::process_list(snapshot)),
            Page::Metrics(format) => {
                let mut totals = lock(&self.totals);
                totals.feed(snapshot);
                prometheus::render(&totals, &self.version, format).into_bytes()
            }
        }
    }

    /// Those of the current snapshot.
    pub(super) fn pages(&self) -> Arc<Pages> {
        let snapshot = self.snapshot();
        let mut pages = lock(&self.pages);
        if !Arc::ptr_eq(&pages.snapshot, &snapshot) {
            *pages = Arc::new(Pages::of(snapshot));
        }
        Arc::clone(&pages)
    }
}

fn known(difference: Option<&Difference>) -> json::Known<'_> {
    difference.map(|difference| (difference.changed.as_slice(), difference.gone.as_slice()))
}

/// The fastest level: whoever asks, the daemon's own cost is what counts.
fn pack(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(plain);
    Bytes::from(encoder.finish().unwrap_or_default())
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
