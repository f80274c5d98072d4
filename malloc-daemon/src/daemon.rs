//! Wires the parts of the service: one thread observes, the runtime answers, and both stop in order.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use malloc_common::depth::Depth;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use crate::aggregate::Keep;
use crate::aggregate::model::{DaemonCost, Host, LossReason, Snapshot, Window};
use crate::config::Deep;
use crate::history::History;
use crate::host::privileges;
use crate::http::Readiness;
use crate::observe::{Observer, Options, Probing, Selection, StartError, pace};
use crate::own_memory;
use crate::probes::Capacities;

/// Ended processes stay in the answers for a minute: a scrape every 15 s sees each at least three times.
const ENDED_NS: u64 = 60_000_000_000;
/// Ended processes kept at most: a minute of 60 short-lived programs a second. 3,600 x about 8 KiB = 29 MiB.
const ENDED_IMAGES: usize = 3_600;
/// Those that were killed for memory stay for an hour: somebody comes to look.
const KILLED_NS: u64 = 3_600_000_000_000;
/// How many of them are kept at most, about 2 MiB.
const KILLED_IMAGES: usize = 256;

/// An idle process is described anew every 30 s: most of a machine's processes do nothing most of the time.
const UNCHANGED_NS: u64 = 30_000_000_000;

/// Changes that may wait for the thread: more are refused until it has taken them over.
const CHANGES: usize = 16;
/// What announces a change to the thread.
const CHANGED: u8 = b'c';

/// What the service observes.
#[derive(Clone, Debug, PartialEq)]
pub struct Wishes {
    /// How deep all processes are probed.
    pub depth: Depth,
    /// Processes probed down to `call`.
    pub deep: Deep,
    /// Count page faults of mapped chunks. Taken at the start: a change needs a restart.
    pub faults: bool,
    /// Probe functions that are called often also where that is dear. Taken at the start.
    pub stepped: bool,
    /// Time between two snapshots.
    pub interval: Duration,
    /// Where inferences outlive the daemon.
    pub cache_dir: Option<PathBuf>,
    /// The part of a process's CPU time that its deep probes may take.
    pub budget: f64,
    /// Whether programs carry probes at all.
    pub probing: Probing,
}

/// The observing thread; stopping it detaches every probe.
pub struct Observing {
    thread: JoinHandle<Result<(), StartError>>,
    wake: UnixStream,
    wishes: mpsc::SyncSender<Wishes>,
    /// The current snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether probes are attached.
    pub readiness: watch::Receiver<Readiness>,
    /// Changes whenever the thread has done all that was due.
    pub progress: watch::Receiver<()>,
}

/// The thread's ends of the channels.
struct Posts {
    woken: UnixStream,
    wishes: mpsc::Receiver<Wishes>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    readiness: watch::Sender<Readiness>,
    progress: watch::Sender<()>,
}

