//! Wires the parts of the service: one thread observes, the runtime answers, and both stop in order.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use malloc_common::depth::Depth;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use crate::aggregate::Keep;
use crate::aggregate::model::{DaemonCost, Host, Snapshot, Verdict, Window};
use crate::http::Readiness;
use crate::observe::{Observer, Options, Selection, StartError};
use crate::probes::Capacities;

/// Ended processes stay in the answers for a minute: a scrape every 15 s sees each at least three times.
const ENDED_NS: u64 = 60_000_000_000;
/// Ended processes kept at most: a minute of 60 short-lived programs a second. 3,600 x about 8 KiB = 29 MiB.
const ENDED_IMAGES: usize = 3_600;

/// What the service observes.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// How deep all processes are probed.
    pub depth: Depth,
    /// Processes probed down to `call`.
    pub pids: Vec<u32>,
    /// Names of processes probed down to `call`.
    pub comms: Vec<String>,
    /// Time between two snapshots.
    pub interval: Duration,
}

/// The observing thread; stopping it detaches every probe.
pub struct Observing {
    thread: JoinHandle<Result<(), StartError>>,
    wake: UnixStream,
    /// The current snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether probes are attached.
    pub readiness: watch::Receiver<Readiness>,
}

impl Observing {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system gives no thread or no socket.
    pub fn start(wishes: Wishes) -> std::io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let (snapshot_sender, snapshots) = watch::channel(Arc::new(nothing_yet()));
        let (readiness_sender, readiness) = watch::channel(Readiness::Starting);
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(move || {
            let result = observe(&wishes, &woken, &snapshot_sender, &readiness_sender);
            if let Err(error) = &result {
                readiness_sender.send_replace(Readiness::Failed(error.to_string()));
            }
            result
        })?;
        Ok(Self { thread, wake, snapshots, readiness })
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
        probes: Vec::new(),
        cost: DaemonCost::default(),
    }
}

fn observe(
    wishes: &Wishes,
    woken: &UnixStream,
    snapshots: &watch::Sender<Arc<Snapshot>>,
    readiness: &watch::Sender<Readiness>,
) -> Result<(), StartError> {
    let mut observer = Observer::start(Options {
        depth: wishes.depth,
        selection: Selection::Everything,
        tracing: false,
        capacities: Capacities::default(),
        keep: Keep { ended_ns: ENDED_NS, ended_images: ENDED_IMAGES },
    })?;
    if wishes.depth > Depth::Syscall {
        observer.probe_everything()?;
    }
    let mut deep = HashSet::new();
    for pid in &wishes.pids {
        probe_deep(&mut observer, *pid, &mut deep);
    }
    tracing::info!(depth = %wishes.depth, groups = observer.probed(), "probes are attached");
    snapshots.send_replace(Arc::new(observer.collect()));
    readiness.send_replace(Readiness::Ready);
    let mut next = Instant::now() + wishes.interval;
    while !stopped(&mut observer, woken, next) {
        observer.drain_events(&mut |_| {});
        if Instant::now() < next {
            continue;
        }
        // A collection that took longer than the interval is not made up for.
        next = (next + wishes.interval).max(Instant::now());
        let snapshot = observer.collect();
        for process in &snapshot.processes {
            let wanted = process.ended.is_none() && wishes.comms.contains(&process.comm);
            if wanted && !deep.contains(&process.id.pid) {
                probe_deep(&mut observer, process.id.pid, &mut deep);
            }
        }
        deep.retain(|pid| snapshot.processes.iter().any(|p| p.id.pid == *pid && p.ended.is_none()));
        snapshots.send_replace(Arc::new(snapshot));
    }
    tracing::info!("stopping: detaching the probes");
    Ok(())
}

fn probe_deep(observer: &mut Observer, pid: u32, deep: &mut HashSet<u32>) {
    deep.insert(pid);
    match observer.probe_process(pid, Depth::Call) {
        Ok(Some(_)) => {}
        Ok(None) => tracing::warn!(pid, "there is no such process, or none with an allocator that can be probed"),
        Err(why) => {
            tracing::warn!(pid, why, "its calls cannot be probed");
            observer.note(format!("process {pid}"), Depth::Call, Verdict::Unsupported(why));
        }
    }
}

/// Waits for events, for `next`, or for the end; true when the end has come.
fn stopped(observer: &mut Observer, woken: &UnixStream, next: Instant) -> bool {
    let left = next.saturating_duration_since(Instant::now());
    let left = observer.look_at_new().map_or(left, |ns| left.min(Duration::from_nanos(ns)));
    let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let [events, samples] = observer.wait_fds();
    let mut fds = [events, samples, woken.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&timeout));
    !fds[2].revents().is_empty()
}
