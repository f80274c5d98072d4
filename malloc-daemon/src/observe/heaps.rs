//! Reads the heaps of processes on a thread of its own: a process can make a read of its memory wait for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use malloc_common::abi::BORN_EXEC;

use crate::aggregate::heap::Heap;
use crate::aggregate::model::ProcessId;
use crate::arenas::{self, Place, Region, Regions};
use crate::collect::{RawImage, boot_ns};
use crate::host::memory::{ProcessMemory, resident_bytes};
use crate::host::privileges::{self, Keep};
use crate::host::process::{self, Pid};

/// Readings asked for in one collection.
const AT_ONCE: usize = 32;
/// Of them of processes that were read before, among all of a machine: about 0.3 ms each.
const AGAIN_AT_ONCE: usize = 4;
/// A reading that takes longer is given up, and its process left alone. A sound one takes at most 0.1 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// Threads that wait for ever at most; then nothing is read any more.
const STUCK: usize = 4;
/// Processes remembered.
const REMEMBERED: usize = 16_384;
/// A process in which nothing happened on the slow path is read again after so long: frees show nowhere else. 30 s
/// for a few, longer where there are many.
const IDLE_NS: u64 = 30_000_000_000;
/// One that has not run since then freed nothing: it is read again after so long only, since the CPU time of idle
/// processes is read in turns. 15 min.
const ASLEEP_NS: u64 = 900_000_000_000;

/// How often a process is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Nanoseconds between two readings of one process at least.
    pub gap_ns: u64,
    /// A reading that took so long is followed by a pause of so many times that.
    pub rest: u64,
}

impl Pace {
    /// For a few processes that are recorded: at most a twentieth of a processor for each.
    pub const CLOSE: Self = Self { gap_ns: 0, rest: 20 };
    /// For all processes of a machine: one whose heap takes long to read costs 0.025 % of a processor.
    pub const WIDE: Self = Self { gap_ns: 2_000_000_000, rest: 4000 };
}

/// What is read, and of which life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose memory.
    pub id: ProcessId,
    /// Where the allocator's variables lie in it.
    pub place: Place,
}

/// What became of it.
type Outcome = Result<Heap, String>;
/// How a heap is read: another one in tests.
type Read = Arc<dyn Fn(&Job) -> Outcome + Send + Sync>;

/// One process.
#[derive(Debug, Default)]
struct Known {
    /// The last reading.
    outcome: Option<Result<Arc<Heap>, String>>,
    /// The last question.
    job: Option<Job>,
    asked: bool,
    /// Its memory made a reading wait for ever.
    blocked: bool,
    next_ns: u64,
    idle_ns: u64,
    /// What had happened on the slow path when it was last asked for.
    activity: u64,
    /// CPU time it had taken then, nanoseconds.
    cpu_ns: Option<u64>,
}

/// The thread, its queues, and what it found.
pub struct Heaps {
    read: Read,
    pace: Pace,
    thread: Option<Thread>,
    stuck: Arc<AtomicUsize>,
    known: HashMap<ProcessId, Known>,
}

struct Thread {
    jobs: SyncSender<Job>,
    outcomes: Receiver<(ProcessId, Outcome)>,
    /// What it reads now, and since when.
    current: Arc<Mutex<Option<(ProcessId, Instant)>>>,
    /// It was given up.
    abandoned: Arc<AtomicUsize>,
    under_way: usize,
}