impl Observing {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system gives no thread or no socket.
    pub fn start(wishes: Wishes, mut history: Option<History>) -> std::io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let (wishes_sender, new_wishes) = mpsc::sync_channel(CHANGES);
        let (snapshot_sender, snapshots) = watch::channel(Arc::new(nothing_yet()));
        let (readiness_sender, readiness) = watch::channel(Readiness::Starting);
        let (progress_sender, progress) = watch::channel(());
        let posts = Posts {
            woken,
            wishes: new_wishes,
            snapshots: snapshot_sender,
            readiness: readiness_sender,
            progress: progress_sender,
        };
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(move || {
            let result = observe(wishes, &posts, history.as_mut());
            if let Some(history) = history {
                history.stop(&posts.snapshots.borrow());
            }
            if let Err(error) = &result {
                posts.readiness.send_replace(Readiness::Failed(error.to_string()));
            }
            result
        })?;
        Ok(Self { thread, wake, wishes: wishes_sender, snapshots, readiness, progress })
    }

    /// Asks for something else from the next collection on; what is probed already and still wanted is left as it is.
    /// False: the thread has ended, or is too far behind with changes.
    #[must_use]
    pub fn change(&mut self, wishes: Wishes) -> bool {
        self.wishes.try_send(wishes).is_ok() && self.wake.write_all(&[CHANGED]).is_ok()
    }

    /// Stops the thread and waits until the probes are gone.
    ///
    /// # Errors
    ///
    /// Why observing could not start, if it could not.
    pub fn stop(self) -> Result<(), StartError> {
        drop(self.wake);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn nothing_yet() -> Snapshot {
    Snapshot {
        sequence: 0,
        host: Host::default(),
        window: Window::default(),
        complete: false,
        losses: Vec::new(),
        processes: Vec::new(),
        processes_dropped: 0,
        raises: Vec::new(),
        mappings: Vec::new(),
        stacks: Vec::new(),
        probes: Vec::new(),
        cost: DaemonCost::default(),
        calibration: Arc::default(),
    }
}

fn observe(mut wishes: Wishes, posts: &Posts, mut history: Option<&mut History>) -> Result<(), StartError> {
    let mut observer = Observer::start(Options {
        depth: wishes.depth,
        deepens: true,
        selection: Selection::Everything,
        tracing: false,
        faults: wishes.faults,
        stepped: wishes.stepped,
        capacities: Capacities::default(),
        keep: Keep {
            ended_ns: ENDED_NS,
            ended_images: ENDED_IMAGES,
            killed_ns: KILLED_NS,
            killed_images: KILLED_IMAGES,
            unchanged_ns: UNCHANGED_NS,
        },
        budget: Some(wishes.budget),
    })?;
    if let Some(path) = &wishes.cache_dir
        && let Err(error) = observer.cache().keep_in(path)
    {
        tracing::warn!(%error, "nothing is kept from one start to the next");
    }
    let keep = if observer.attaches_many() { privileges::Keep::Observing } else { privileges::Keep::Starting };
    privileges::keep_or_say(keep);
    observer.switch(wishes.probing);
    observer.probe_everything(&|| is_over(&posts.woken))?;
    if is_over(&posts.woken) {
        return Ok(());
    }
    select(&mut observer, &wishes.deep);
    // Of what started meanwhile.
    observer.drain_events(&mut |_| {});
    let first = observer.collect();
    observer.probe_selected(&first);
    let cache = observer.cache().counts;
    let kernel_bytes = Capacities::default().kernel_bytes();
    // Looking at every file of the machine took more than keeping what was found.
    own_memory::give_back();
    tracing::info!(depth = %wishes.depth, groups = observer.probed(), kernel_bytes, ?cache, "probes are attached");
    // What the selected processes are probed for is in what is shown first.
    posts.snapshots.send_replace(Arc::new(observer.collect()));
    posts.readiness.send_replace(Readiness::Ready);
    let mut next = Instant::now() + wishes.interval;
    while !stopped(&mut observer, &posts.woken, next) {
        observer.drain_events(&mut |_| {});
        if let Some(wanted) = posts.wishes.try_iter().last() {
            next = next.min(Instant::now() + wanted.interval);
            change(&mut observer, &wanted);
            wishes = wanted;
        }
        if Instant::now() >= next || observer.is_crowded() {
            let began = own_cpu_time();
            let mut snapshot = observer.collect();
            let cost = own_cpu_time().saturating_sub(began);
            // A collection that took longer than the interval is not made up for.
            let now = Instant::now();
            next = (next.min(now) + pace::between(wishes.interval, cost)).max(now);
            if let Some(lost) = history.as_ref().map(|history| history.lost()).filter(|lost| *lost != 0) {
                // What is missing on disk is not missing here: the snapshot stays as complete as it is.
                snapshot.losses.push((LossReason::HistoryDropped, lost));
            }
            let snapshot = Arc::new(snapshot);
            observer.probe_selected(&snapshot);
            if let Some(history) = &mut history {
                history.offer(&snapshot);
            }
            posts.snapshots.send_replace(snapshot);
        }
        posts.progress.send_replace(());
    }
    tracing::info!("stopping: detaching the probes");
    Ok(())
}

fn change(observer: &mut Observer, wanted: &Wishes) {
    if let Err(error) = observer.deepen(wanted.depth) {
        tracing::warn!(%error, "the new depth is not reached");
    }
    observer.set_budget(wanted.budget);
    observer.switch(wanted.probing);
    select(observer, &wanted.deep);
}

fn select(observer: &mut Observer, deep: &Deep) {
    for pid in observer.select(deep.clone()) {
        tracing::warn!(pid, "there is no such process");
    }
}

/// CPU time that this thread has taken.
fn own_cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// Whether the end has come, without waiting for it.
fn is_over(woken: &UnixStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Waits for events, for a change, for `next`, or for the end; true when the end has come.
fn stopped(observer: &mut Observer, mut woken: &UnixStream, next: Instant) -> bool {
    let left = next.saturating_duration_since(Instant::now());
    let left = observer.look_at_new().map_or(left, |ns| left.min(Duration::from_nanos(ns)));
    let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let [events, samples] = observer.wait_fds();
    let mut fds = [events, samples, woken.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&timeout));
    // Bytes announce changes, the end of the stream the end.
    !fds[2].revents().is_empty() && woken.read(&mut [0; CHANGES]).is_ok_and(|bytes| bytes == 0)
}
