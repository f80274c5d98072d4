//! The maps: what each holds, who writes and deletes, its bound, and what happens when it is full.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, RingBuf, Stack};
use malloc_common::abi::{Flight, Histogram, Slot};
use malloc_common::chunk::{Chunk, ChunkKey};
use malloc_common::loss::LOSSES;
use malloc_common::maps::{
    CHUNKS_DEFAULT, EVENTS_BYTES, FLIGHTS_DEFAULT, HISTOGRAMS_DEFAULT, INHERITED as INHERITED_ENTRIES, RECENT_SLOTS,
    SAMPLES_BYTES, SLOTS_DEFAULT, STRIPES_DEFAULT, TARGETS_DEFAULT, spares,
};
use malloc_common::stripe::Stripe;

/// Slot index -> image of a process. The kernel fills and ends a slot, the daemon clears it and gives it back.
/// The daemon maps it into memory: reading costs no system call.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(SLOTS_DEFAULT, BPF_F_MMAPABLE);

/// [`stripe`](malloc_common::stripe::stripe) -> what some threads of a slot's process count at the functions they call.
/// Cleared with the slot.
#[map]
pub static STRIPES: Array<Stripe> = Array::with_max_entries(STRIPES_DEFAULT, BPF_F_MMAPABLE);

/// Histogram index -> histogram; belongs to the slot or the stripe whose `series` names it.
#[map]
pub static HISTOGRAMS: Array<Histogram> =
    Array::with_max_entries(HISTOGRAMS_DEFAULT + spares(HISTOGRAMS_DEFAULT), BPF_F_MMAPABLE);

/// `Loss` -> how often. Monotone.
#[map]
pub static LOST: Array<u64> = Array::with_max_entries(LOSSES as u32, BPF_F_MMAPABLE);

/// Process id -> slot that counts for it. Inserted at a process's first event, deleted when it ends or executes
/// another program. Full: `process_table_full`.
#[map]
pub static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(SLOTS_DEFAULT, 0);

/// Process id modulo `RECENT_SLOTS` -> slot that last counted for such a process: a hint that spares the look-up in
/// `PROCESSES`, believed only when that slot lives and is this process's. Never deleted.
#[map]
pub static RECENT: Array<u32> = Array::with_max_entries(RECENT_SLOTS, 0);

/// Process id -> 1 for processes chosen for recording. The daemon inserts the first, `task_fork` their children,
/// `task_exit` deletes. Full: `target_table_full`.
#[map]
pub static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(TARGETS_DEFAULT, 0);

/// Process id -> the mmap threshold it was forked with, and the place of its `mp_`. `task_fork` inserts where the
/// parent's is known, `task_exec` and `task_exit` delete. Full: the oldest goes, and a first rise of its is not seen.
#[map]
pub static INHERITED: LruHashMap<u32, [u64; 2]> = LruHashMap::with_max_entries(INHERITED_ENTRIES, 0);

/// Thread id -> what the thread is in the middle of. Inserted on its first slow-path event, deleted when it ends.
/// Full: `thread_table_full`.
#[map]
pub static FLIGHTS: HashMap<u32, Flight> = HashMap::with_max_entries(FLIGHTS_DEFAULT, 0);

/// Mapped chunk -> when it was born. Inserted when a crossing's `mmap` returns, deleted when its `munmap` enters; those
/// of ended images are deleted by the daemon. Full: `chunk_table_full`.
#[map]
pub static CHUNKS: HashMap<ChunkKey, Chunk> = HashMap::with_max_entries(CHUNKS_DEFAULT, 0);

/// Indices of free slots, the lowest on top: the daemon pushes, the kernel pops. Empty: `process_table_full`.
#[map]
pub static FREE_SLOTS: Stack<u32> = Stack::with_max_entries(SLOTS_DEFAULT, 0);

/// Indices of free histograms, the one last given back on top: what is in use stays together, and the daemon maps
/// no more than that. Empty: `histogram_pool_full`.
#[map]
pub static FREE_HISTS: Stack<u32> = Stack::with_max_entries(HISTOGRAMS_DEFAULT, 0);

/// The same for stripes other than the one of the process's first thread. Empty: that one's histogram serves.
#[map]
pub static FREE_SPARES: Stack<u32> = Stack::with_max_entries(spares(HISTOGRAMS_DEFAULT), 0);

/// Rare events for the daemon. Full: `event_ring_full`.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

/// Rare events with the stacks they happened on. Full: `event_ring_full` for a raise; the next crossing of a process
/// stands for one without room.
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(SAMPLES_BYTES, 0);

/// The time up to which the stacks of crossings that were sent are paid for, nanoseconds since boot: of the first few of
/// each process, and of all later ones.
#[map]
pub static STACKS: Array<u64> = Array::with_max_entries(2, 0);

/// One empty flight, written by the daemon at start: too large to build on the stack at every insertion.
#[map]
pub static ZERO_FLIGHT: Array<Flight> = Array::with_max_entries(1, BPF_F_MMAPABLE);
