//! What another threshold would have done with the requests that were recorded: distributions replayed, with bounds.
//!
//! Everything here is an estimate, and carries what it assumes.

use malloc_common::function::Function;

use super::heap::Heap;
use super::model::{Bucket, ChunkFaults, Process, ThresholdMode};

/// `DEFAULT_MMAP_THRESHOLD`, bytes: where glibc begins.
pub const DEFAULT_THRESHOLD: u64 = 128 << 10;
/// `DEFAULT_MMAP_THRESHOLD_MAX` on 64-bit machines: glibc moves the threshold no higher, 2.31 takes no higher setting.
const HIGHEST_THRESHOLD: u64 = 32 << 20;
/// Chunks mapped and unmapped again a second from which on their cost is worth a word.
pub const CHURN_PER_SECOND: u64 = 10;
/// Bytes of a chunk's header and padding at most: a request of `n` bytes takes less than `n + 24`, rounded down to 16.
const OVERHEAD: u64 = 23;

/// A setting, and what it would have changed.
#[derive(Clone, Debug, PartialEq)]
pub struct WhatIf {
    /// `glibc.malloc.mmap_threshold`, bytes; set, it does not move any more.
    pub mmap_threshold: u64,
    /// `glibc.malloc.trim_threshold`, bytes; `None`: left alone, which is 131,072.
    pub trim_threshold: Option<u64>,
    /// What was replayed.
    pub basis: Basis,
    /// Chunks that were mapped.
    pub mmaps_now: u64,
    /// Chunks that would have been: at least, and at most if that is known.
    pub mmaps: (u64, Option<u64>),
    /// Page faults more, or fewer.
    pub faults: Change,
    /// Retained bytes more, or fewer; `None`: the heap was not read.
    pub retained: Option<Change>,
    /// Of these, resident.
    pub resident: Option<Change>,
    /// Milliseconds in which all this happened.
    pub observed_ms: u64,
    /// What it rests on.
    pub assumptions: Vec<Assumption>,
}

/// What was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Sizes requested of the public functions.
    Call,
    /// Sizes that `_int_malloc` was asked for.
    Arena,
    /// Sizes that `sysmalloc` was asked for: requests that a free chunk served are not among them.
    Sysmalloc,
    /// Chunks that were mapped.
    Crossings,
}

impl Basis {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Basis::Call => "call",
            Basis::Arena => "arena",
            Basis::Sysmalloc => "sysmalloc",
            Basis::Crossings => "crossings",
        }
    }
}

/// A difference: negative is less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// At least.
    pub low: i64,
    /// Most likely.
    pub about: i64,
    /// At most.
    pub high: i64,
}

/// What an estimate rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// The program asks for the same blocks in the same order.
    SameRequests,
    /// So many percent of a block's pages are touched, as of the mapped chunks that were watched, and of the free chunks of
    /// that size.
    TouchedPercent(u64),
    /// Mapped chunks take a page fault for so many percent of their pages, as those that were watched did.
    FaultsPercent(u64),
    /// Every page of a block is touched.
    AllTouched,
    /// Free chunks of at least the threshold come from blocks of that size, not from small ones that came together.
    FreeFromLarge,
    /// Blocks that are freed are used again: the heap grows by the most that was mapped at a time.
    HeapReuse,
    /// Requests that free chunks served are not seen at this depth.
    AtLeast,
    /// Requests were counted in windows of so many percent of the process's CPU time.
    InWindows(u64),
}

/// Settings worth a try for a process, with what they would have done: none when nothing is to be gained.
#[must_use]
pub fn what_if(process: &Process) -> Vec<WhatIf> {
    [keep_large_blocks_out(process), keep_churn_in(process)].into_iter().flatten().collect()
}

