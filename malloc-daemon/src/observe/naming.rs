//! The thread that turns copied stacks into names, off the measuring path.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use malloc_common::abi::SampleRegisters;

use crate::aggregate::incidents::StackId;
use crate::aggregate::model::{Frame, Stack};
use crate::host::privileges::{self, Keep};
use crate::symbols::{self, Limits, Sample, StackEnd, Symbolizer};

/// After this time without a stack the tables of the observed programs' files are let go.
const IDLE: Duration = Duration::from_secs(30);
/// Stacks that wait to be named: 256 x 16.5 KiB = 4.2 MiB.
const WAITING: usize = 256;

enum Work {
    Note(u32),
    Name { id: StackId, pid: u32, registers: SampleRegisters, stack: Vec<u8> },
}

/// The thread and its queues.
pub struct Naming {
    work: SyncSender<Work>,
    named: Receiver<(StackId, Arc<Stack>)>,
    /// Stacks handed over and not come back.
    under_way: usize,
    /// Stacks that were not named because too many waited.
    pub refused: u64,
    _thread: JoinHandle<()>,
}

impl Naming {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(limits: Limits) -> std::io::Result<Self> {
        let (work, jobs) = sync_channel::<Work>(WAITING);
        let (results, named) = channel();
        let thread = std::thread::Builder::new().name("symbols".to_owned()).spawn(move || {
            // What it reads is written by the observed programs: it may do nothing else.
            privileges::keep_or_say(Keep::Reading);
            let mut symbolizer = Symbolizer::new(limits);
            // When a stack was named last; `None`: no tables are held.
            let mut used: Option<Instant> = None;
            loop {
                let job = match used {
                    Some(used) => jobs.recv_timeout(IDLE.saturating_sub(used.elapsed())),
                    None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match job {
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        symbolizer.rest();
                        used = None;
                    }
                    Ok(Work::Note(pid)) => symbolizer.note_process(pid),
                    Ok(Work::Name { id, pid, registers, stack }) => {
                        // How much stack lies above the copy is not known: that it ends there is found by unwinding.
                        let [ip, sp, bp, rbx, r12, r13, r14, r15, ..] = registers;
                        let kept = cfg!(target_arch = "x86_64").then_some([rbx, r12, r13, r14, r15]);
                        let sample = Sample { pid, ip, sp, bp, kept, stack: &stack, stack_cut: true };
                        if results.send((id, Arc::new(told(symbolizer.stack(&sample))))).is_err() {
                            return;
                        }
                        used = Some(Instant::now());
                    }
                }
            }
        })?;
        Ok(Self { work, named, under_way: 0, refused: 0, _thread: thread })
    }

    /// Has a process's modules opened now: it may end before its stack is named.
    pub fn note(&self, pid: u32) {
        // When too much waits the stacks themselves matter more.
        let _ = self.work.try_send(Work::Note(pid));
    }

    /// Hands a stack over.
    pub fn name(&mut self, id: StackId, pid: u32, registers: SampleRegisters, stack: &[u8]) {
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
    });
    Stack { frames: frames.collect(), cut }
}
