//! Page faults of mapped chunks: a few chunks of each image at a time have every fault counted.
//!
//! A fault of the process is compared with the ranges of its watched chunks, so the figures of these are exact; which
//! chunks are watched is told by how many there were. A chunk gets a place when one is free, or when one is held by a
//! chunk that is [`WATCH_NS`] old: what that one took until then is what it counts with.

use crate::abi::{Counter, Series};
use crate::chunk::{WATCH_CHANGES, WATCH_FREE, WATCH_NS, WATCH_SET, WATCHES};

use super::{Kernel, SlotId, count};

/// A page fault of the running process at a user address.
#[inline(always)]
pub fn fault<K: Kernel>(k: &K, address: u64) {
    // Not `slot`: a fault is no event that a process is first seen by.
    let Some(slot) = k.slot(k.tgid()) else { return };
    let mut index = 0;
    while index < WATCHES as u64 {
        let (start, end) = k.with_watch(slot, index, |watch| (watch.start, watch.end)).unwrap_or((0, 0));
        if start != 0 && start <= address && address < end {
            return k.add_fault(slot, index);
        }
        index += 1;
    }
}

/// A chunk was mapped: 1 + the index of its place, or 0.
#[inline(always)]
pub(super) fn watch<K: Kernel>(k: &K, slot: SlotId, address: u64, bytes: u64, now: u64) -> u64 {
    if !k.counts_faults() {
        return 0;
    }
    let mut index = 0;
    while index < WATCHES as u64 {
        let (held, born_ns) =
            k.with_watch(slot, index, |watch| (watch.state, watch.born_ns)).unwrap_or((WATCH_CHANGES, 0));
        let had_its_time = held == WATCH_SET && now.saturating_sub(born_ns) >= WATCH_NS;
        if (held == WATCH_FREE || had_its_time) && k.change_watch(slot, index, held, WATCH_CHANGES) {
            if had_its_time {
                settle(k, slot, index, false);
            }
            // The start comes last: from then on faults are compared.
            let _ = k.with_watch(slot, index, |watch| {
                watch.start = 0;
                watch.end = address.wrapping_add(bytes);
                watch.faults = 0;
                watch.born_ns = now;
                watch.start = address;
            });
            k.change_watch(slot, index, WATCH_CHANGES, WATCH_SET);
            return index + 1;
        }
        index += 1;
    }
    0
}

/// A watched chunk moved.
#[inline(always)]
pub(super) fn moved<K: Kernel>(k: &K, slot: SlotId, watch: u64, from: u64, to: u64, bytes: u64) {
    if let Some(index) = take(k, slot, watch, from) {
        let _ = k.with_watch(slot, index, |watch| {
            watch.start = 0;
            watch.end = to.wrapping_add(bytes);
            watch.start = to;
        });
        k.change_watch(slot, index, WATCH_CHANGES, WATCH_SET);
    }
}

/// A watched chunk was unmapped; `churn`: within [`crate::chunk::CHURN_NS`].
#[inline(always)]
pub(super) fn ended<K: Kernel>(k: &K, slot: SlotId, watch: u64, address: u64, churn: bool) {
    if let Some(index) = take(k, slot, watch, address) {
        settle(k, slot, index, churn);
        let _ = k.with_watch(slot, index, |watch| watch.start = 0);
        k.change_watch(slot, index, WATCH_CHANGES, WATCH_FREE);
    }
}

/// Makes the place of the chunk at `address` this thread's, unless another chunk has it by now.
#[inline(always)]
fn take<K: Kernel>(k: &K, slot: SlotId, watch: u64, address: u64) -> Option<u64> {
    let index = watch.checked_sub(1)?;
    let start = k.with_watch(slot, index, |watch| watch.start)?;
    (start == address && k.change_watch(slot, index, WATCH_SET, WATCH_CHANGES)).then_some(index)
}

#[inline(always)]
fn settle<K: Kernel>(k: &K, slot: SlotId, index: u64, churn: bool) {
    // No default in its place: what is not read would be left undefined in a register that is saved on the stack, and
    // verifiers before Linux 6.3 refuse to read that.
    let Some(held) = k.with_watch(slot, index, |watch| *watch) else { return };
    count(k, slot, Series::ChunkFaults, held.faults);
    k.add(slot, Counter::WatchedBytes, held.end.wrapping_sub(held.start));
    k.add(slot, Counter::FaultsSquared, held.faults.wrapping_mul(held.faults));
    if churn {
        k.add(slot, Counter::ChurnWatched, 1);
        k.add(slot, Counter::ChurnFaults, held.faults);
    }
}