impl Heaps {
    /// Nothing read yet; the thread starts with the first reading.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self::with(pace, Arc::new(read_heap))
    }

    fn with(pace: Pace, read: Read) -> Self {
        Self { read, pace, thread: None, stuck: Arc::default(), known: HashMap::new() }
    }

    /// Asks for the heaps that are due, among the images that live. `place` says where a process's allocator lies, `cpu`
    /// what CPU time it has taken.
    pub fn ask(
        &mut self,
        images: &[Arc<RawImage>],
        place: &dyn Fn(&RawImage) -> Option<Place>,
        cpu: &dyn Fn(&RawImage) -> Option<u64>,
    ) {
        self.take();
        let now = boot_ns();
        let mut due: Vec<(u64, Job, u64, Option<u64>)> = Vec::new();
        for image in images.iter().filter(|image| image.slot.end_ns == 0) {
            let id = ProcessId::of(&image.slot);
            let cpu_ns = cpu(image);
            let has_run = |known: &Known| self.pace == Pace::CLOSE || known.cpu_ns != cpu_ns;
            let may_have_freed =
                |known: &Known| now >= known.idle_ns && (has_run(known) || now - known.idle_ns >= ASLEEP_NS);
            let known = self.known.get(&id);
            let is_due = match known {
                None => true,
                Some(known) if known.asked || known.blocked => false,
                Some(known) => now >= known.next_ns && (activity(image) != known.activity || may_have_freed(known)),
            };
            if is_due && let Some(place) = place(image) {
                due.push((known.map_or(0, |known| known.next_ns), Job { id, place }, activity(image), cpu_ns));
            }
        }
        // Who has waited longest comes first.
        due.sort_by_key(|(since, job, ..)| (*since, job.id));
        let mut again = 0;
        due.retain(|(since, ..)| {
            again += usize::from(*since != 0);
            *since == 0 || self.pace == Pace::CLOSE || again <= AGAIN_AT_ONCE
        });
        for (_, job, activity, cpu_ns) in due.into_iter().take(AT_ONCE) {
            if !self.hand_over(job) {
                break;
            }
            let known = self.known.entry(job.id).or_default();
            known.asked = true;
            known.job = Some(job);
            (known.activity, known.cpu_ns) = (activity, cpu_ns);
        }
        if self.known.len() > REMEMBERED {
            let live: std::collections::HashSet<_> = images.iter().map(|image| ProcessId::of(&image.slot)).collect();
            self.known.retain(|id, _| live.contains(id));
        }
    }

    /// Asks again for the heaps that were asked for before, whether they are due or not, and waits, but not for ever.
    pub fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE + PATIENCE;
        self.wait_until(deadline);
        let mut jobs: Vec<Job> = self.known.values().filter(|known| !known.blocked).filter_map(|k| k.job).collect();
        jobs.sort_by_key(|job| job.id);
        for job in jobs.into_iter().take(AT_ONCE) {
            self.hand_over(job);
        }
        self.wait_until(deadline);
    }

    fn wait_until(&mut self, deadline: Instant) {
        while let Some(thread) = &mut self.thread
            && thread.under_way > 0
            && Instant::now() < deadline
        {
            if let Ok((id, outcome)) = thread.outcomes.recv_timeout(Duration::from_millis(20)) {
                thread.under_way -= 1;
                self.settle(id, outcome);
            }
            self.take();
        }
    }

    /// What is known of the heap of an image: the last reading while it was that program, or why there is none.
    pub fn of(&self, image: &RawImage) -> Result<Option<Arc<Heap>>, String> {
        let slot = &image.slot;
        let Some(known) = self.known.get(&ProcessId::of(slot)) else { return Ok(None) };
        // An image that began unseen was there before its first event; one that began with an exec was another then.
        let since_ns = if slot.born == BORN_EXEC { slot.first_ns } else { 0 };
        match &known.outcome {
            Some(Ok(heap)) if heap.read_ns >= since_ns && (slot.end_ns == 0 || heap.read_ns <= slot.end_ns) => {
                Ok(Some(Arc::clone(heap)))
            }
            Some(Ok(_)) | None => Ok(None),
            Some(Err(why)) => Err(why.clone()),
        }
    }

    /// When the heap of a process was read last, nanoseconds since boot; 0 and 1: it was not, or could not be.
    pub fn read_ns(&self, image: &RawImage) -> u64 {
        match self.known.get(&ProcessId::of(&image.slot)).and_then(|known| known.outcome.as_ref()) {
            Some(Ok(heap)) => heap.read_ns,
            Some(Err(_)) => 1,
            None => 0,
        }
    }

    /// Forgets processes that ended.
    pub fn forget(&mut self, ended: &[u32]) {
        self.known.retain(|id, known| known.blocked || !ended.contains(&id.pid));
    }

    /// Takes what was read, and gives up a thread that waits too long.
    fn take(&mut self) {
        let Some(thread) = &mut self.thread else { return };
        let outcomes: Vec<_> = thread.outcomes.try_iter().collect();
        thread.under_way = thread.under_way.saturating_sub(outcomes.len());
        let current = *thread.current.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, outcome) in outcomes {
            self.settle(id, outcome);
        }
        if let Some((id, since)) = current
            && since.elapsed() > PATIENCE
            && let Some(thread) = self.thread.take()
        {
            self.stuck.fetch_add(1, Ordering::Relaxed);
            thread.abandoned.store(1, Ordering::Relaxed);
            // What else was asked of it is asked again.
            self.known.values_mut().for_each(|known| known.asked = false);
            let known = self.known.entry(id).or_default();
            known.blocked = true;
            known.outcome = Some(Err("a read of its memory did not return; it is left alone".to_owned()));
            tracing::warn!(pid = id.pid, "a read of its memory did not return; it is left alone");
        }
    }

    fn settle(&mut self, id: ProcessId, outcome: Outcome) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let now = boot_ns();
        let took_ns = outcome.as_ref().map_or(1_000_000, |heap| heap.took_us.saturating_mul(1_000));
        known.asked = false;
        known.next_ns = now.saturating_add(self.pace.gap_ns.max(took_ns.saturating_mul(self.pace.rest).min(IDLE_NS)));
        known.idle_ns = now.saturating_add(IDLE_NS);
        known.outcome = Some(outcome.map(Arc::new));
    }

    /// Whether the thread took it.
    fn hand_over(&mut self, job: Job) -> bool {
        if self.thread.is_none() && self.stuck.load(Ordering::Relaxed) < STUCK {
            self.thread = Thread::start(Arc::clone(&self.read), Arc::clone(&self.stuck)).ok();
        }
        let Some(thread) = &mut self.thread else { return false };
        match thread.jobs.try_send(job) {
            Ok(()) => {
                thread.under_way += 1;
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Thread {
    fn start(read: Read, stuck: Arc<AtomicUsize>) -> std::io::Result<Self> {
        let (jobs, asked) = sync_channel::<Job>(AT_ONCE);
        let (found, outcomes) = channel();
        let current = Arc::new(Mutex::new(None));
        let abandoned = Arc::new(AtomicUsize::new(0));
        let (mine, given_up) = (Arc::clone(&current), Arc::clone(&abandoned));
        // Nobody joins it: the process may end while it waits.
        std::thread::Builder::new().name("heaps".to_owned()).spawn(move || {
            privileges::keep_or_say(Keep::Reading);
            let note = |now| *mine.lock().unwrap_or_else(PoisonError::into_inner) = now;
            for job in asked {
                note(Some((job.id, Instant::now())));
                let outcome = read(&job);
                note(None);
                if found.send((job.id, outcome)).is_err() {
                    break;
                }
            }
            if given_up.load(Ordering::Relaxed) == 1 {
                stuck.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { jobs, outcomes, current, abandoned, under_way: 0 })
    }
}

/// A sum that changes with every event of the slow path.
fn activity(image: &RawImage) -> u64 {
    image.slot.counters.iter().fold(image.slot.threshold_ns, |sum, count| sum.wrapping_add(*count))
}

/// One reading.
fn read_heap(job: &Job) -> Outcome {
    let started = Instant::now();
    // Before the memory is opened: an exec in between makes the reading one of no image, never of the wrong one.
    let read_ns = boot_ns();
    let pid = Pid(job.id.pid);
    let gone = || "it ended before its memory was read".to_owned();
    let memory = ProcessMemory::open(pid).map_err(|error| error.to_string())?.ok_or_else(gone)?;
    let stat = process::stat(pid).map_err(|error| error.to_string())?.ok_or_else(gone)?;
    if stat.start_ticks != job.id.start_ticks || stat.state.has_ended() {
        return Err(gone());
    }
    let regions = regions(pid, &job.place)?.ok_or_else(gone)?;
    let reading = arenas::read(&memory, &job.place, &regions)?;
    Ok(Heap {
        read_ns,
        took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        threshold: reading.threshold,
        top_pad: reading.top_pad,
        max_mmapped_bytes: reading.max_mmapped_bytes,
        arenas: reading.arenas.as_ref().cloned().unwrap_or_default(),
        not_read: reading.arenas.err().map(str::to_owned),
        every_arena: reading.every_arena,
        page_bytes: rustix::param::page_size() as u64,
        resident_bytes: resident_bytes(pid).ok().flatten(),
        minor_faults: Some(stat.minor_faults),
    })
}

/// Where reading is allowed in a process; `None`: it ended.
fn regions(pid: Pid, place: &Place) -> Result<Option<Regions>, String> {
    let Some(maps) = process::maps(pid).map_err(|error| error.to_string())? else { return Ok(None) };
    let own = maps.iter().find(|mapping| (mapping.start..mapping.end).contains(&place.code) && mapping.inode != 0);
    let Some(own) = own.map(|mapping| (mapping.device, mapping.inode)) else {
        return Err("its allocator is no longer mapped where it was".to_owned());
    };
    let private = |mapping: &&crate::host::maps::Mapping| {
        mapping.permissions.read && mapping.permissions.write && !mapping.permissions.shared
    };
    let region = |mapping: &crate::host::maps::Mapping| Region { start: mapping.start, end: mapping.end };
    let heaps = maps.iter().filter(private).filter(|mapping| mapping.inode == 0).map(region).collect();
    let variables =
        maps.iter().filter(private).filter(|mapping| (mapping.device, mapping.inode) == own).map(region).collect();
    Ok(Some(Regions::new(heaps, variables)))
}

#[cfg(test)]
mod tests;
