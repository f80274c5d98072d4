//! The layouts that cross the kernel boundary: fixed-width integers and arrays only.

use crate::chunk::{Chunk, WATCHES, Watch};
use crate::function::{Function, SIZED_FUNCTIONS};
use crate::histogram::BUCKETS;
pub use crate::origin::{ALL_ORIGINS, ORIGINS, Origin, SYSCALLS, Syscall};
pub use crate::sample::{SAVED_REGISTERS, STACK_BYTES, Sample, SampleRegisters, sample_from_bytes};
use crate::site::{HEAP_EVENTS, HeapEvent};

/// What a histogram of a process counts. The discriminants index [`Slot::series`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Series {
    /// Entries of a function that requests bytes.
    Call(Function),
    /// Entries of that function which the allocator itself made; taken off [`Series::Call`].
    Transfer(Function),
    /// `_int_malloc` by bytes.
    Arena,
    /// `sysmalloc` by `nb`.
    Sysmalloc,
    /// Mapped chunks by the length of the mapping.
    Crossing,
    /// System calls by length.
    Sizes(Syscall),
    /// System calls by nanoseconds from entry to return.
    Latency(Syscall),
    /// Mapped chunks that were unmapped, by nanoseconds from their `mmap` to their `munmap`.
    Lifetime,
    /// Watched chunks by the page faults that their memory took.
    ChunkFaults,
}

/// How many series a process can have.
pub const SERIES: usize = 2 * SIZED_FUNCTIONS + 3 + 3 + 4 + 2;

impl Series {
    /// The index in [`Slot::series`]; [`Function::Free`] and the sizes of `brk` have none and share
    /// [`SERIES`], which no slot holds.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> usize {
        const ARENA: usize = 2 * SIZED_FUNCTIONS;
        match self {
            Series::Call(Function::Free) | Series::Transfer(Function::Free) | Series::Sizes(Syscall::Brk) => SERIES,
            Series::Call(f) => f as usize,
            Series::Transfer(f) => SIZED_FUNCTIONS + f as usize,
            Series::Arena => ARENA,
            Series::Sysmalloc => ARENA + 1,
            Series::Crossing => ARENA + 2,
            Series::Sizes(s) => ARENA + 3 + s as usize,
            Series::Latency(s) => ARENA + 6 + s as usize,
            Series::Lifetime => ARENA + 10,
            Series::ChunkFaults => ARENA + 11,
        }
    }
}

/// A plain count of a process. The discriminants of [`Counter::index`] index [`Slot::counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Calls of `free` with a block.
    Free,
    /// Those of them which the allocator itself made.
    FreeTransfer,
    /// Calls of a sized function that could not succeed by their arguments.
    Failed(Function),
    /// Those of them which the allocator itself made.
    FailedTransfer(Function),
    /// System calls that failed.
    SyscallFailed(Syscall),
    /// System calls that succeeded, by origin.
    OriginCalls(Origin),
    /// Bytes of those: length mapped, unmapped, asked of `mremap`, or the break's distance moved.
    OriginBytes(Origin),
    /// Bytes by which `brk` raised the break, whoever asked.
    BrkGrown,
    /// Bytes by which `brk` lowered the break.
    BrkShrunk,
    /// Times the mmap threshold was seen to have risen.
    Raises,
    /// Calls that are missing because no histogram was free.
    Uncounted,
    /// System calls whose origin or time is missing because no thread state was free.
    Unattributed,
    /// Nanoseconds in the `mmap`s of crossings.
    CrossingNs,
    /// Nanoseconds in the `munmap`s of mapped chunks, failed ones too.
    ChunkUnmapNs,
    /// Nanoseconds in the `mremap`s of mapped chunks, failed ones too.
    ChunkRemapNs,
    /// Mapped chunks that were unmapped within [`crate::chunk::CHURN_NS`].
    ChurnedChunks,
    /// Bytes of these.
    ChurnedBytes,
    /// Mapped chunks that were unmapped and whose birth is not known.
    BirthUnknown,
    /// Times a mapped chunk could not be remembered because the table was full.
    ChunksUntracked,
    /// Bytes of the chunks in [`Series::ChunkFaults`].
    WatchedBytes,
    /// Sum of the squares of their page faults.
    FaultsSquared,
    /// Those of them that were watched to their end and unmapped within [`crate::chunk::CHURN_NS`].
    ChurnWatched,
    /// Page faults of these.
    ChurnFaults,
    /// Hits of call probes that count as no call: `free(NULL)`.
    IdleHits,
    /// Hits of probes on functions of the slow path.
    SlowHits,
    /// Hits of probes on branches to system calls.
    BranchHits,
    /// What a static probe told.
    Told(HeapEvent),
}

