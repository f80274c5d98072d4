//! The public promise in JSON: what each document holds, and nothing that behaves.
//!
//! `null` means *not measured at this depth*, or not known; it is never zero, and zero never stands for it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod cost;
mod crossings;
mod list;

pub use super::estimate::{Bucket, Estimate, Level};
pub use cost::{ByDepth, Calibration, Cost, Daemon, HitPrices};
pub use crossings::{ChunkFaults, Crossings};
pub use list::{ListDifference, ListedAllocator, ListedProcess, ListedSyscall, ListedSyscalls, ProcessList};

/// The version of every document here.
pub const SCHEMA_VERSION: u32 = 1;

/// Text of the model, borrowed when written and owned when read back.
pub type Text<'a> = Cow<'a, str>;
/// By origin; `null`: not told apart at this depth.
pub type ByOrigin<'a> = BTreeMap<Text<'a>, Option<u64>>;

/// `/v1/snapshot`, and the report of `record --format json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot<'a, P = Vec<Process<'a>>> {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Counts snapshots of this run, from 1.
    pub sequence: u64,
    /// The machine.
    pub host: Host<'a>,
    /// The time that the counts cover.
    pub window: Window,
    /// Nothing that happened within the window is missing.
    pub complete: bool,
    /// What is missing and cannot be laid to one process; every reason, zeros too.
    pub losses: Vec<Loss<'a>>,
    /// Images of processes.
    pub processes: P,
    /// Images left out because the daemon keeps no more.
    pub processes_dropped: u64,
}

/// `/v1/snapshot?since=`: the snapshot document with the processes that changed, and what that is a difference to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference<'a, P = Vec<Process<'a>>> {
    /// The document; `processes` are those that changed, or all.
    #[serde(flatten)]
    pub snapshot: Snapshot<'a, P>,
    /// The sequence that was asked for.
    pub since: u64,
    /// `processes` are all: that sequence is unknown or too old.
    pub whole: bool,
    /// Images that are no longer there; empty when `whole`.
    pub gone: Vec<Gone>,
}

/// An image of a process that is no longer there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Process id.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start_time_ticks: u64,
    /// When the image was first seen, nanoseconds since boot.
    pub image_ns: u64,
}

/// `/v1/processes/{pid}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneProcess<'a> {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// The snapshot it is taken from.
    pub sequence: u64,
    /// The machine.
    pub host: Host<'a>,
    /// The time that the counts cover.
    pub window: Window,
    /// How many images of that pid are known; the newest is shown, a live one before those that ended.
    pub images: usize,
    /// That image.
    pub process: Process<'a>,
}

/// `/v1/health`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health<'a> {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// `ok`; `incomplete`: something is missing; `broken`: a probe that should work does not.
    pub status: Text<'a>,
    /// Nothing that happened within the window is missing.
    pub complete: bool,
    /// All losses, those of processes included; every reason, zeros too.
    pub losses: Vec<Loss<'a>>,
    /// Every probe.
    pub probes: Vec<Probe<'a>>,
    /// What observing costs.
    pub daemon: Daemon<'a>,
    /// Which configuration is in force.
    pub configuration: Configuration<'a>,
    /// The history on disk; `null`: none is kept.
    pub history: Option<super::history::Health>,
    /// What a hit of a probe costs the observed programs.
    pub calibration: Calibration<'a>,
    /// The snapshot it is taken from.
    pub sequence: u64,
    /// The time that the counts cover.
    pub window: Window,
}

/// Which configuration is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configuration<'a> {
    /// The file; `null`: the defaults and the command line.
    pub file: Option<Text<'a>>,
    /// When it was taken over, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The last reload, if it was refused; the configuration before it stays in force.
    pub refused: Option<Refused<'a>>,
    /// Keys that the file changes and only a restart takes over.
    pub restart_for: Vec<Text<'a>>,
}

/// A reload that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused<'a> {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// What is wrong with the file.
    pub why: Text<'a>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host<'a> {
    /// Release of the kernel.
    pub kernel: Text<'a>,
    /// Processors online.
    pub cpus: u32,
}

/// A span of wall-clock time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Milliseconds since 1970.
    pub start_unix_ms: u64,
    /// Milliseconds since 1970.
    pub end_unix_ms: u64,
    /// Milliseconds on the monotonic clock.
    pub duration_ms: u64,
}

/// A reason why something is missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss<'a> {
    /// Its name.
    pub reason: Text<'a>,
    /// How often.
    pub count: u64,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe<'a> {
    /// Program and what it is attached to.
    pub name: Text<'a>,
    /// Which depth needs it.
    pub depth: Text<'a>,
    /// `ok`, `unsupported` or `broken`.
    pub verdict: Text<'a>,
    /// Why it is not `ok`.
    pub why: Option<Text<'a>>,
}

