//! `trace`: prints each chain from malloc to the system call as it happens.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use malloc_common::abi::{
    CHAIN_AT_BRANCH, CHAIN_HAS_ARENA, CHAIN_HAS_CALL, EVENT_CHAIN, EVENT_EXEC, EVENT_RAISE, EVENT_SYSCALL, Event,
    Origin, Syscall,
};
use malloc_common::depth::Depth;
use malloc_common::site::{Cookie, Role};
use malloc_common::tracker::traced_function;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::subject::{Ended, Gated, Signals, forward, handle, probe_command, shell_status, watch};
use super::{INCOMPLETE, recording};
use crate::cli::Trace;
use crate::host::file::FileKey;
use crate::observe::{Observer, Selection, unix_ms};
use crate::report::trace::{Chain, ChainStep, Filter, HOLD_NS, Raised, Return, Slow, SlowRole, Tracer, Wording};

/// Chains without a system call are printed after this time at the latest.
const TICK: Duration = Duration::from_nanos(HOLD_NS);

/// What the lines need to know of clock and libc.
struct Words {
    /// Nanoseconds since midnight here, at the start of the machine.
    boot_time_of_day_ns: i128,
    /// Address of `main_arena` by process, filled as chains come.
    main_arenas: Rc<RefCell<HashMap<u32, u64>>>,
}

/// Processes whose arena is remembered.
const ARENAS: usize = 4096;
const DAY_NS: i128 = 86_400 * 1_000_000_000;

impl Wording for Words {
    fn time_of_day(&self, ns: u64) -> u64 {
        u64::try_from((self.boot_time_of_day_ns + i128::from(ns)).rem_euclid(DAY_NS)).unwrap_or(0)
    }

    fn main_arena(&self, tgid: u32) -> Option<u64> {
        self.main_arenas.borrow().get(&tgid).copied()
    }
}

/// One trace under way.
struct Session {
    tracer: Tracer<Words>,
    main_arenas: Rc<RefCell<HashMap<u32, u64>>>,
    arena_distance: Option<u64>,
    /// The process that waits behind the gate: what it does before it becomes the command is not the command's.
    gated: Option<u32>,
    lost: bool,
}

