//! Unwinds a sample frame by frame and names each address.

use std::time::{Duration, Instant};

use super::modules::Modules;
use super::processes::{Code, Glimpse, Place, Processes};
use super::unwind::{Caller, Context, Registers, StackBytes, Stop, step_by_frame_pointer};
use crate::host::file::TargetFile;
use crate::host::process::{self, Pid};

use super::{Frame, Limits, STACK_BYTES, Sample, Stack, StackEnd};

/// Names stacks. Meant for a thread of its own (with the usual 2 MiB of stack): it reads files and may take until its
/// deadline.
pub struct Symbolizer {
    limits: Limits,
    processes: Processes,
    modules: Modules,
    context: Context,
}

/// How many times the time for a stack it may take with reading the files that it leads through.
const READING: u32 = 10;

/// The time that a stack has taken. Reading a file's tables counts apart: the first stack in it would have no names
/// where the machine is busy, and no later one would make up for that.
struct Clock {
    start: Instant,
    read_before: Duration,
    deadline: Duration,
}

impl Clock {
    /// `reading` is how long reading took in all until `now`.
    fn is_late(&self, now: Instant, reading: Duration) -> bool {
        let taken = now.saturating_duration_since(self.start);
        let worked = taken.saturating_sub(reading.saturating_sub(self.read_before));
        worked >= self.deadline || taken >= self.deadline.saturating_mul(READING)
    }
}

/// A frame before it has names.
struct Bare {
    address: u64,
    /// The address to look up: inside the call, not after it.
    lookup: u64,
    by_frame_pointer: bool,
    place: Option<Place>,
}