/// How many counters a process has.
pub const COUNTERS: usize = 2 + 2 * SIZED_FUNCTIONS + 4 + 2 * ORIGINS + 5 + 7 + 4 + 3 + HEAP_EVENTS;

impl Counter {
    /// The index in [`Slot::counters`].
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> usize {
        const FAILED: usize = 2;
        const SYSCALL_FAILED: usize = FAILED + 2 * SIZED_FUNCTIONS;
        const CALLS: usize = SYSCALL_FAILED + 4;
        const BYTES: usize = CALLS + ORIGINS;
        const REST: usize = BYTES + ORIGINS;
        match self {
            Counter::Free => 0,
            Counter::FreeTransfer => 1,
            Counter::Failed(f) => FAILED + (f as usize & 7),
            Counter::FailedTransfer(f) => FAILED + SIZED_FUNCTIONS + (f as usize & 7),
            Counter::SyscallFailed(s) => SYSCALL_FAILED + s as usize,
            Counter::OriginCalls(o) => CALLS + o as usize,
            Counter::OriginBytes(o) => BYTES + o as usize,
            Counter::BrkGrown => REST,
            Counter::BrkShrunk => REST + 1,
            Counter::Raises => REST + 2,
            Counter::Uncounted => REST + 3,
            Counter::Unattributed => REST + 4,
            Counter::CrossingNs => REST + 5,
            Counter::ChunkUnmapNs => REST + 6,
            Counter::ChunkRemapNs => REST + 7,
            Counter::ChurnedChunks => REST + 8,
            Counter::ChurnedBytes => REST + 9,
            Counter::BirthUnknown => REST + 10,
            Counter::ChunksUntracked => REST + 11,
            Counter::WatchedBytes => REST + 12,
            Counter::FaultsSquared => REST + 13,
            Counter::ChurnWatched => REST + 14,
            Counter::ChurnFaults => REST + 15,
            Counter::IdleHits => REST + 16,
            Counter::SlowHits => REST + 17,
            Counter::BranchHits => REST + 18,
            Counter::Told(event) => REST + 19 + event as usize,
        }
    }
}

/// [`Slot::state`]: nobody's.
pub const SLOT_FREE: u32 = 0;
/// [`Slot::state`]: counting.
pub const SLOT_LIVE: u32 = 1;
/// [`Slot::state`]: the process ended; nothing is added any more.
pub const SLOT_EXITED: u32 = 2;
/// [`Slot::state`]: the process runs another program now; nothing is added any more.
pub const SLOT_REPLACED: u32 = 3;
/// [`Slot::state`]: as [`SLOT_EXITED`], by the kernel's choice when memory ran out.
pub const SLOT_OOM_KILLED: u32 = 4;

/// [`Slot::born`]: first seen in the middle of its life.
pub const BORN_UNSEEN: u16 = 0;
/// [`Slot::born`]: its `exec` was seen.
pub const BORN_EXEC: u16 = 1;