/// The threshold has risen: pin it where it began, so that large blocks go back to the kernel when they are freed.
fn keep_large_blocks_out(process: &Process) -> Option<WhatIf> {
    let threshold = process.threshold.as_ref()?;
    if threshold.mode != ThresholdMode::Dynamic || threshold.bytes <= DEFAULT_THRESHOLD {
        return None;
    }
    let candidate = DEFAULT_THRESHOLD;
    let crossings = process.crossings.as_ref()?;
    let heap = process.heap.as_deref();
    let page = heap.map_or(4096, |heap| heap.page_bytes).max(1);
    let Requests { basis, count, more, bytes, more_bytes } = requests(process, candidate)?;
    // Fresh pages that such blocks took as it was: for a mapping of their own, or for growth of the heap.
    let fresh = process.sysmalloc_sizes.as_ref().map_or(0, |sizes| {
        let total = process.funnel.sysmalloc.map_or(0, |level| level.bytes);
        fitted(sizes, total).filter(|class| class.bucket.lo >= candidate).map(|class| class.bytes()).sum::<u64>()
    });
    let touched = touched_percent(heap, crossings.faults.as_ref(), candidate, page);
    let percent = touched.unwrap_or(100);
    let pages = |bytes: u64| bytes.div_ceil(page).saturating_mul(percent) / 100;
    let mapped = bytes.saturating_add(count.saturating_mul(OVERHEAD + page / 2));
    let about = signed(pages(mapped)) - signed(pages(fresh));
    // One page of each block is touched at least: its header lies there.
    let low = signed(count) - signed(pages(fresh));
    let most = mapped.saturating_add(more_bytes).saturating_add(more.saturating_mul(page));
    let high = signed(most.div_ceil(page)) - signed(pages(fresh));
    let mut assumptions =
        vec![Assumption::SameRequests, touched.map_or(Assumption::AllTouched, Assumption::TouchedPercent)];
    assumptions.extend(counted_in_windows(process, basis));
    if basis == Basis::Sysmalloc {
        assumptions.push(Assumption::AtLeast);
    }
    if heap.is_some() {
        assumptions.push(Assumption::FreeFromLarge);
    }
    Some(WhatIf {
        mmap_threshold: candidate,
        trim_threshold: None,
        basis,
        mmaps_now: crossings.count.calls,
        mmaps: (count, (basis != Basis::Sysmalloc).then_some(count.saturating_add(more))),
        faults: Change { low: low.min(about), about, high: high.max(about) },
        retained: heap.map(|heap| less_retained(heap, candidate, |_, bytes| bytes, |bytes, _| bytes)),
        resident: heap.and_then(|heap| {
            heap.retained_resident_bytes()?;
            Some(less_retained(heap, candidate, |absent, bytes| bytes.saturating_sub(absent), |_, resident| resident))
        }),
        observed_ms: process.observed_ms,
        assumptions,
    })
}

/// Chunks that were mapped and unmapped again at once, and how many a second; `None`: too few to speak of. A single one
/// in a short time has a rate, too.
pub fn churn(process: &Process) -> Option<(u64, u64)> {
    let chunks = churned(process)?;
    let rate = per_second(chunks, process.observed_ms);
    (chunks >= CHURN_PER_SECOND && rate >= CHURN_PER_SECOND).then_some((chunks, rate))
}

