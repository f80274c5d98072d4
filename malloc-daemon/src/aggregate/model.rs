//! What is true now, as the daemon understands it: no clock, no format, no kernel layout.

use std::sync::Arc;

use malloc_common::abi::{Origin, Slot};
use malloc_common::depth::Depth;
use malloc_common::function::Function;
use malloc_common::loss::Loss;
use malloc_common::site::HeapEvent;

use super::heap::Heap;
mod crossings;
mod stacks;

pub use super::price::{Calibration, Cost, Hits, Prices};
pub use crate::budget::Estimate;
pub use crossings::{ChunkEnds, ChunkFaults, CrossingStacks, Crossings, FaultsTotal, StackShare};
pub use stacks::{Frame, Stack};

/// Everything the daemon knows at one moment. Immutable; shared with readers behind an `Arc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Counts snapshots of this run, from 1.
    pub sequence: u64,
    /// The machine.
    pub host: Host,
    /// The time that the counts cover.
    pub window: Window,
    /// Nothing that happened within the window is missing from this document.
    pub complete: bool,
    /// Losses that cannot be laid to one process; reasons with a count of zero are left out.
    pub losses: Vec<(LossReason, u64)>,
    /// Images of processes, by pid, then by start.
    pub processes: Vec<Arc<Process>>,
    /// Images that were left out because the daemon keeps no more: counted, never silent.
    pub processes_dropped: u64,
    /// Raises of the mmap threshold, the oldest first; the last [`INCIDENTS`] are kept.
    pub raises: Vec<Arc<Raise>>,
    /// Chunks that were mapped, with their stacks, as far as they were sampled; the last [`INCIDENTS`] are kept.
    pub mappings: Vec<Arc<Mapping>>,
    /// The same added up by image and stack, of all that were sampled.
    pub stacks: Vec<Arc<CrossingStacks>>,
    /// Every probe and what became of it.
    pub probes: Vec<Probe>,
    /// What observing costs the daemon.
    pub cost: DaemonCost,
    /// What a hit of a probe costs on this machine.
    pub calibration: Arc<Calibration>,
}

/// The machine that is observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Release of the kernel, e.g. `6.18.44`.
    pub kernel: String,
    /// Processors online.
    pub cpus: u32,
}

/// A span of wall-clock time, for display; the duration is measured on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Milliseconds since 1970 at the start.
    pub start_unix_ms: u64,
    /// Milliseconds since 1970 at the end.
    pub end_unix_ms: u64,
    /// Milliseconds between the two, clock changes left out.
    pub duration_ms: u64,
}

/// Why something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossReason {
    /// The kernel side could not count.
    Kernel(Loss),
    /// The kernel skipped a program because another was running on that CPU.
    ProgramMissed,
    /// The daemon keeps no more processes: the oldest ended one was dropped.
    ProcessDropped,
    /// A raise or a mapping was dropped, or its stack was not named, because too many waited. Counts are not affected.
    IncidentDropped,
    /// Steps or incidents did not get into the history on disk. Counts are not affected.
    HistoryDropped,
}

impl LossReason {
    /// The name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LossReason::Kernel(loss) => loss.name(),
            LossReason::ProgramMissed => "program_missed",
            LossReason::ProcessDropped => "process_dropped",
            LossReason::IncidentDropped => "incident_dropped",
            LossReason::HistoryDropped => "history_dropped",
        }
    }
}

/// A process is its pid and its start: a pid used again is another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Start of the process in clock ticks since boot, as in `/proc/PID/stat`.
    pub start_ticks: u64,
}

/// `/proc` counts in `USER_HZ`, which is 100 on x86-64 and aarch64.
pub const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;

impl ProcessId {
    /// The process that a row counts for. The kernel knows the start to the nanosecond, `/proc` to the tick: the tick is
    /// what both agree on.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        Self { pid: slot.tgid, start_ticks: slot.start_ns / NANOSECONDS_PER_TICK }
    }
}

