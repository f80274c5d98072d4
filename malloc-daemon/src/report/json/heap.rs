//! A process's heap as the public promise has it.

use serde::{Deserialize, Serialize};

use super::document::Bucket;
use crate::aggregate::heap;
use crate::aggregate::model::Process;

/// What the arenas hold together, read from the process's memory while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heap {
    /// Milliseconds between the reading and the end of what the process's counts cover.
    pub age_ms: u64,
    /// Bytes that the arenas have of the kernel; chunks mapped one by one are not in it.
    pub system_bytes: u64,
    /// Bytes in the chunks at the tops.
    pub top_bytes: u64,
    /// Bytes in free chunks below the tops; `null`: not counted.
    pub free_bytes: Option<u64>,
    /// Both together: held, and not used by the program.
    pub retained_bytes: u64,
    /// Of these, resident; `null`: not read.
    pub retained_resident_bytes: Option<u64>,
    /// All arenas and all their free chunks were counted; otherwise there are at least these.
    pub complete: bool,
    /// The most that chunks mapped one by one took at a time.
    pub max_mmapped_bytes: u64,
    /// Resident memory of the whole process; `null`: not read.
    pub resident_bytes: Option<u64>,
    /// Page faults of the process since its start that needed no reading from a disk; `null`: not read.
    pub minor_faults: Option<u64>,
}

/// The same in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedHeap {
    /// Bytes that the arenas have of the kernel.
    pub system_bytes: u64,
    /// Bytes in the chunks at the tops.
    pub top_bytes: u64,
    /// Bytes at the tops and in free chunks: held, and not used by the program.
    pub retained_bytes: u64,
    /// All free chunks were counted; otherwise at least these bytes are retained.
    pub complete: bool,
}

/// One arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arena {
    /// `main_arena`, whose heap grows by `brk`.
    pub main: bool,
    /// Threads attached to it.
    pub threads: u64,
    /// Bytes it has of the kernel.
    pub system_bytes: u64,
    /// The most it had.
    pub max_system_bytes: u64,
    /// Bytes in the chunk at the top.
    pub top_bytes: u64,
    /// Of these, resident; `null`: not read.
    pub top_resident_bytes: Option<u64>,
    /// Bytes in free chunks below the top; `null`: not counted.
    pub free_bytes: Option<u64>,
    /// How many.
    pub free_chunks: Option<u64>,
    /// All of them were counted; otherwise there are at least these.
    pub free_complete: bool,
    /// Distribution of the free chunks' sizes.
    pub free_sizes: Option<Vec<Bucket>>,
}

pub(super) fn heap(process: &Process) -> Option<Heap> {
    let heap = process.heap.as_ref().filter(|heap| heap.not_read.is_none())?;
    Some(Heap {
        age_ms: process.heap_age_ms()?,
        system_bytes: heap.system_bytes(),
        top_bytes: heap.top_bytes(),
        free_bytes: heap.free_bytes(),
        retained_bytes: heap.retained_bytes(),
        retained_resident_bytes: heap.retained_resident_bytes(),
        complete: heap.is_complete(),
        max_mmapped_bytes: heap.max_mmapped_bytes,
        resident_bytes: heap.resident_bytes,
        minor_faults: heap.minor_faults,
    })
}

pub(super) fn listed(process: &Process) -> Option<ListedHeap> {
    let heap = process.heap.as_ref().filter(|heap| heap.not_read.is_none())?;
    Some(ListedHeap {
        system_bytes: heap.system_bytes(),
        top_bytes: heap.top_bytes(),
        retained_bytes: heap.retained_bytes(),
        complete: heap.is_complete(),
    })
}

pub(super) fn arenas(process: &Process) -> Option<Vec<Arena>> {
    let heap = process.heap.as_ref().filter(|heap| heap.not_read.is_none())?;
    Some(heap.arenas.iter().map(arena).collect())
}

fn arena(arena: &heap::Arena) -> Arena {
    let free = arena.free.as_ref();
    let sizes = |free: &heap::Free| {
        let buckets = free.sizes.iter();
        let bucket = |sizes: &heap::FreeSizes| Bucket {
            lo: sizes.lo,
            hi: (sizes.hi != u64::MAX).then_some(sizes.hi),
            calls: sizes.chunks,
            share_interval_95: None,
        };
        buckets.map(bucket).collect()
    };
    Arena {
        main: arena.is_main,
        threads: arena.threads,
        system_bytes: arena.system_bytes,
        max_system_bytes: arena.max_system_bytes,
        top_bytes: arena.top_bytes,
        top_resident_bytes: arena.top_resident_bytes,
        free_bytes: free.map(|free| free.bytes),
        free_chunks: free.map(|free| free.chunks),
        free_complete: free.is_some_and(|free| free.complete),
        free_sizes: free.map(sizes),
    }
}
