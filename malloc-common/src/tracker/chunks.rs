//! The life of mapped chunks: born when a crossing's `mmap` returns, moved by `mremap`, gone with its `munmap`.
//!
//! A chunk is taken out of the table when the call that unmaps or moves it *enters*: from then on until it returns no
//! other thread can be given its address, so that what a later `mmap` remembers there is never taken for it.

use crate::abi::{Counter, Series, Syscall};
use crate::chunk::{CHURN_NS, Chunk};
use crate::loss::Loss;

use super::{Kernel, SlotId, count, faults};

/// A crossing's `mmap` returned.
#[inline(always)]
pub(super) fn mapped<K: Kernel>(k: &K, slot: SlotId, address: u64, bytes: u64, now: u64, nanoseconds: u64) {
    k.add(slot, Counter::CrossingNs, nanoseconds);
    let watch = faults::watch(k, slot, address, bytes, now);
    remember(k, slot, address, &Chunk { born_ns: now, image_ns: k.image_ns(slot), bytes, watch });
}

/// A chunk's `munmap` or `mremap` enters: what is known of it, for the call's return.
#[inline(always)]
pub(super) fn take<K: Kernel>(k: &K, slot: SlotId, address: u64) -> Chunk {
    match k.forget_chunk(address) {
        Some(chunk) if chunk.image_ns == k.image_ns(slot) => chunk,
        _ => Chunk::UNKNOWN,
    }
}

/// That call returned.
#[inline(always)]
pub(super) fn returned<K: Kernel>(k: &K, slot: SlotId, syscall: Syscall, call: &Returned) {
    let chunk = &call.chunk;
    let counter = if let Syscall::Mremap = syscall { Counter::ChunkRemapNs } else { Counter::ChunkUnmapNs };
    k.add(slot, counter, call.nanoseconds);
    if chunk.born_ns == 0 {
        if let (Syscall::Munmap, false) = (syscall, call.failed) {
            k.add(slot, Counter::BirthUnknown, 1);
        }
    } else if call.failed {
        remember(k, slot, call.address, chunk);
    } else if let Syscall::Mremap = syscall {
        faults::moved(k, slot, chunk.watch, call.address, call.result, call.bytes);
        remember(k, slot, call.result, &Chunk { bytes: call.bytes, ..*chunk });
    } else {
        // Until the call: what the kernel takes to unmap it is no part of its life.
        let age = call.entered_ns.saturating_sub(chunk.born_ns);
        count(k, slot, Series::Lifetime, age);
        let churn = age < CHURN_NS;
        faults::ended(k, slot, chunk.watch, call.address, churn);
        if churn {
            k.add(slot, Counter::ChurnedChunks, 1);
            k.add(slot, Counter::ChurnedBytes, call.bytes);
        }
    }
}

/// A `munmap` or `mremap` of a chunk.
pub(super) struct Returned {
    /// The chunk, as [`take`] knew it.
    pub(super) chunk: Chunk,
    /// Where it was.
    pub(super) address: u64,
    /// Length given to `munmap`, or asked of `mremap`.
    pub(super) bytes: u64,
    /// What the call returned.
    pub(super) result: u64,
    /// That was an error.
    pub(super) failed: bool,
    /// When it entered, nanoseconds since boot.
    pub(super) entered_ns: u64,
    /// How long it took.
    pub(super) nanoseconds: u64,
}

#[inline(always)]
fn remember<K: Kernel>(k: &K, slot: SlotId, address: u64, chunk: &Chunk) {
    if !k.remember_chunk(address, chunk) {
        k.add(slot, Counter::ChunksUntracked, 1);
        k.lose(Loss::ChunkTableFull);
    }
}