impl Symbolizer {
    /// Knows no process yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, processes: Processes::new(limits), modules: Modules::new(limits), context: Context::new() }
    }

    /// Reads what a process maps now and opens the files, so that its stacks can be named after it ended. To be called
    /// when a process is first seen and when it executed another program, whose addresses may be the same.
    pub fn note_process(&mut self, pid: u32) {
        self.processes.note(pid, &mut self.modules, Instant::now());
    }

    /// Takes in what was seen of a process: it may have ended since.
    pub fn take(&mut self, glimpse: Glimpse) {
        self.processes.take(glimpse, &mut self.modules, Instant::now());
    }

    /// A process has mapped code of a file; `file` is that file, unless it was given before.
    pub fn code(&mut self, pid: u32, code: &Code, file: Option<TargetFile>) {
        if let Some(file) = file {
            self.modules.take(Pid(pid), file);
        }
        self.processes.code(pid, code, &self.modules);
    }

    /// The process runs another program now.
    pub fn executed(&mut self, pid: u32) {
        self.processes.executed(pid);
    }

    /// A process has a new child, which maps what it maps until it runs another program.
    pub fn forked(&mut self, parent: u32, child: u32) {
        self.processes.forked(parent, child, Instant::now());
    }

    /// The process ended. What is known of it is kept for [`Limits::keep_ended`], for samples that are still on the way.
    pub fn forget(&mut self, pid: u32) {
        self.processes.forget(pid, Instant::now());
    }

    /// The calls that led to `sample`. Takes no longer than [`Limits::deadline`] besides reading files, and
    /// [`READING`] times as long with it, except for reading one file.
    #[must_use]
    pub fn stack(&mut self, sample: &Sample<'_>) -> Stack {
        let start = Instant::now();
        let clock = Clock { start, read_before: self.modules.reading(), deadline: self.limits.deadline };
        self.processes.ensure(sample.pid, &mut self.modules, start);
        let (bare, end) = self.unwind(sample, &clock);
        let stack = self.name(sample.pid, bare, end, &clock);
        self.modules.trim();
        stack
    }

    /// Lets go of files that no stack led to for long, their tables first: they are read again when they are needed.
    /// Whether memory was given back. To be called now and then.
    pub fn let_go(&mut self, now: Instant) -> bool {
        self.modules.let_go(now)
    }

    /// The number of processes known, of files open, and the bytes their tables take.
    #[must_use]
    pub fn usage(&self) -> (usize, usize, u64) {
        let (modules, bytes) = self.modules.usage();
        (self.processes.len(), modules, bytes)
    }

    fn unwind(&mut self, sample: &Sample<'_>, clock: &Clock) -> (Vec<Bare>, StackEnd) {
        let stack = StackBytes {
            base: sample.sp,
            bytes: sample.stack.get(..STACK_BYTES).unwrap_or(sample.stack),
            cut: sample.stack_cut || sample.stack.len() > STACK_BYTES,
        };
        let mut registers = Registers::new(sample.ip, sample.sp, sample.bp).keeping(sample.kept);
        let (mut exact, mut by_frame_pointer) = (true, false);
        let mut frames: Vec<Bare> = Vec::new();
        loop {
            let now = Instant::now();
            if clock.is_late(now, self.modules.reading()) {
                return (frames, StackEnd::Deadline);
            }
            if frames.len() >= self.limits.frames {
                return (frames, StackEnd::FrameLimit);
            }
            let address = registers.ip();
            let lookup = if exact { address } else { address.wrapping_sub(1) };
            let place = self.processes.place(sample.pid, lookup, &mut self.modules, now);
            // What a frame pointer led to is a guess until it proves to be code.
            if by_frame_pointer && place.is_none() {
                let module = frames.last().and_then(|frame| frame.place.as_ref()).map(|place| place.name.to_string());
                return (frames, StackEnd::NoUnwindInformation { module: module.unwrap_or_default() });
            }
            frames.push(Bare { address, lookup, by_frame_pointer, place: place.clone() });
            let Some(place) = place else {
                let is_known = self.processes.knows(sample.pid);
                return (frames, if is_known { StackEnd::ModuleUnknown } else { StackEnd::ProcessGone });
            };
            let by_rules = match place.code.and_then(|(id, vaddr)| Some((self.modules.call_frames(id)?, vaddr))) {
                Some((rules, vaddr)) => rules.step(&mut self.context, vaddr, &registers, &stack),
                None => Err(Stop::NoRules),
            };
            by_frame_pointer = by_rules == Err(Stop::NoRules);
            let step = if by_frame_pointer { step_by_frame_pointer(&registers, &stack) } else { by_rules };
            match step {
                Ok(Some(caller)) => Caller { registers, exact } = caller,
                Ok(None) => return (frames, StackEnd::Complete),
                Err(Stop::RegisterUnknown) => return (frames, StackEnd::RegisterUnknown),
                Err(Stop::Cut) => return (frames, StackEnd::StackCut),
                Err(Stop::Corrupt) if !by_frame_pointer => return (frames, StackEnd::Corrupt),
                // Its file could not be opened any more: what it holds is not known.
                Err(_) if place.code.is_none() && !process::is_there(Pid(sample.pid)) => {
                    return (frames, StackEnd::ProcessGone);
                }
                Err(_) => return (frames, StackEnd::NoUnwindInformation { module: place.name.to_string() }),
            }
        }
    }

    fn name(&mut self, pid: u32, bare: Vec<Bare>, end: StackEnd, clock: &Clock) -> Stack {
        let mut stack = Stack { frames: Vec::new(), end };
        for frame in bare {
            let left = self.limits.frames.saturating_sub(stack.frames.len());
            if left == 0 {
                stack.end = StackEnd::FrameLimit;
                break;
            }
            let now = Instant::now();
            let is_late = clock.is_late(now, self.modules.reading());
            if is_late {
                stack.end = StackEnd::Deadline;
            }
            self.name_one(pid, frame, if is_late { 0 } else { left }, now, &mut stack.frames);
        }
        stack
    }

    /// Adds the calls of one frame: at most `left` with names, or with 0 itself without.
    fn name_one(&mut self, pid: u32, bare: Bare, left: usize, now: Instant, frames: &mut Vec<Frame>) {
        let code = bare.place.as_ref().and_then(|place| place.code);
        let frame = Frame {
            address: bare.address,
            module: bare.place.as_ref().map(|place| place.name.to_string()),
            // The lookup address is one less than the address of a call's return.
            offset: code.map(|(_, vaddr)| vaddr.wrapping_add(bare.address.wrapping_sub(bare.lookup))),
            by_frame_pointer: bare.by_frame_pointer,
            build_id: code.and_then(|(id, _)| self.modules.build_id(id)),
            ..Frame::default()
        };
        let calls = match (code, &bare.place) {
            _ if left == 0 => Vec::new(),
            (Some((id, vaddr)), _) => self.modules.calls_at(id, vaddr, left),
            // No file that can be looked into: perhaps a program wrote this code.
            (None, Some(_)) => {
                let function = self.processes.written_name(pid, bare.lookup, now);
                return frames.push(Frame { function, ..frame });
            }
            _ => Vec::new(),
        };
        let last = calls.len().saturating_sub(1);
        if calls.is_empty() {
            frames.push(frame);
            return;
        }
        frames.extend(calls.into_iter().enumerate().map(|(at, call)| Frame {
            function: call.function,
            file: call.file,
            line: call.line,
            inlined: at < last,
            ..frame.clone()
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_files_has_its_own_time() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let clock = Clock { start, read_before: 5 * second, deadline: second };
        let is_late = |taken: u32, read: u32| clock.is_late(start + taken * second, (5 + read) * second);
        assert!(!is_late(0, 0));
        assert!(is_late(1, 0));
        assert!(!is_late(3, 3));
        assert!(is_late(3, 2));
        assert!(is_late(10, 10), "not for ever");
    }
}