/// Traces.
pub fn run(args: &Trace) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch(&[SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    match args.whom.pid {
        Some(pid) => {
            let process = handle(pid)?;
            let mut observer = Observer::start(recording(Depth::Call, Selection::Chosen, true, false))?;
            let key = match observer.probe_process(pid, Depth::Call) {
                Ok(Some(key)) => key,
                Ok(None) => anyhow::bail!("process {pid} has no allocator that can be probed"),
                Err(why) => anyhow::bail!("process {pid}: {why}"),
            };
            let mut session = Session::new(args, &observer, Some(key), None);
            observer.choose(pid)?;
            eprintln!("malloc-daemon: tracing process {pid}; Ctrl-C ends it");
            session.watch(&mut observer, process.as_fd(), &mut signals, &|_| true)?;
            session.finish(&mut observer)?;
            Ok(if session.lost { ExitCode::from(INCOMPLETE) } else { ExitCode::SUCCESS })
        }
        None => {
            let mut observer = Observer::start(recording(Depth::Call, Selection::Chosen, true, false))?;
            let key = probe_command(&mut observer, &args.whom.command)?.and_then(Result::ok);
            let gated = Gated::start(&args.whom.command)?;
            let pid = gated.pid();
            let process = handle(pid)?;
            let mut session = Session::new(args, &observer, key, Some(pid));
            observer.follow(pid)?;
            let mut child = gated.open()?;
            loop {
                match session.watch(&mut observer, process.as_fd(), &mut signals, &|_| true)? {
                    Ended::Signal(SIGINT | SIGQUIT) => {}
                    Ended::Signal(signal) => forward(&child, signal),
                    // Enough chains: the command runs on, without probes.
                    Ended::Process | Ended::Time => break,
                }
            }
            session.finish(&mut observer)?;
            drop(observer);
            Ok(ExitCode::from(shell_status(child.wait().context("the command is gone")?)))
        }
    }
}

impl Session {
    fn new(args: &Trace, observer: &Observer, key: Option<FileKey>, gated: Option<u32>) -> Self {
        let main_arenas = Rc::new(RefCell::new(HashMap::new()));
        let words = Words { boot_time_of_day_ns: boot_time_of_day_ns(), main_arenas: Rc::clone(&main_arenas) };
        Self {
            tracer: Tracer::new(words, Filter { min_bytes: args.min_bytes, count: args.count }),
            main_arenas,
            arena_distance: key.and_then(|key| observer.arena_distance(&key)),
            gated,
            lost: false,
        }
    }

    fn watch(
        &mut self,
        observer: &mut Observer,
        process: std::os::fd::BorrowedFd<'_>,
        signals: &mut Signals,
        ends: &dyn Fn(i32) -> bool,
    ) -> anyhow::Result<Ended> {
        watch(observer, Some(process), signals, None, TICK, ends, &mut |observer| {
            self.print(observer, crate::collect::boot_ns()).unwrap_or(true) || self.tracer.finished()
        })
    }

    /// Prints what came; true when nobody reads any more.
    fn print(&mut self, observer: &mut Observer, now_ns: u64) -> anyhow::Result<bool> {
        let mut out = String::new();
        observer.drain_events(&mut |event| {
            if self.gated == Some(event.tgid) {
                if event.kind == EVENT_EXEC {
                    self.gated = None;
                }
                return;
            }
            if let Some(step) = self.step(event) {
                out.push_str(&self.tracer.feed(step));
            }
        });
        out.push_str(&self.tracer.flush(now_ns));
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
        Ok(written.is_err())
    }

    fn finish(&mut self, observer: &mut Observer) -> anyhow::Result<()> {
        if !self.tracer.finished() {
            self.print(observer, u64::MAX)?;
        }
        let snapshot = observer.collect();
        let lost: u64 = snapshot.losses.iter().map(|(_, count)| count).sum::<u64>() + self.tracer.forgotten();
        if lost > 0 {
            self.lost = true;
            let reasons: Vec<_> =
                snapshot.losses.iter().map(|(reason, count)| format!("{count} {}", reason.name())).collect();
            eprintln!("malloc-daemon: the trace is incomplete: {}", reasons.join(", "));
        }
        Ok(())
    }

    fn step(&self, event: &Event) -> Option<ChainStep> {
        let v = &event.values;
        match event.kind {
            EVENT_CHAIN => {
                let role = match Cookie(v[8] >> 8 & 0xff).role()? {
                    Role::Sysmalloc | Role::MapChunk | Role::MapFallback | Role::Grow => SlowRole::Sysmalloc,
                    Role::MunmapChunk | Role::UnmapChunk => SlowRole::MunmapChunk,
                    Role::Systrim | Role::Trim => SlowRole::Systrim,
                    Role::NewHeap | Role::MapHeap => SlowRole::NewHeap,
                    Role::RemapChunk => SlowRole::MremapChunk,
                    Role::UnmapHeap => SlowRole::HeapTrim,
                    Role::Call(_) | Role::Transfer(_) | Role::Arena | Role::Raise | Role::Told(_) => return None,
                };
                let mut arenas = self.main_arenas.borrow_mut();
                if let (Some(distance), true, true) = (self.arena_distance, v[9] != 0, arenas.len() < ARENAS) {
                    arenas.insert(event.tgid, v[9].wrapping_add(distance));
                }
                let function = traced_function(v[0]).filter(|_| v[8] & CHAIN_HAS_CALL != 0);
                Some(ChainStep::Chain(Chain {
                    tgid: event.tgid,
                    tid: event.tid,
                    comm: comm(&event.comm),
                    chain: event.chain,
                    ns: event.ns,
                    call: function.map(|function| (function, [v[1], v[2], v[3]])),
                    arena: (v[8] & CHAIN_HAS_ARENA != 0).then_some((v[4], v[5])),
                    raised: None,
                    slow: Slow { role, args: (v[8] & CHAIN_AT_BRANCH == 0).then_some([v[6], v[7]]) },
                }))
            }
            EVENT_RAISE => Some(ChainStep::Raise(Raised {
                tgid: event.tgid,
                tid: event.tid,
                comm: comm(&event.comm),
                ns: event.ns,
                from: v[0],
                to: v[1],
                chunk: (v[2] != 0).then_some(v[2]),
            })),
            EVENT_SYSCALL => Some(ChainStep::Syscall(Return {
                tgid: event.tgid,
                tid: event.tid,
                chain: event.chain,
                ns: event.ns,
                syscall: u8::try_from(v[8]).ok().and_then(Syscall::from_index)?,
                origin: u8::try_from(v[9]).ok().and_then(Origin::from_index)?,
                args: [v[0], v[1], v[2], v[3], v[4], v[5]],
                result: v[6].cast_signed(),
                latency_ns: v[7],
            })),
            _ => None,
        }
    }
}

fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

fn boot_time_of_day_ns() -> i128 {
    let now_ns = i128::from(unix_ms()) * 1_000_000;
    let zone_ns = i128::from(jiff::Zoned::now().offset().seconds()) * 1_000_000_000;
    now_ns + zone_ns - i128::from(crate::collect::boot_ns())
}
