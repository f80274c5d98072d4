//! Names and capacities of the kernel maps, each capacity with its arithmetic.

use crate::abi::{Flight, Histogram, Slot};
use crate::chunk::{Chunk, ChunkKey};
use crate::stripe::{STRIPES, Stripe};

/// Every map of the object. The kernel keeps 15 bytes of a name.
pub const MAP_NAMES: &[&str] = &[
    "SLOTS",
    "STRIPES",
    "HISTOGRAMS",
    "LOST",
    "PROCESSES",
    "RECENT",
    "TARGETS",
    "INHERITED",
    "FLIGHTS",
    "CHUNKS",
    "FREE_SLOTS",
    "FREE_HISTS",
    "FREE_SPARES",
    "EVENTS",
    "SAMPLES",
    "STACKS",
    "ZERO_FLIGHT",
    "AYA_LOGS",
];

/// Every program of the object.
pub const PROGRAM_NAMES: &[&str] = &[
    "call",
    "arena",
    "slow",
    "branch",
    "blank",
    "told",
    "enter_mmap",
    "enter_munmap",
    "enter_mremap",
    "enter_brk",
    "exit_mmap",
    "exit_munmap",
    "exit_mremap",
    "exit_brk",
    "task_exec",
    "task_fork",
    "task_exit",
    "fault",
];

/// Images of processes counted at one time, ended ones included until they are collected:
/// 4,096 x 1,024 bytes = 4 MiB.
pub const SLOTS_DEFAULT: u32 = 4096;

/// Stripes of all slots: 4,096 x 8 x 128 bytes = 4 MiB.
pub const STRIPES_DEFAULT: u32 = SLOTS_DEFAULT * STRIPES;

/// Hints from a process id to its slot, a power of two: 4,096 x 8 bytes (the kernel rounds up) = 32 KiB.
pub const RECENT_SLOTS: u32 = 4096;

/// Histograms of all processes together: 16,384 x 1,512 bytes = 23.6 MiB.
/// At depth `sysmalloc` a busy process uses about ten, at depth `call` some four more.
pub const HISTOGRAMS_DEFAULT: u32 = 16384;

/// Histograms beside so many for the threads of a process that do not count where its first one does:
/// 4,096 x 1,512 bytes = 5.9 MiB for the default. They spare time, and no count is lost for lack of them.
#[must_use]
pub const fn spares(histograms: u32) -> u32 {
    histograms / 4
}

/// Threads with a slow-path state: 16,384 x (184 + 4 bytes + the kernel's 64 of book-keeping) = 3.9 MiB.
pub const FLIGHTS_DEFAULT: u32 = 16384;

/// Mapped chunks of all processes together: 32,768 x (16 + 32 bytes + the kernel's 64) = 3.5 MiB. glibc maps at most
/// 65,536 chunks in one process (`M_MMAP_MAX`) and raises its threshold at the first free, so that few processes have
/// more than a hundred at a time.
pub const CHUNKS_DEFAULT: u32 = 32768;

/// Processes chosen for recording, with their threads and children: 16,384 x 72 bytes = 1.1 MiB.
pub const TARGETS_DEFAULT: u32 = 16384;

/// Children that have not done anything yet, with the threshold they were forked with: 1,024 x (16 bytes + the kernel's
/// 72) = 88 KiB. The oldest go first.
pub const INHERITED: u32 = 1024;

/// Bytes of the event ring: 8,192 events of 128 bytes.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// Bytes of the ring of samples: 124 samples of 16.6 KiB.
pub const SAMPLES_BYTES: u32 = 2 << 20;

/// Upper bound of the kernel memory of all maps, bytes, for these capacities. A preallocated hash
/// entry takes its key, its value and 64 bytes of book-keeping at most (kernel 6.18: 48 and rounding).
#[must_use]
pub const fn kernel_bytes(
    slots: u64,
    histograms: u64,
    flights: u64,
    chunks: u64,
    targets: u64,
    events: u64,
    samples: u64,
) -> u64 {
    const ENTRY: u64 = 64;
    slots * (size_of::<Slot>() as u64 + STRIPES as u64 * size_of::<Stripe>() as u64 + 2 * ENTRY + 16)
        + (histograms + spares(histograms as u32) as u64) * (size_of::<Histogram>() as u64 + 8)
        + flights * (size_of::<Flight>() as u64 + 8 + ENTRY)
        + chunks * (size_of::<ChunkKey>() as u64 + size_of::<Chunk>() as u64 + ENTRY)
        + targets * (8 + ENTRY)
        + events
        + samples
        + 8 * RECENT_SLOTS as u64
        + INHERITED as u64 * (24 + 8 + ENTRY)
}

const _: () = {
    assert!(
        kernel_bytes(
            SLOTS_DEFAULT as u64,
            HISTOGRAMS_DEFAULT as u64,
            FLIGHTS_DEFAULT as u64,
            CHUNKS_DEFAULT as u64,
            TARGETS_DEFAULT as u64,
            EVENTS_BYTES as u64,
            SAMPLES_BYTES as u64
        ) < 51 << 20
    );
    let mut i = 0;
    while i < MAP_NAMES.len() {
        assert!(MAP_NAMES[i].len() <= 15);
        i += 1;
    }
    let mut i = 0;
    while i < PROGRAM_NAMES.len() {
        assert!(PROGRAM_NAMES[i].len() <= 15);
        i += 1;
    }
};
