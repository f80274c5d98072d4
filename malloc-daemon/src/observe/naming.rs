//! The thread that turns copied stacks into names, off the measuring path.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use malloc_common::abi::{EVENT_EXEC, EVENT_FORK, EVENT_MAPPED, EVENT_RAISE, Event, SampleRegisters};
use malloc_common::allowance::Allowance;

use super::files::{Files, PROBED_FILES};
use super::options::Selection;
use super::unix_ms;
use crate::aggregate::incidents::{Incidents, StackId};
use crate::aggregate::model::{Frame, Stack};
use crate::collect::{Samples, boot_ns};
use crate::host::file::{FileKey, TargetFile};
use crate::host::privileges::{self, Keep};
use crate::own_memory;
use crate::symbols::{self, Code, Glimpse, Limits, Sample, StackEnd, Symbolizer};

/// How often files that no stack led to for long are let go.
const SWEEP: Duration = Duration::from_secs(10);
/// Stacks that wait to be named: 256 x 16.5 KiB = 4.2 MiB.
const WAITING: usize = 256;

/// Glimpses that wait, each with at most 16 files open.
const GLIMPSES: usize = 64;
/// Glimpses at once, and a second: each takes about 100 us, so that a machine that starts programs without end costs a
/// fiftieth of a processor.
const GLIMPSE_ALLOWANCE: Allowance = Allowance::new(200, 200);
/// Stacks of mapped chunks among all processes of a machine, and as many again of the first few of each: one takes about
/// 40 us to name, 200 us where its process is new, so both together a two-hundredth of a processor at most. Both bursts
/// fit into [`WAITING`].
pub const STACKS: Allowance = Allowance::new(10, 100);

/// Events after one that are looked at for another of its process.
const LATER: usize = 64;
/// Processes remembered as told of.
const TOLD: usize = 4096;

/// How often a stack is named that takes too long: at most 4 s, with the usual deadline.
const ATTEMPTS: usize = 4;

enum Work {
    Note(u32),
    /// The second part counts those that wait.
    Glimpse(Glimpse, #[expect(dead_code, reason = "counted by its references")] Arc<()>),
    Executed(u32),
    /// With its file, the first time.
    Code {
        pid: u32,
        code: Code,
        file: Option<TargetFile>,
    },
    Forked {
        parent: u32,
        child: u32,
    },
    Name {
        id: StackId,
        pid: u32,
        registers: SampleRegisters,
        stack: Vec<u8>,
    },
}

/// The thread and its queues.
pub struct Naming {
    work: SyncSender<Work>,
    named: Receiver<(StackId, Arc<Stack>)>,
    /// Stacks handed over and not come back.
    under_way: usize,
    /// Stacks that were not named because too many waited.
    pub refused: u64,
    waiting: Arc<()>,
    /// Processes that the thread may know.
    told: HashSet<u32>,
    /// Files that were handed over.
    files: HashSet<FileKey>,
    /// The time up to which the glimpses taken are paid for.
    glimpses_paid_ns: u64,
    _thread: JoinHandle<()>,
}

impl Naming {
    /// Starts the thread; it ends when this is dropped. Of a whole machine less is kept in memory.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(selection: Selection) -> std::io::Result<Self> {
        let limits = match selection {
            Selection::Everything => Limits::lean(),
            Selection::Chosen => Limits::default(),
        };
        let (work, jobs) = sync_channel::<Work>(WAITING);
        let (results, named) = channel();
        let thread = std::thread::Builder::new().name("symbols".to_owned()).spawn(move || {
            // What it reads is written by the observed programs: it may do nothing else.
            privileges::keep_or_say(Keep::Reading);
            let mut symbolizer = Symbolizer::new(limits);
            let (mut holds_files, mut swept) = (false, Instant::now());
            loop {
                let job = match holds_files {
                    true => jobs.recv_timeout(SWEEP.saturating_sub(swept.elapsed())),
                    false => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                if holds_files && swept.elapsed() >= SWEEP {
                    swept = Instant::now();
                    if symbolizer.let_go(swept) {
                        own_memory::give_back();
                    }
                }
                match job {
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(Work::Note(pid)) => symbolizer.note_process(pid),
                    Ok(Work::Glimpse(glimpse, _)) => symbolizer.take(glimpse),
                    Ok(Work::Executed(pid)) => symbolizer.executed(pid),
                    Ok(Work::Code { pid, code, file }) => symbolizer.code(pid, &code, file),
                    Ok(Work::Forked { parent, child }) => symbolizer.forked(parent, child),
                    Ok(Work::Name { id, pid, registers, stack }) => {
                        // How much stack lies above the copy is not known: that it ends there is found by unwinding.
                        let [ip, sp, bp, rbx, r12, r13, r14, r15, ..] = registers;
                        let kept = cfg!(target_arch = "x86_64").then_some([rbx, r12, r13, r14, r15]);
                        let sample = Sample { pid, ip, sp, bp, kept, stack: &stack, stack_cut: true };
                        // Files are read for the first stack in them alone: another attempt has the time that took.
                        let named = (1..ATTEMPTS).map(|_| symbolizer.stack(&sample));
                        let named = { named }.find(|stack| stack.end != StackEnd::Deadline);
                        let named = named.unwrap_or_else(|| symbolizer.stack(&sample));
                        if results.send((id, Arc::new(told(named)))).is_err() {
                            return;
                        }
                    }
                }
                holds_files = symbolizer.usage().1 > 0;
            }
        })?;
        Ok(Self {
            work,
            named,
            under_way: 0,
            refused: 0,
            waiting: Arc::new(()),
            told: HashSet::new(),
            files: HashSet::new(),
            glimpses_paid_ns: 0,
            _thread: thread,
        })
    }