/// One image of a process: from `exec` (or fork, or the first event seen) to the next `exec` or the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// One of the `SLOT_` constants.
    pub state: u32,
    /// One of the `BORN_` constants.
    pub born: u16,
    /// 1: something is counted in its stripes.
    pub striped: u16,
    /// `no_dyn_threshold` as last read.
    pub threshold_pinned: u32,
    /// Start of the process, nanoseconds since boot: with `tgid` its identity.
    pub start_ns: u64,
    /// When this image was first seen, nanoseconds since boot.
    pub first_ns: u64,
    /// When it ended, nanoseconds since boot; 0 while it lives.
    pub end_ns: u64,
    /// Name of the thread that was first seen, as the kernel has it: not always terminated, any bytes.
    pub comm: [u8; 16],
    /// `mp_.mmap_threshold` as last read from the process, bytes; 0: never read.
    pub threshold: u64,
    /// `mp_.trim_threshold`, bytes.
    pub trim_threshold: u64,
    /// `mp_.n_mmaps`: mapped chunks.
    pub mmapped_chunks: u64,
    /// `mp_.mmapped_mem`, bytes.
    pub mmapped_bytes: u64,
    /// When these four were read, nanoseconds since boot.
    pub threshold_ns: u64,
    /// Where `mp_` lies, an [`MpPlace`](crate::tracker::MpPlace); 0: not known.
    pub mp_place: u64,
    /// When a crossing was last sent with its stack, nanoseconds since boot.
    pub sampled_ns: u64,
    /// Mapped chunks whose page faults are being counted.
    pub watches: [Watch; WATCHES],
    /// Indexed by [`Series::index`]: 1 + the index of a [`Histogram`]; 0: nothing recorded yet. Those of the calls are in
    /// its [stripes](crate::stripe).
    pub series: [u32; SERIES],
    /// Indexed by [`Counter::index`], without what its [stripes](crate::stripe) count.
    pub counters: [u64; COUNTERS],
}

/// One histogram; the calls are the sum over the buckets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Sum of the recorded values.
    pub sum: u64,
    /// Indexed by [`crate::histogram::bucket`].
    pub buckets: [u64; BUCKETS],
}

/// What a thread is in the middle of, on the slow path only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Stack pointer at the branch that leads to a system call, or where `sysmalloc` is sure to take one; 0: none is
    /// expected.
    pub branch_sp: u64,
    /// Stack pointer at the last `sysmalloc`; 0: none seen.
    pub sysmalloc_sp: u64,
    /// `nb` of the last `sysmalloc`; 0: none seen.
    pub nb: u64,
    /// When the system call entered, nanoseconds since boot.
    pub entered_ns: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The break before a `brk`.
    pub old_break: u64,
    /// The chunk that a `munmap` or `mremap` under way takes.
    pub chunk: Chunk,
    /// Last public call: function and arguments (only while tracing).
    pub call: [u64; 3],
    /// Stack pointer at that call.
    pub call_sp: u64,
    /// Last `_int_malloc`: `av`, `bytes` (only while tracing).
    pub arena: [u64; 2],
    /// Stack pointer at that `_int_malloc`.
    pub arena_sp: u64,
    /// Counts the thread's chains, so that the events of one can be put together.
    pub chain: u32,
    /// Cookie byte of the role expected to make the next system call; 0: none.
    pub branch_role: u8,
    /// 1 + the [`Syscall`] that entered and has not returned; 0: none.
    pub entered: u8,
    /// The [`Origin`] of that system call.
    pub origin: u8,
    /// A `brk` failed since the last `sysmalloc` began.
    pub brk_failed: u8,
    /// The function of `call`, 255: none.
    pub function: u8,
    /// A chain was sent since that call (only while tracing).
    pub chained: u8,
    /// Explicit padding.
    pub pad: [u8; 6],
}

/// [`Event::kind`]: a process runs another program now.
pub const EVENT_EXEC: u32 = 1;
/// [`Event::kind`]: a process ended.
pub const EVENT_EXIT: u32 = 2;
/// [`Event::kind`]: a slow-path function was entered; see [`Event::values`].
pub const EVENT_CHAIN: u32 = 3;
/// [`Event::kind`]: a system call of the allocator returned.
pub const EVENT_SYSCALL: u32 = 4;
/// [`Event::kind`]: a process mapped code of a file.
/// `values`: address, bytes, offset in the file.
pub const EVENT_MAPPED: u32 = 5;