/// Chunks are mapped and unmapped again and again: a threshold above them keeps them in the heap.
fn keep_churn_in(process: &Process) -> Option<WhatIf> {
    let crossings = process.crossings.as_ref()?;
    churn(process)?;
    // The edge above nine tenths of the chunks, or above all where that is not far: a few large ones are not worth a
    // threshold above them.
    let wanted = crossings.count.calls - crossings.count.calls / 10;
    let mut below = 0;
    let top = crossings.sizes.iter().find(|bucket| {
        below += bucket.calls;
        below >= wanted
    })?;
    let edge = top.hi.checked_add(1)?;
    let all = crossings.sizes.last().and_then(|largest| largest.hi.checked_add(1)).filter(|all| all / 2 <= edge);
    let candidate = all.unwrap_or(edge);
    if candidate > HIGHEST_THRESHOLD {
        return None;
    }
    let kept: Vec<Bucket> = crossings.sizes.iter().copied().filter(|bucket| bucket.hi < candidate).collect();
    let rest = crossings.count.calls - kept.iter().map(|bucket| bucket.calls).sum::<u64>();
    let kept_bytes: u64 = fitted(&crossings.sizes, crossings.count.bytes)
        .filter(|class| class.bucket.hi < candidate)
        .map(|class| class.bytes())
        .sum();
    let heap = process.heap.as_deref();
    let page = heap.map_or(4096, |heap| heap.page_bytes).max(1);
    // The most at a time: all that is mapped now has to have room, the largest chunk at least.
    let peak = heap.map_or(top.hi, |heap| heap.max_mmapped_bytes.max(top.lo)).min(kept_bytes);
    // Twice the threshold, as glibc itself would have it, and enough for all of them free at once.
    let trim = candidate.max(peak.next_multiple_of(page)).saturating_mul(2);
    let counted = crossings.faults.as_ref().and_then(|faults| faults.total).map(|total| total.faults);
    let all_pages = crossings.count.bytes.div_ceil(page).max(1);
    let touched = counted.unwrap_or(all_pages).min(all_pages);
    let pages = |bytes: u64| signed(bytes.div_ceil(page));
    let calls = signed(crossings.count.calls - rest);
    let faults = Change {
        low: pages(peak) - pages(kept_bytes),
        about: part(pages(peak) - pages(kept_bytes), touched, all_pages),
        // Of each chunk a page is touched at least.
        high: pages(peak) - calls,
    };
    let pad = heap.map_or(DEFAULT_THRESHOLD, |heap| heap.top_pad);
    let more = |about: u64| Change { low: 0, about: signed(about), high: signed(trim.saturating_add(pad)) };
    Some(WhatIf {
        mmap_threshold: candidate,
        trim_threshold: Some(trim),
        basis: Basis::Crossings,
        mmaps_now: crossings.count.calls,
        // What free memory of the heap has room for is not mapped, however large it is.
        mmaps: (0, Some(rest)),
        faults: Change { high: faults.high.max(faults.about), ..faults },
        retained: heap.map(|_| more(peak.saturating_add(pad))),
        resident: heap.map(|_| more(peak)),
        observed_ms: process.observed_ms,
        assumptions: vec![
            Assumption::SameRequests,
            counted
                .map_or(Assumption::AllTouched, |_| Assumption::FaultsPercent(touched.saturating_mul(100) / all_pages)),
            Assumption::HeapReuse,
        ],
    })
}

/// Chunks that were mapped and soon unmapped again; `None`: no probe of the allocator tells.
#[must_use]
pub fn churned(process: &Process) -> Option<u64> {
    Some(process.crossings.as_ref()?.ends.as_ref()?.churned.calls)
}

/// How many a second, rounded.
#[must_use]
pub fn per_second(count: u64, observed_ms: u64) -> u64 {
    let per = (u128::from(count) * 1000 + u128::from(observed_ms) / 2) / u128::from(observed_ms.max(1));
    u64::try_from(per).unwrap_or(u64::MAX)
}

/// Requests whose chunk is as large as a threshold.
struct Requests {
    basis: Basis,
    /// As many at least.
    count: u64,
    /// Perhaps so many more: of a size class that the threshold cuts through, or made by `realloc`, which may keep or
    /// move what is there.
    more: u64,
    /// Bytes of the first.
    bytes: u64,
    /// Bytes of the others.
    more_bytes: u64,
}

fn requests(process: &Process, threshold: u64) -> Option<Requests> {
    let smallest = threshold - OVERHEAD;
    let (mut count, mut more, mut bytes, mut more_bytes) = (0, 0, 0, 0);
    let mut take = |sizes: &[Bucket], total: u64, is_sure: bool| {
        for class in fitted(sizes, total).filter(|class| class.bucket.hi >= smallest) {
            if is_sure && class.bucket.lo >= smallest {
                count += class.bucket.calls;
                bytes += class.bytes();
            } else {
                more += class.bucket.calls;
                more_bytes += class.bytes();
            }
        }
    };
    let basis = if let Some(functions) = &process.functions {
        for function in functions {
            let (Some(sizes), Some(total)) = (&function.sizes, function.bytes) else { continue };
            take(sizes, total, function.function != Function::Realloc);
        }
        Basis::Call
    } else if let (Some(sizes), Some(level)) = (&process.arena_sizes, process.funnel.arena) {
        take(sizes, level.bytes, true);
        Basis::Arena
    } else {
        take(process.sysmalloc_sizes.as_ref()?, process.funnel.sysmalloc?.bytes, true);
        Basis::Sysmalloc
    };
    Some(Requests { basis, count, more, bytes, more_bytes })
}

