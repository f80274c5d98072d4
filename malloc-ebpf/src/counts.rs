//! Where counts go: counters and histograms of a slot, those of calls in the thread's stripe of it.

use aya_ebpf::maps::Stack;
use malloc_common::abi::{COUNTERS, Counter, SERIES, Series, Slot};
use malloc_common::histogram::{self, BUCKETS};
use malloc_common::stripe::{self, STRIPED_SERIES, Stripe, is_striped, striped};
use malloc_common::tracker::{HistogramId, SlotId};

use crate::machine;
use crate::maps::{FREE_HISTS, FREE_SPARES, HISTOGRAMS, SLOTS, STRIPES};

/// Adds to a counter of a slot or of a thread's stripe.
#[inline(always)]
pub fn add(tid: u32, slot: SlotId, counter: Counter, n: u64) {
    if let Some(at) = striped(counter) {
        if let Some(stripe) = STRIPES.get_ptr_mut(stripe::stripe(slot, tid)) {
            // SAFETY: the index is one of three, the stripe is a map value.
            unsafe {
                let counter = (&raw mut (*stripe).counters).cast::<u64>().add(at);
                if counter.read_volatile() == 0 {
                    note_stripes(slot);
                }
                machine::add(counter, n);
            }
        }
        return;
    }
    if let Some(slot) = SLOTS.get_ptr_mut(slot) {
        let index = machine::opaque(counter.index() as u64);
        if index < COUNTERS as u64 {
            // SAFETY: the index was just checked, the slot is a map value.
            unsafe { machine::add((&raw mut (*slot).counters).cast::<u64>().add(index as usize), n) };
        }
    }
}

/// The histogram in which a thread counts a series of a slot, taken from a pool at its first use; the upper half of `id`
/// is its process, the lower half itself.
#[inline(always)]
pub fn histogram(id: u64, slot: SlotId, series: Series) -> Option<HistogramId> {
    if !is_striped(series) {
        return held_or_taken(series_of(SLOTS.get_ptr_mut(slot)?, series)?, &FREE_HISTS);
    }
    let (first, thread) = (stripe::stripe(slot, (id >> 32) as u32), stripe::stripe(slot, id as u32));
    let own = striped_series(STRIPES.get_ptr_mut(thread)?, series)?;
    // SAFETY: it points into a map value.
    let held = unsafe { own.read_volatile() };
    if held != 0 {
        return Some(held - 1);
    }
    note_stripes(slot);
    if thread != first
        && let Some(taken) = held_or_taken(own, &FREE_SPARES)
    {
        return Some(taken);
    }
    held_or_taken(striped_series(STRIPES.get_ptr_mut(first)?, series)?, &FREE_HISTS)
}

/// Has the daemon look at the stripes of a slot: before anything is counted in them.
#[inline(always)]
fn note_stripes(slot: SlotId) {
    if let Some(slot) = SLOTS.get_ptr_mut(slot) {
        // SAFETY: a map value; whoever writes this writes the same.
        unsafe { (&raw mut (*slot).striped).write_volatile(1) };
    }
}

/// The histogram that is noted at `at`, or one from a pool that is noted there from now on.
#[inline(always)]
fn held_or_taken(at: *mut u32, pool: &Stack<u32>) -> Option<HistogramId> {
    // SAFETY: `at` points into a map value; it only ever goes from 0 to its final value while the slot lives.
    let held = unsafe { at.read_volatile() };
    if held != 0 {
        return Some(held - 1);
    }
    let taken = pool.pop().ok()??;
    // SAFETY: as above.
    let before = unsafe { machine::replace(at, 0, taken + 1) };
    if before == 0 {
        return Some(taken);
    }
    // Another thread was faster.
    let _ = pool.push(taken, 0);
    Some(before - 1)
}

/// Adds one value to a histogram.
#[inline(always)]
pub fn record(histogram: HistogramId, value: u64) {
    if let Some(h) = HISTOGRAMS.get_ptr_mut(histogram) {
        let bucket = machine::opaque(u64::from(histogram::bucket_by(value, machine::opaque)));
        if bucket < BUCKETS as u64 {
            // SAFETY: the index was just checked, the histogram is a map value.
            unsafe {
                machine::add((&raw mut (*h).buckets).cast::<u64>().add(bucket as usize), 1);
                machine::add(&raw mut (*h).sum, value);
            }
        }
    }
}

#[inline(always)]
fn series_of(slot: *mut Slot, series: Series) -> Option<*mut u32> {
    let index = machine::opaque(series.index() as u64);
    if index >= SERIES as u64 {
        return None;
    }
    // SAFETY: the index was just checked.
    Some(unsafe { (&raw mut (*slot).series).cast::<u32>().add(index as usize) })
}

#[inline(always)]
fn striped_series(stripe: *mut Stripe, series: Series) -> Option<*mut u32> {
    let index = machine::opaque(series.index() as u64);
    if index >= STRIPED_SERIES as u64 {
        return None;
    }
    // SAFETY: the index was just checked.
    Some(unsafe { (&raw mut (*stripe).series).cast::<u32>().add(index as usize) })
}