/// [`Event::kind`]: a process that is counted has a new child process. `values`: its process id.
pub const EVENT_FORK: u32 = 8;

/// [`Event::kind`], of a [`Sample`] and (while tracing) alone: a free raised the mmap threshold.
/// `values`: threshold before and after, bytes of the chunk that was freed (0: the raise was seen later, at another
/// event, and the stack is not that of its cause), its address (0: not known), 1 where it had no room as a sample.
pub const EVENT_RAISE: u32 = 7;
/// [`Event::kind`] of a [`Sample`]: `malloc` mapped a chunk.
/// `values`: bytes mapped, `nb`, address, nanoseconds in `mmap`, how many crossings of the process this one is.
pub const EVENT_CROSSING: u32 = 6;

/// `values[8]` of [`EVENT_CHAIN`]: the call in `values[0..4]` encloses this chain.
pub const CHAIN_HAS_CALL: u64 = 1;
/// `values[8]` of [`EVENT_CHAIN`]: the `_int_malloc` in `values[4..6]` encloses this chain.
pub const CHAIN_HAS_ARENA: u64 = 2;

/// `values[8]` of [`EVENT_CHAIN`]: the chain was noticed at a branch; `values[6..8]` are not its function's arguments.
pub const CHAIN_AT_BRANCH: u64 = 4;

/// A rare event, in the order in which it happened on its CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Counts the thread's chains.
    pub chain: u32,
    /// Nanoseconds since boot.
    pub ns: u64,
    /// Name of the thread.
    pub comm: [u8; 16],
    /// Chain: function and its three arguments, `av` and `bytes` of `_int_malloc`, the first two arguments of the
    /// slow-path function, flags (from bit 8 on the byte of its role), the address of `mp_` (0: not known).
    /// System call: six arguments, result, nanoseconds, [`Syscall`], [`Origin`].
    pub values: [u64; 10],
}

/// 64-bit words of a [`Slot`].
pub const SLOT_WORDS: usize = size_of::<Slot>() / 8;
/// 64-bit words of a [`Histogram`].
pub const HISTOGRAM_WORDS: usize = size_of::<Histogram>() / 8;
/// 64-bit words of a [`Flight`].
pub const FLIGHT_WORDS: usize = size_of::<Flight>() / 8;
/// Bytes of an [`Event`].
pub const EVENT_BYTES: usize = size_of::<Event>();

impl Slot {
    /// A slot from the words of its row, as the kernel wrote them.
    #[must_use]
    pub fn from_words(words: [u64; SLOT_WORDS]) -> Self {
        // SAFETY: same size, and every pattern of bits is a valid slot: integers only, no padding.
        unsafe { core::mem::transmute(words) }
    }

    /// The words of a slot, for its row.
    #[must_use]
    pub fn to_words(self) -> [u64; SLOT_WORDS] {
        // SAFETY: same size, no padding.
        unsafe { core::mem::transmute(self) }
    }

    /// A slot that nobody uses.
    pub const FREE: Self = Self {
        tgid: 0,
        state: SLOT_FREE,
        born: 0,
        striped: 0,
        threshold_pinned: 0,
        start_ns: 0,
        first_ns: 0,
        end_ns: 0,
        comm: [0; 16],
        threshold: 0,
        trim_threshold: 0,
        mmapped_chunks: 0,
        mmapped_bytes: 0,
        threshold_ns: 0,
        mp_place: 0,
        sampled_ns: 0,
        watches: [Watch::FREE; WATCHES],
        series: [0; SERIES],
        counters: [0; COUNTERS],
    };
}

impl Histogram {
    /// A histogram from the words of its row.
    #[must_use]
    pub fn from_words(words: [u64; HISTOGRAM_WORDS]) -> Self {
        // SAFETY: same size, and every pattern of bits is a valid histogram.
        unsafe { core::mem::transmute(words) }
    }

    /// The words of a histogram, as its row holds them.
    #[must_use]
    pub fn to_words(self) -> [u64; HISTOGRAM_WORDS] {
        // SAFETY: same size, no padding.
        unsafe { core::mem::transmute(self) }
    }