/// What an estimate that rests on another estimate says of it.
fn counted_in_windows(process: &Process, basis: Basis) -> Option<Assumption> {
    let estimate = match basis {
        Basis::Call => process.funnel.call_estimate,
        Basis::Arena => process.funnel.arena_estimate,
        Basis::Sysmalloc | Basis::Crossings => None,
    };
    estimate.map(|estimate| Assumption::InWindows(u64::from(estimate.coverage_ppm).div_ceil(10_000)))
}

/// One class of a histogram with the mean size in it.
struct Class {
    bucket: Bucket,
    mean: f64,
}

impl Class {
    fn bytes(&self) -> u64 {
        (self.mean * self.bucket.calls as f64) as u64
    }
}

/// Puts the means of all classes equally far between their bounds, so that the total is right.
fn fitted(sizes: &[Bucket], total: u64) -> impl Iterator<Item = Class> + '_ {
    let high = |bucket: &Bucket| if bucket.hi == u64::MAX { bucket.lo } else { bucket.hi };
    let (mut lowest, mut width) = (0.0, 0.0);
    for bucket in sizes {
        lowest += bucket.lo as f64 * bucket.calls as f64;
        width += (high(bucket) - bucket.lo) as f64 * bucket.calls as f64;
    }
    let part = if width > 0.0 { ((total as f64 - lowest) / width).clamp(0.0, 1.0) } else { 0.0 };
    sizes
        .iter()
        .map(move |bucket| Class { bucket: *bucket, mean: bucket.lo as f64 + part * (high(bucket) - bucket.lo) as f64 })
}

/// How much of large blocks is touched: page faults of the mapped chunks that were watched, and what is resident of the
/// free chunks from a size on, each for as many bytes as it is; `None`: there is neither.
fn touched_percent(heap: Option<&Heap>, faults: Option<&ChunkFaults>, from: u64, page: u64) -> Option<u64> {
    let large = heap.into_iter().flat_map(Heap::free_sizes).filter(|sizes| sizes.lo >= from);
    let free = large.map(|sizes| (sizes.bytes, sizes.bytes.saturating_sub(sizes.absent_bytes)));
    let watched = faults.map(|f| (f.watched.bytes, f.taken.saturating_mul(page).min(f.watched.bytes)));
    let (bytes, touched) = free.chain(watched).fold((0u64, 0u64), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    (bytes > 0).then(|| touched.saturating_mul(100).saturating_add(bytes / 2) / bytes)
}

/// What would not be retained: free chunks of at least the threshold, and the top above its trim threshold, which is
/// the default when only the mmap threshold is set. `chunks` and `top` choose what of them counts.
fn less_retained(
    heap: &Heap,
    threshold: u64,
    chunks: impl Fn(u64, u64) -> u64,
    top: impl Fn(u64, u64) -> u64,
) -> Change {
    let large = heap.free_sizes().filter(|sizes| sizes.lo >= threshold);
    let free: u64 = large.map(|sizes| chunks(sizes.absent_bytes, sizes.bytes)).sum();
    let tops = heap.arenas.iter().map(|arena| top(arena.top_bytes, arena.top_resident_bytes.unwrap_or(0)));
    let (mut all, mut above) = (0, 0u64);
    for bytes in tops {
        all += bytes;
        above += bytes.saturating_sub(DEFAULT_THRESHOLD);
    }
    Change { low: -signed(free.saturating_add(all)), about: -signed(free.saturating_add(above)), high: 0 }
}

/// `numerator` of `denominator` parts of a difference.
fn part(whole: i64, numerator: u64, denominator: u64) -> i64 {
    i64::try_from(i128::from(whole) * i128::from(numerator) / i128::from(denominator.max(1))).unwrap_or(whole)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