    /// Has a process's modules opened now: it may end before its stack is named.
    pub fn note(&mut self, pid: u32) {
        self.tell(pid);
        // When too much waits the stacks themselves matter more.
        let _ = self.work.try_send(Work::Note(pid));
    }

    /// Follows which programs processes run, and looks at once at those that execute one and those whose allocator has
    /// just come: their first stack may be their last act. The stacks of the programs before are handed over by then.
    pub fn follow(&mut self, events: &[Event], files: &Files) {
        for (at, event) in events.iter().enumerate() {
            let [first, bytes, offset, ..] = event.values;
            // Of several looks at one process the last sees all.
            let is_last = || !events.iter().skip(at + 1).take(LATER).any(|later| later.tgid == event.tgid);
            if event.kind == EVENT_FORK {
                if let (true, Ok(child)) = (self.told.contains(&event.tgid), u32::try_from(first)) {
                    self.tell(child);
                    let _ = self.work.try_send(Work::Forked { parent: event.tgid, child });
                }
            } else if event.kind == EVENT_EXEC {
                if self.told.remove(&event.tgid) {
                    let _ = self.work.try_send(Work::Executed(event.tgid));
                }
                // The kernel has mapped the program and its loader by now.
                if is_last() {
                    self.glimpse(event.tgid);
                }
            } else if event.kind == EVENT_MAPPED && files.shapes.may_be(offset, bytes) {
                if is_last() {
                    self.glimpse(event.tgid);
                }
                self.code(event.tgid, [first, bytes, offset], files);
            }
        }
    }

    /// Tells of an allocator's code that a process mapped, where the mapping says which file it is: the process may be
    /// over before that can be read.
    fn code(&mut self, pid: u32, [start, bytes, offset]: [u64; 3], files: &Files) {
        let [key] = files.shapes.files(offset, bytes) else { return };
        let (true, Some(probed)) = (self.told.contains(&pid), files.get(key)) else { return };
        let file = if self.files.contains(key) { None } else { probed.file().try_clone().ok() };
        if file.is_some() && self.files.len() < PROBED_FILES {
            self.files.insert(*key);
        }
        let _ = self.work.try_send(Work::Code { pid, code: Code { key: *key, start, bytes, offset }, file });
    }

    fn tell(&mut self, pid: u32) {
        // As many as the thread may have heard of: it remembers 1,024.
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        self.told.insert(pid);
    }

    fn glimpse(&mut self, pid: u32) {
        if Arc::strong_count(&self.waiting) > GLIMPSES {
            return;
        }
        let Some(paid_until_ns) = GLIMPSE_ALLOWANCE.take(self.glimpses_paid_ns, boot_ns()) else { return };
        self.glimpses_paid_ns = paid_until_ns;
        if let Some(glimpse) = Glimpse::of(pid) {
            self.tell(pid);
            let _ = self.work.try_send(Work::Glimpse(glimpse, Arc::clone(&self.waiting)));
        }
    }

    /// Takes the waiting samples, and of these events the raises that had no room as samples.
    pub fn drain(&mut self, samples: &mut Samples, incidents: &mut Incidents, events: &[Event]) {
        let boot_unix_ms = unix_ms().saturating_sub(boot_ns() / 1_000_000);
        for event in events.iter().filter(|event| event.kind == EVENT_RAISE && event.values[4] != 0) {
            incidents.take(event, boot_unix_ms + event.ns / 1_000_000);
        }
        samples.drain(&mut |event, registers, stack| {
            if let Some(id) = incidents.take(&event, boot_unix_ms + event.ns / 1_000_000) {
                self.name(id, event.tgid, registers, stack);
            }
        });
    }

    /// Hands a stack over.
    fn name(&mut self, id: StackId, pid: u32, registers: SampleRegisters, stack: &[u8]) {
        self.tell(pid);
        match self.work.try_send(Work::Name { id, pid, registers, stack: stack.to_vec() }) {
            Ok(()) => self.under_way += 1,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.refused += 1,
        }
    }

    /// The stacks named since the last call.
    pub fn named(&mut self) -> Vec<(StackId, Arc<Stack>)> {
        let named: Vec<_> = self.named.try_iter().collect();
        self.under_way = self.under_way.saturating_sub(named.len());
        named
    }

    /// Waits until all stacks handed over are named, or the time is over; returns them.
    pub fn finish(&mut self, patience: Duration) -> Vec<(StackId, Arc<Stack>)> {
        let deadline = Instant::now() + patience;
        let mut all = self.named();
        while self.under_way > 0 {
            let Ok(one) = self.named.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { break };
            self.under_way -= 1;
            all.push(one);
        }
        all
    }
}

fn told(stack: symbols::Stack) -> Stack {
    let cut = match stack.end {
        StackEnd::Complete => None,
        StackEnd::FrameLimit => Some("there are more frames than are shown".to_owned()),
        StackEnd::StackCut => Some("the copied part of the stack ends".to_owned()),
        StackEnd::Corrupt => Some("the stack contradicts itself".to_owned()),
        StackEnd::NoUnwindInformation { module } => Some(format!("{module} has no unwind information")),
        StackEnd::RegisterUnknown => Some("the way on needs a register that was not copied".to_owned()),
        StackEnd::ProcessGone => Some("the process ended before its files were known".to_owned()),
        StackEnd::ModuleUnknown => Some("the code belongs to no file that is known".to_owned()),
        StackEnd::Deadline => Some("naming it took too long".to_owned()),
    };
    let frames = stack.frames.into_iter().map(|frame| Frame {
        function: frame.function,
        module: frame.module,
        offset: frame.offset,
        file: frame.file,
        line: frame.line,
        inlined: frame.inlined,
        build_id: frame.build_id,
    });
    Stack { frames: frames.collect(), cut }
}
