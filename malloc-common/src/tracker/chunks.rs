//! The life of mapped chunks: born when a crossing's `mmap` returns, moved by `mremap`, gone with its `munmap`.
//!
//! A chunk is taken out of the table when the call that unmaps or moves it *enters*: from then on until it returns no
//! other thread can be given its address, so that what a later `mmap` remembers there is never taken for it.
//!
//! That call needs no probe on the way to it. Who unmaps what a chunk covers, from its first byte to its last, gives that
//! chunk back; one whose birth was not seen is known by its own first words.

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

/// A chunk's `mremap` enters: what is known of it, for the call's return.
#[inline(always)]
pub(super) fn take<K: Kernel>(k: &K, slot: SlotId, address: u64) -> Chunk {
    let chunk = k.chunk(address);
    k.forget_chunk(address);
    match chunk {
        Some(chunk) if chunk.image_ns == k.image_ns(slot) => chunk,
        _ => Chunk::UNKNOWN,
    }
}

/// A `munmap` enters: whether it takes a chunk, and what is known of that.
///
/// No `Option`, which the compiler would carry on without its value: verifiers before Linux 6.3 refuse that.
#[inline(always)]
pub(super) fn given_back<K: Kernel>(k: &K, slot: SlotId, address: u64, bytes: u64) -> (bool, Chunk) {
    if bytes == 0 || !k.tells_chunks() {
        return (false, Chunk::UNKNOWN);
    }
    if let Some(chunk) = k.chunk(address)
        && chunk.bytes == bytes
        && chunk.image_ns == k.image_ns(slot)
    {
        k.forget_chunk(address);
        return (true, chunk);
    }
    let covered = k.read_user_words(address).is_some_and(|[before, size]| covers(before, size, bytes));
    (covered, Chunk::UNKNOWN)
}

/// Whether these are the first words of a mapped chunk that is a whole mapping.
///
/// The first holds the bytes before the chunk, none, and from glibc 2.43 on in bit 0 whether its pages are huge. The second
/// is its size, of the whole mapping to 2.42 and without its 16 bytes from 2.43 on, and `IS_MMAPPED` (2) of the three bits
/// below. A chunk that was moved up for an alignment leaves these words as they were (`malloc/malloc.c`, 2.23 to 2.44).
#[inline(always)]
const fn covers(before: u64, size: u64, bytes: u64) -> bool {
    before & !1 == 0 && size & 7 == 2 && (size & !7 == bytes || (size & !7).wrapping_add(16) == bytes)
}

/// A chunk's `munmap` or `mremap` returned.
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
    /// The chunk, as it was known when the call entered.
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
