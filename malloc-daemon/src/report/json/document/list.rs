//! `/v1/processes`: images of processes in short.

use serde::{Deserialize, Serialize};

use super::{Cost, Count, Funnel, Gone, Text, Threshold, Window};
use crate::report::json::heap::ListedHeap;

/// `/v1/processes`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessList<P = Vec<ListedProcess<'static>>> {
    /// [`super::SCHEMA_VERSION`]
    pub schema_version: u32,
    /// The snapshot it is taken from.
    pub sequence: u64,
    /// The time that the counts cover.
    pub window: Window,
    /// Images of processes, without functions and histograms.
    pub processes: P,
}

/// `/v1/processes?since=`: the list of the images that changed, and what that is a difference to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListDifference<P = Vec<ListedProcess<'static>>> {
    /// The list; `processes` are those that changed, or all.
    #[serde(flatten)]
    pub list: ProcessList<P>,
    /// The sequence that was asked for.
    pub since: u64,
    /// `processes` are all: that sequence is unknown or too old.
    pub whole: bool,
    /// Images that are no longer there; empty when `whole`.
    pub gone: Vec<Gone>,
}

/// One image of a process, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedProcess<'a> {
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
    pub allocator: Option<ListedAllocator<'a>>,
    /// `syscall`, `sysmalloc`, `arena` or `call`.
    pub depth: Text<'a>,
    /// Nothing is missing since it was first observed.
    pub complete: bool,
    /// `null` while it runs; `exited`; `replaced` by another program.
    pub ended: Option<Text<'a>>,
    /// Milliseconds it has been observed for.
    pub observed_ms: u64,
    /// From call to kernel.
    pub funnel: Funnel,
    /// The mmap threshold.
    pub threshold: Option<Threshold<'a>>,
    /// What its arenas hold together, in short; `null`: not read.
    pub heap: Option<ListedHeap>,
    /// Chunks that `malloc` mapped.
    pub crossings: Option<Count>,
    /// System calls in short.
    pub syscalls: ListedSyscalls,
    /// What observing costs it.
    pub cost: Option<Cost>,
}

/// The allocator of a process, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedAllocator<'a> {
    /// `glibc`, `jemalloc`, `tcmalloc`, `mimalloc`, `musl` or `unknown`.
    pub kind: Text<'a>,
    /// Version.
    pub version: Option<Text<'a>>,
}

/// The four system calls in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedSyscalls {
    /// `mmap`
    pub mmap: ListedSyscall,
    /// `munmap`
    pub munmap: ListedSyscall,
    /// `mremap`
    pub mremap: ListedSyscall,
    /// `brk`
    pub brk: ListedSyscall,
}

/// One system call in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedSyscall {
    /// How many returned.
    pub calls: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
}
