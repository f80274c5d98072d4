//! Probes processes deeply within their budget: a thread that polls what hits cost, attaches and detaches, and keeps the
//! accounts that estimates are made from. `budget/` decides; this does.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::options::StartError;
use super::subject::{Accounts, Part, State, Subject, locked};
use crate::aggregate::model::Calibration;
use crate::aggregate::{DeepFigures, Facts};
use crate::budget::{Controller, HitPrice, Level, PriceSource, Prices, Reading, Tally};
use crate::collect::{BpfCollector, RawImage, Rows, boot_ns};
use crate::host::file::FileKey;
use crate::host::privileges;
use crate::probes::{AttachError, Attached, FileProbes, MultiPrograms, Object, detach_all, process_cpu_ns};

/// A window takes the daemon's threads about this long; they are to be busy with windows half the time at most.
const WINDOW_NS: u64 = 50_000_000;
/// CPU time that attaching and detaching takes for one window, measured on Linux 6.18: 0.5 to 0.9 ms.
const WINDOW_CPU_NS: f64 = 1e6;

/// Threads that close links. A link's probes are out within a millisecond, and the kernel's readers are waited for after
/// that, 30 to 120 ms (Linux 6.18): the next link must not wait for that, its probes take hits all the while.
const CLOSERS: usize = 4;

/// The probes of one file in one process.
#[derive(Debug)]
pub struct DeepProbes {
    /// Which file.
    pub key: FileKey,
    /// Those of `_int_malloc`.
    pub arena: FileProbes,
    /// Those of the public functions.
    pub call: FileProbes,
    /// What hits cost.
    pub prices: Prices,
}

enum Command {
    Probe(u32, Box<DeepProbes>, [Option<Attached>; 2]),
    Forget(u32, FileKey, Sender<()>),
    Budget(f64),
}

/// The thread's owner; dropping it detaches everything.
#[derive(Debug)]
pub struct Windows {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    accounts: Shared,
    programs: Arc<MultiPrograms>,
    price: HitPrice,
}

/// Hides what has no useful debug output.
struct Shared(Accounts);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("accounts")
    }
}

/// What deep probing may take.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The part of a process's CPU time.
    pub share: f64,
    /// What a hit costs.
    pub price: HitPrice,
    /// How many there are.
    pub processors: u32,
}

/// What deep probing may take of so many processors, where it has a budget.
pub fn share(budget: Option<f64>, calibration: &Calibration, processors: u32) -> Option<Share> {
    budget.map(|share| Share { share, price: hit_price(calibration), processors })
}

/// What hits cost, as it was measured at start.
fn hit_price(calibration: &Calibration) -> HitPrice {
    let ns = |ns: u64| u32::try_from(ns).unwrap_or(u32::MAX);
    calibration.prices().map_or_else(HitPrice::default, |prices| HitPrice {
        emulated_ns: ns(prices.call_ns.max(prices.arena_ns)),
        stepped_ns: ns(prices.call_ns + prices.stepped_ns.saturating_sub(prices.blank_ns)),
        source: PriceSource::Measured,
    })
}