/// One image of a process, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process<'a> {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Start in clock ticks since boot: with `pid` its identity.
    pub start_time_ticks: u64,
    /// When this image was first seen, nanoseconds since boot: tells images of one process apart.
    pub image_ns: u64,
    /// The name it gave itself.
    pub comm: Text<'a>,
    /// Path of the executable.
    pub exe: Option<Text<'a>>,
    /// Path of its control group.
    pub cgroup: Option<Text<'a>>,
    /// The allocator that serves it.
    pub allocator: Option<Allocator<'a>>,
    /// `syscall`, `sysmalloc`, `arena` or `call`.
    pub depth: Text<'a>,
    /// Depths that were asked for and are not measured.
    pub not_measured: Vec<NotMeasured<'a>>,
    /// The counts hold everything since the image began.
    pub from_start: bool,
    /// Nothing is missing since it was first observed.
    pub complete: bool,
    /// Its losses; reasons with a count of zero are left out.
    pub losses: Vec<Loss<'a>>,
    /// `null` while it runs; `exited`; `replaced` by another program.
    pub ended: Option<Text<'a>>,
    /// Milliseconds it has been observed for.
    pub observed_ms: u64,
    /// From call to kernel.
    pub funnel: Funnel,
    /// The public functions that were called.
    pub functions: Option<Vec<Function<'a>>>,
    /// Sizes that `_int_malloc` was asked for.
    pub arena_sizes: Option<Vec<Bucket>>,
    /// Sizes that `sysmalloc` was asked for, padded.
    pub sysmalloc_sizes: Option<Vec<Bucket>>,
    /// What the allocator's static probes told, by event; `null`: it has none, or they are not attached.
    pub heap_events: Option<BTreeMap<Text<'a>, Option<u64>>>,
    /// The mmap threshold.
    pub threshold: Option<Threshold<'a>>,
    /// What its arenas hold together; `null`: not read.
    pub heap: Option<super::heap::Heap>,
    /// The arenas, the main one first; `null`: not read.
    pub arenas: Option<Vec<super::heap::Arena>>,
    /// Why they were not read, when it was tried.
    pub heap_unread: Option<Text<'a>>,
    /// Chunks that `malloc` mapped.
    pub crossings: Option<Crossings>,
    /// All system calls of the process by which memory comes and goes.
    pub syscalls: Syscalls<'a>,
    /// What these numbers mean.
    pub explanation: Vec<super::meaning::Explanation<'a>>,
    /// What other thresholds would have done.
    pub what_if: Vec<super::meaning::WhatIf<'a>>,
    /// What observing costs it.
    pub cost: Option<Cost>,
}

/// The allocator of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocator<'a> {
    /// `glibc`, `jemalloc`, `tcmalloc`, `mimalloc`, `musl` or `unknown`.
    pub kind: Text<'a>,
    /// Version.
    pub version: Option<Text<'a>>,
    /// Build id, hexadecimal.
    pub build_id: Option<Text<'a>>,
    /// Path as the process sees it.
    pub path: Text<'a>,
    /// How its internals were found.
    pub located_by: Text<'a>,
    /// Public functions that are not counted, each with the reason.
    pub not_counted: Vec<Text<'a>>,
    /// Other files with a `malloc` that the process maps.
    pub also_mapped: Vec<Text<'a>>,
}

/// A depth that was asked for and is not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotMeasured<'a> {
    /// Which.
    pub depth: Text<'a>,
    /// Why, in words.
    pub why: Text<'a>,
}

/// How many, and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub calls: u64,
    /// Sum of their bytes.
    pub bytes: u64,
}

/// From call to kernel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Funnel {
    /// Outermost calls that request bytes.
    pub call: Option<Level>,
    /// Entries of `_int_malloc`.
    pub arena: Option<Level>,
    /// Entries of `sysmalloc`.
    pub sysmalloc: Option<Count>,
    /// Heap growth.
    pub brk: Option<Count>,
    /// Mappings by the allocator.
    pub mmap: Option<Count>,
}

/// One public function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function<'a> {
    /// Its name.
    pub name: Text<'a>,
    /// Names of the same code.
    pub aliases: Vec<Text<'a>>,
    /// Outermost calls that could succeed.
    pub calls: u64,
    /// Calls that could not succeed by their arguments; `null` for `free`.
    pub failed: Option<u64>,
    /// Bytes requested; `null` for `free`.
    pub bytes: Option<u64>,
    /// Their distribution; `null` for `free`.
    pub sizes: Option<Vec<Bucket>>,
    /// How sure all of that is; nothing: they were counted.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// The mmap threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold<'a> {
    /// Chunks at least this large are mapped.
    pub bytes: u64,
    /// The top of the heap is given back from here.
    pub trim_bytes: u64,
    /// `dynamic`, `pinned` or `unknown`.
    pub mode: Text<'a>,
    /// `memory` or `event`.
    pub source: Text<'a>,
    /// Times it was seen to rise.
    pub raises: u64,
    /// Mapped chunks when it was read.
    pub mmapped_chunks: u64,
    /// Their bytes.
    pub mmapped_bytes: u64,
}

/// The four system calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Syscalls<'a> {
    /// `mmap`
    pub mmap: Syscall<'a>,
    /// `munmap`
    pub munmap: Syscall<'a>,
    /// `mremap`
    pub mremap: Syscall<'a>,
    /// `brk`
    pub brk: Brk<'a>,
}

/// One system call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Syscall<'a> {
    /// How many returned.
    pub calls: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Calls that succeeded, by who asked.
    pub by_origin: ByOrigin<'a>,
    /// Their bytes.
    pub bytes_by_origin: ByOrigin<'a>,
    /// Lengths asked for.
    pub sizes: Vec<Bucket>,
    /// Nanoseconds from entry to return.
    pub latency_ns: Vec<Bucket>,
}

/// `brk` moves an end instead of naming a length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Brk<'a> {
    /// How many returned.
    pub calls: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes by which the break rose.
    pub grown_bytes: u64,
    /// Bytes by which it fell.
    pub shrunk_bytes: u64,
    /// Calls that succeeded, by who asked.
    pub by_origin: ByOrigin<'a>,
    /// Bytes by which these moved the break.
    pub bytes_by_origin: ByOrigin<'a>,
    /// Nanoseconds from entry to return.
    pub latency_ns: Vec<Bucket>,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure<'a> {
    /// What went wrong.
    pub error: FailureCode<'a>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailureCode<'a> {
    /// For programs: stays as it is.
    pub code: Text<'a>,
    /// For people: may change.
    pub message: Text<'a>,
}