/// One image of a process: from `exec` (or fork, or when the daemon first saw it) to the next `exec` or the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Who it is.
    pub id: ProcessId,
    /// When this image was first seen, nanoseconds since boot: tells images of one process apart.
    pub image_ns: u64,
    /// Name, as bytes turned to text with replacement characters; may hold anything: escape it.
    pub comm: String,
    /// Path of the executable, when it could be read.
    pub exe: Option<String>,
    /// Path of its control group, when it could be read.
    pub cgroup: Option<String>,
    /// The allocator that serves it, when known.
    pub allocator: Option<Arc<Allocator>>,
    /// How deep it is probed.
    pub depth: Depth,
    /// For each depth above that is not measured although it was asked for: why, in words.
    pub not_measured: Vec<(Depth, String)>,
    /// Its `exec` was seen.
    pub exec_seen: bool,
    /// The counts hold everything since the image began.
    pub from_start: bool,
    /// Nothing is missing from these counts since `observed_ns`.
    pub complete: bool,
    /// Losses of this process.
    pub losses: Vec<(LossReason, u64)>,
    /// How the image ended, if it did.
    pub ended: Option<End>,
    /// Milliseconds it has been observed for.
    pub observed_ms: u64,
    /// Calls, arena, sysmalloc and what the allocator asked of the kernel. `None`: not measured.
    pub funnel: Funnel,
    /// The public functions that were called; `None` when calls are not measured.
    pub functions: Option<Vec<FunctionCount>>,
    /// Sizes that `_int_malloc` was asked for; `None`: not measured.
    pub arena_sizes: Option<Vec<Bucket>>,
    /// Sizes that `sysmalloc` was asked for, padded; `None`: not measured.
    pub sysmalloc_sizes: Option<Vec<Bucket>>,
    /// What the allocator's static probes told of its arenas and heaps; `None`: it has none, or they are not
    /// attached. A single event is `None` where the build has no probe for it.
    pub heap_events: Option<Vec<(HeapEvent, Option<u64>)>>,
    /// Where `functions` are estimates: what was counted exactly of them. Never falls.
    pub counted_functions: Option<Vec<FunctionCount>>,
    /// The mmap threshold; `None`: never read.
    pub threshold: Option<Threshold>,
    /// Its heap as the daemon last read it from the process's memory; `None`: not read.
    pub heap: Option<Arc<Heap>>,
    /// Why reading it failed, when it was tried.
    pub heap_unread: Option<String>,
    /// Chunks that `malloc` mapped; `None`: not measured.
    pub crossings: Option<Crossings>,
    /// All system calls of the process by which memory comes and goes.
    pub syscalls: Syscalls,
    /// All its calls would exceed the budget now: they are counted in windows.
    pub over_budget: bool,
    /// What observing it costs it, an estimate; `None`: the price of a hit was not measured here.
    pub cost: Option<Cost>,
}

impl Process {
    /// Milliseconds between the reading of its heap and the end of what its counts cover.
    #[must_use]
    pub fn heap_age_ms(&self) -> Option<u64> {
        let until_ns = self.image_ns.saturating_add(self.observed_ms.saturating_mul(1_000_000));
        Some(until_ns.saturating_sub(self.heap.as_ref()?.read_ns) / 1_000_000)
    }
}

/// How an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process ended.
    Exited,
    /// It runs another program now.
    Replaced,
    /// The kernel killed the process when memory ran out.
    OomKilled,
}

/// The allocator that a process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// `glibc`, `jemalloc`, `tcmalloc`, `mimalloc`, `musl`, or `unknown`.
    pub kind: String,
    /// Version, e.g. `2.36`.
    pub version: Option<String>,
    /// Build id of the file, hexadecimal.
    pub build_id: Option<String>,
    /// Path of the file as the process sees it.
    pub path: String,
    /// How its internals were found: `symtab`, `debug_data`, `debug_file`, `exports`.
    pub located_by: String,
    /// Names that share an address with a counted function, e.g. `("memalign", ["aligned_alloc"])`.
    pub aliases: Vec<(String, Vec<String>)>,
    /// Public functions that are not counted, each with the reason.
    pub not_counted: Vec<String>,
    /// Other files with a `malloc` that the process maps, each with its kind: their calls, if there are any, are
    /// counted too, their levels below `call` are not told apart.
    pub also_mapped: Vec<String>,
}

/// A count and the sum of what was counted, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub calls: u64,
    /// Sum of their bytes.
    pub bytes: u64,
}

/// The picture: each level rarer and dearer than the one above. `None`: not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Funnel {
    /// Outermost calls of the functions that request bytes.
    pub call: Option<Count>,
    /// Entries of `_int_malloc`.
    pub arena: Option<Count>,
    /// Entries of `sysmalloc`; bytes sum `nb`.
    pub sysmalloc: Option<Count>,
    /// Heap growth by `brk`.
    pub brk: Option<Count>,
    /// Mappings by the allocator: crossings, fallbacks, arena heaps.
    pub mmap: Option<Count>,
    /// `call` is estimated.
    pub call_estimate: Option<Estimate>,
    /// `arena` is estimated.
    pub arena_estimate: Option<Estimate>,
}

/// One bucket: inclusive bounds, not cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Lowest value it holds.
    pub lo: u64,
    /// Highest value it holds; `u64::MAX`: no bound.
    pub hi: u64,
    /// How many values.
    pub calls: u64,
}

/// A count with its distribution; `calls` is the sum over `sizes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sized {
    /// How many, and the sum.
    pub count: Count,
    /// The buckets that are not empty, ascending.
    pub sizes: Vec<Bucket>,
}

/// One public function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCount {
    /// Which.
    pub function: Function,
    /// Outermost calls that could succeed by their arguments.
    pub calls: u64,
    /// Bytes requested; `None` for `free`.
    pub bytes: Option<u64>,
    /// Calls that could not succeed by their arguments; `None` for `free`.
    pub failed: Option<u64>,
    /// Distribution of the bytes requested; `None` for `free`.
    pub sizes: Option<Vec<Bucket>>,
    /// These are estimates, the distribution too.
    pub estimate: Option<Estimate>,
    /// For each of `sizes`: between these lies its part of the calls, millionths, 95 times in 100; `None` as there.
    pub shares_95: Option<Vec<(u32, u32)>>,
}