    /// No value at all.
    pub const EMPTY: Self = Self { sum: 0, buckets: [0; BUCKETS] };
}

impl Flight {
    /// The words of a flight, for the row of a map.
    #[must_use]
    pub fn to_words(self) -> [u64; FLIGHT_WORDS] {
        // SAFETY: same size; the padding is explicit, so that every byte is set.
        unsafe { core::mem::transmute(self) }
    }
}

impl Event {
    /// An event from the bytes of a ring entry; `None` when there are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; EVENT_BYTES] = bytes.get(..EVENT_BYTES)?.try_into().ok()?;
        // SAFETY: same size, and every pattern of bits is a valid event.
        Some(unsafe { core::mem::transmute::<[u8; EVENT_BYTES], Event>(bytes) })
    }
}

const _: () = {
    assert!(size_of::<Slot>() == 112 + WATCHES * size_of::<Watch>() + SERIES * 4 + COUNTERS * 8);
    assert!(size_of::<Slot>().is_multiple_of(8));
    assert!(size_of::<Histogram>() == 8 * (1 + BUCKETS));
    assert!(size_of::<Flight>() == 8 * 18 + 16 + size_of::<Chunk>());
    assert!(size_of::<Event>() == 24 + 16 + 80);
    assert!(size_of::<Sample>() == size_of::<Event>() + 32 + 8 * SAVED_REGISTERS + STACK_BYTES);
    assert!(Counter::Told(HeapEvent::SbrkLess).index() + 1 == COUNTERS);
    assert!(Series::ChunkFaults.index() + 1 == SERIES);
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_series_share_an_index() {
        let mut seen = BTreeSet::new();
        let mut all = std::vec![Series::Arena, Series::Sysmalloc, Series::Crossing];
        all.extend([Series::Lifetime, Series::ChunkFaults]);
        for f in crate::function::ALL.into_iter().filter(|f| *f != Function::Free) {
            all.extend([Series::Call(f), Series::Transfer(f)]);
        }
        all.extend(SYSCALLS.map(Series::Latency));
        all.extend(SYSCALLS.into_iter().filter(|s| *s != Syscall::Brk).map(Series::Sizes));
        for series in &all {
            assert!(series.index() < SERIES);
            assert!(seen.insert(series.index()), "{series:?}");
        }
        assert_eq!(seen.len(), SERIES);
    }

    #[test]
    fn no_two_counters_share_an_index() {
        let mut seen = BTreeSet::new();
        let mut all = std::vec![
            Counter::Free,
            Counter::FreeTransfer,
            Counter::BrkGrown,
            Counter::BrkShrunk,
            Counter::Raises,
            Counter::Uncounted,
            Counter::Unattributed,
            Counter::CrossingNs,
            Counter::ChunkUnmapNs,
            Counter::ChunkRemapNs,
            Counter::ChurnedChunks,
            Counter::ChurnedBytes,
            Counter::BirthUnknown,
            Counter::ChunksUntracked,
            Counter::WatchedBytes,
            Counter::FaultsSquared,
            Counter::ChurnWatched,
            Counter::ChurnFaults,
            Counter::IdleHits,
            Counter::SlowHits,
            Counter::BranchHits,
        ];
        all.extend(HeapEvent::ALL.map(Counter::Told));
        for f in crate::function::ALL.into_iter().filter(|f| *f != Function::Free) {
            all.extend([Counter::Failed(f), Counter::FailedTransfer(f)]);
        }
        all.extend(SYSCALLS.map(Counter::SyscallFailed));
        for o in ALL_ORIGINS {
            assert_eq!(Origin::from_index(o as u8), Some(o));
            all.extend([Counter::OriginCalls(o), Counter::OriginBytes(o)]);
        }
        for counter in &all {
            assert!(counter.index() < COUNTERS);
            assert!(seen.insert(counter.index()), "{counter:?}");
        }
        assert_eq!(seen.len(), COUNTERS);
    }
}