impl Windows {
    /// Starts the thread; `None` without a budget, and where the kernel has no links that hold many sites.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn of(object: &Object, collector: &BpfCollector, share: Option<Share>) -> Result<Option<Self>, StartError> {
        let both = MultiPrograms::of(object).zip(share);
        let started = both.map(|(programs, share)| Self::start(programs, collector.rows(), share));
        started.transpose().map_err(StartError::Thread)
    }

    fn start(programs: MultiPrograms, rows: Rows, Share { share, price, processors }: Share) -> std::io::Result<Self> {
        let accounts = Accounts::default();
        let programs = Arc::new(programs);
        let (commands, orders) = channel();
        let (to_close, closing) = channel::<ToClose>();
        let closing = Arc::new(Mutex::new(closing));
        let closer = || {
            let closing = Arc::clone(&closing);
            std::thread::Builder::new().name("detacher".to_owned()).spawn(move || close(&closing))
        };
        let closers = (0..CLOSERS).map(|_| closer()).collect::<Result<_, _>>()?;
        let worker = Worker {
            share,
            price,
            processors: f64::from(processors.max(1)),
            programs: Arc::clone(&programs),
            rows,
            accounts: Arc::clone(&accounts),
            subjects: HashMap::new(),
            to_close: Some(to_close),
            closers,
        };
        let thread = std::thread::Builder::new().name("windows".to_owned()).spawn(move || worker.run(&orders))?;
        Ok(Self { commands: Some(commands), thread: Some(thread), accounts: Shared(accounts), programs, price })
    }

    /// Probes a process in a file, fully at first.
    ///
    /// # Errors
    ///
    /// Why it cannot be attached.
    pub fn probe(&self, pid: u32, probes: DeepProbes) -> Result<(), AttachError> {
        let attach = |probes: &FileProbes| match probes.programs.is_empty() {
            true => Ok(None),
            false => self.programs.attach(probes).map(Some),
        };
        let links = [attach(&probes.arena)?, attach(&probes.call)?];
        self.send(Command::Probe(pid, Box::new(probes), links));
        Ok(())
    }

    /// What a hit costs here.
    pub fn price(&self) -> HitPrice {
        self.price
    }

    /// Takes the probes of a file in a process out; what it returns is disconnected when they are gone.
    pub fn forget(&self, pid: u32, key: FileKey) -> Receiver<()> {
        let (done, gone) = channel();
        self.send(Command::Forget(pid, key, done));
        gone
    }

    /// Another budget from now on.
    pub fn set_share(&self, share: f64) {
        self.send(Command::Budget(share));
    }

    fn send(&self, command: Command) {
        // The thread ends with its owner only; had it panicked, its links would be gone, and the process's calls are
        // seen not to grow.
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    /// Whether an image has an account here.
    pub fn knows(&self, row: &RawImage) -> bool {
        locked(&self.accounts.0).contains_key(&(row.slot.tgid, row.slot.first_ns))
    }

    /// What is known of an image that had windows; the account of one that ended is closed.
    pub fn describe(&self, row: &RawImage, facts: &mut Facts) {
        let key = (row.slot.tgid, row.slot.first_ns);
        let held = if row.slot.end_ns == 0 {
            locked(&self.accounts.0).get(&key).cloned()
        } else {
            locked(&self.accounts.0).remove(&key)
        };
        let Some(held) = held else { return };
        let held = locked(&held);
        if !held.windowed {
            return;
        }
        let tally = Tally::of(row, &held.prices);
        let now = if row.slot.end_ns == 0 { boot_ns() } else { row.slot.end_ns };
        let running = if row.slot.end_ns == 0 { process_cpu_ns(row.slot.tgid) } else { None };
        let cpu_ns = running.unwrap_or(held.cpu_ns).max(held.cpu_ns);
        let reading = Reading { at_ns: now, cpu_ns, tally: &tally };
        let figures = |level| held.account.figures(level, &reading);
        facts.over_budget = held.over_budget && row.slot.end_ns == 0;
        facts.deep = Some(DeepFigures { call: figures(Level::Call), arena: figures(Level::Arena) });
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Links, and what is dropped when they are closed.
pub(super) type ToClose = (Vec<Attached>, Option<Sender<()>>);

/// Closes links, many at once: the windows' thread does not wait for the kernel.
fn close(closing: &Mutex<Receiver<ToClose>>) {
    // A link needs no privilege to be closed.
    privileges::keep_or_say(privileges::Keep::Nothing);
    let next = || {
        let closing = locked(closing);
        let first = closing.recv().ok()?;
        Some(std::iter::once(first).chain(closing.try_iter()).unzip::<_, _, Vec<_>, Vec<_>>())
    };
    while let Some((links, done)) = next() {
        detach_all(links.into_iter().flatten().collect());
        drop(done);
    }
}

struct Worker {
    share: f64,
    price: HitPrice,
    processors: f64,
    programs: Arc<MultiPrograms>,
    rows: Rows,
    accounts: Accounts,
    subjects: HashMap<u32, Subject>,
    to_close: Option<Sender<ToClose>>,
    closers: Vec<JoinHandle<()>>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Command>) {
        privileges::keep_or_say(privileges::Keep::Observing);
        loop {
            let now = boot_ns();
            let due = self.subjects.values().map(Subject::due_ns).min();
            let wait = due.map_or(Duration::from_secs(3600), |due| Duration::from_nanos(due.saturating_sub(now)));
            match orders.recv_timeout(wait) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.work();
        }
        let links = self.subjects.drain().flat_map(|(_, subject)| subject.parts).flat_map(|p| [p.call, p.arena]);
        detach_all(links.flatten().collect());
        self.to_close = None;
        for closer in self.closers.drain(..) {
            let _ = closer.join();
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Probe(pid, probes, [arena, call]) => {
                let now = boot_ns();
                let (prices, share) = (probes.prices, self.share);
                let subject = self.subjects.entry(pid).or_insert_with(|| Subject {
                    pid,
                    parts: Vec::new(),
                    prices,
                    controller: Controller::new(share, now, now ^ u64::from(pid) << 32),
                    image: None,
                    state: State::Full,
                    since_ns: now,
                    poll_ns: now,
                });
                for (price, other) in subject.prices.calls.iter_mut().zip(prices.calls) {
                    *price = other.max(*price);
                }
                subject.parts.retain(|part| part.probes.key != probes.key);
                subject.parts.push(Part { probes: *probes, arena, call });
                subject.settle(&self.programs, self.to_close.as_ref());
            }
            Command::Forget(pid, key, done) => {
                let Some(subject) = self.subjects.get_mut(&pid) else { return };
                let (gone, stay) = std::mem::take(&mut subject.parts).into_iter().partition(|p| p.probes.key == key);
                subject.parts = stay;
                if subject.parts.is_empty() {
                    subject.stop(&self.rows);
                    self.subjects.remove(&pid);
                }
                let links = Vec::<Part>::into_iter(gone).flat_map(|part| [part.call, part.arena]).flatten().collect();
                self.close(links, Some(done));
            }
            Command::Budget(share) => {
                self.share = share;
                for subject in self.subjects.values_mut() {
                    subject.controller.set_share(share);
                }
            }
        }
    }

    fn close(&self, links: Vec<Attached>, done: Option<Sender<()>>) {
        let _ = self.to_close.as_ref().map(|to_close| to_close.send((links, done)));
    }

    fn work(&mut self) {
        // As many windows as do not keep the threads busy, nor take more of the machine than half the budget.
        let many = self.subjects.values().filter(|s| !matches!(s.state, State::Full)).count() as f64;
        let cpu = WINDOW_CPU_NS / (0.5 * self.share * self.processors);
        let floor_ns = (many * cpu.max(2.0 * WINDOW_NS as f64)) as u64;
        for subject in self.subjects.values_mut() {
            let now = boot_ns();
            if subject.due_ns() <= now {
                subject.work(now, floor_ns, self.price, &self.rows, &self.accounts);
                subject.settle(&self.programs, self.to_close.as_ref());
                // Links are in place only now.
                subject.opened(&self.rows);
            }
        }
    }
}