/// The mmap threshold of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Requests whose chunk is at least this large are mapped, bytes.
    pub bytes: u64,
    /// The top of the heap is given back when it is at least this large, bytes.
    pub trim_bytes: u64,
    /// Whether the allocator moves it.
    pub mode: ThresholdMode,
    /// Where the value comes from.
    pub source: ThresholdSource,
    /// Times it was seen to rise.
    pub raises: u64,
    /// Mapped chunks when it was read.
    pub mmapped_chunks: u64,
    /// Their bytes.
    pub mmapped_bytes: u64,
}

/// Whether the allocator moves the threshold by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdMode {
    /// It rises when a mapped chunk is freed.
    Dynamic,
    /// Set by the program, the environment or a tunable.
    Pinned,
    /// Not known.
    Unknown,
}

/// Where the threshold was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdSource {
    /// The daemon read the process's memory.
    Memory,
    /// A probe read it at the last slow-path event.
    Event,
}

/// The four system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Syscalls {
    /// `mmap`
    pub mmap: SyscallCount,
    /// `munmap`
    pub munmap: SyscallCount,
    /// `mremap`
    pub mremap: SyscallCount,
    /// `brk`; has no sizes.
    pub brk: SyscallCount,
    /// Bytes by which the break rose.
    pub brk_grown_bytes: u64,
    /// Bytes by which it fell.
    pub brk_shrunk_bytes: u64,
}

/// One system call. `calls` is `failed` plus the sum over `by_origin`, except for calls in progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyscallCount {
    /// How many returned.
    pub calls: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Those that succeeded, by who asked; every origin of the call, zeros too. Origins that only the slow path's
    /// probes can tell are `None` where these are not attached.
    pub by_origin: Vec<(Origin, Option<Count>)>,
    /// Lengths asked for, failed calls too; empty for `brk`.
    pub sizes: Vec<Bucket>,
    /// Nanoseconds from entry to return.
    pub latency_ns: Vec<Bucket>,
}

/// One probe, or one family of probes on one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Program and what it is attached to, e.g. `call /usr/lib/x86_64-linux-gnu/libc.so.6 (13 sites)`.
    pub name: String,
    /// Which depth needs it.
    pub depth: Depth,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Attached,
    /// This kernel or this file does not offer it: why.
    Unsupported(String),
    /// It should work and does not: why.
    Broken(String),
}

/// What the daemon itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaemonCost {
    /// CPU time of the daemon since its start, milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Ceiling of its kernel maps, bytes.
    pub kernel_bytes: u64,
    /// Duration of the last collection, microseconds.
    pub collect_us: u64,
}

/// Which configuration is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The file; `None`: the defaults and the command line.
    pub file: Option<String>,
    /// When it was taken over, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The last reload, if it was refused: when, milliseconds since 1970, and why.
    pub refused: Option<(u64, String)>,
    /// Keys that the file changes and only a restart takes over.
    pub restart_for: Vec<&'static str>,
}

/// Raises kept of one process: where there are more, its own oldest go.
pub const RAISES_OF_ONE: usize = 128;
/// Mappings kept of one process.
pub const MAPPINGS_OF_ONE: usize = 256;
/// Raises kept, and mappings kept. 1,024 x about 4 KiB of named frames = 4 MiB each.
pub const INCIDENTS: usize = 1024;

/// Someone raised the mmap threshold of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise {
    /// Counts the raises of this run, from 1.
    pub number: u64,
    /// Which process.
    pub id: ProcessId,
    /// Its thread's name.
    pub comm: String,
    /// Thread.
    pub tid: u32,
    /// When, nanoseconds since boot.
    pub ns: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Threshold before, bytes; 0: not known, because the process was not looked at before.
    pub from_bytes: u64,
    /// Threshold after, bytes.
    pub to_bytes: u64,
    /// The chunk whose free raised it, bytes; `None`: the raise was seen later, at another event of the process, and
    /// who raised it is not known.
    pub chunk_bytes: Option<u64>,
    /// Who freed it; `None` while it is being named, or when the cause is not known.
    pub stack: Option<Arc<Stack>>,
    /// Who mapped that chunk, or else last mapped one of its size, if a sampled mapping was one.
    pub mapped_by: Option<Arc<Stack>>,
}

/// A chunk that `malloc` mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Counts the sampled mappings of this run, from 1.
    pub number: u64,
    /// Which process.
    pub id: ProcessId,
    /// Its thread's name.
    pub comm: String,
    /// Thread.
    pub tid: u32,
    /// When, nanoseconds since boot.
    pub ns: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Where.
    pub address: u64,
    /// Bytes mapped.
    pub bytes: u64,
    /// `nb` of its `sysmalloc`; 0: not seen.
    pub nb: u64,
    /// Nanoseconds in `mmap`.
    pub mmap_ns: u64,
    /// Which crossing of the process it is, from 1.
    pub nth: u64,
    /// How many crossings it stands for: itself and those since the last one that was sampled.
    pub weight: u64,
    /// Who asked for it; `None` while it is being named.
    pub stack: Option<Arc<Stack>>,
}
