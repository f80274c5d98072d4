//! The numbers of one process, or of all processes of one name.

use malloc_common::abi::ORIGINS;
use malloc_common::function::{FUNCTIONS, SIZED_FUNCTIONS};

use super::chunks::ChunkFigures;
use crate::aggregate::model::{Bucket, Process};

/// Upper bounds of the buckets of a request, bytes: powers of four, so that no bucket of the kernel is split.
pub(super) const BOUNDS: [u64; 12] = {
    let mut bounds = [0; 12];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (16 << (2 * index)) - 1;
        index += 1;
    }
    bounds
};

/// `None`: never measured. Everything but the threshold only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub calls: [Option<u64>; FUNCTIONS],
    pub requests: [Option<Box<Requests>>; SIZED_FUNCTIONS],
    pub crossings: Option<u64>,
    pub raises: Option<u64>,
    pub chunks: ChunkFigures,
    pub origin_calls: [Option<u64>; ORIGINS],
    pub origin_bytes: [Option<u64>; ORIGINS],
    /// By depth, the cheapest first.
    pub hits: [Option<u64>; 4],
    /// What observing cost, nanoseconds.
    pub cost_ns: Option<u64>,
    /// Bytes; a gauge.
    pub threshold: Option<u64>,
    /// Calls by function where they are estimated, of those that run; gauges.
    pub estimated: [Option<u64>; FUNCTIONS],
    /// The least part of the time that is counted of those; a gauge.
    pub coverage_ppm: Option<u32>,
}

/// Bytes requested; the last bucket has no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    pub sum: u64,
    pub buckets: [u64; BOUNDS.len() + 1],
}

impl Figures {
    /// What a process counts now.
    pub(super) fn of(process: &Process) -> Self {
        let mut figures = Self::default();
        let s = &process.syscalls;
        // An estimate may fall when more is known: a counter takes what was counted.
        let counted = process.counted_functions.as_ref().or(process.functions.as_ref());
        for function in counted.into_iter().flatten() {
            let index = function.function as usize;
            put(&mut figures.calls, index, Some(function.calls));
            if let (Some(sizes), Some(requests)) = (&function.sizes, figures.requests.get_mut(index)) {
                *requests = Some(Box::new(Requests::of(function.bytes.unwrap_or(0), sizes)));
            }
        }
        for (origin, count) in [&s.mmap, &s.munmap, &s.mremap, &s.brk].into_iter().flat_map(|call| &call.by_origin) {
            put(&mut figures.origin_calls, *origin as usize, count.map(|count| count.calls));
            put(&mut figures.origin_bytes, *origin as usize, count.map(|count| count.bytes));
        }
        figures.crossings = process.crossings.as_ref().map(|crossings| crossings.count.calls);
        figures.chunks = ChunkFigures::of(process);
        figures.cost_ns = process.cost.map(|cost| cost.ns());
        figures.raises = process.threshold.map(|threshold| threshold.raises);
        figures.threshold = process.threshold.map(|threshold| threshold.bytes);
        for function in process.functions.iter().flatten() {
            if let Some(estimate) = function.estimate {
                put(&mut figures.estimated, function.function as usize, Some(function.calls));
                figures.coverage_ppm = Some(estimate.coverage_ppm);
            }
        }
        let calls = counted.map(|functions| {
            functions.iter().fold(0u64, |sum, f| sum.saturating_add(f.calls).saturating_add(f.failed.unwrap_or(0)))
        });
        let syscalls = [&s.mmap, &s.munmap, &s.mremap, &s.brk];
        figures.hits = [
            Some(syscalls.iter().fold(0, |sum: u64, call| sum.saturating_add(call.calls))),
            process.funnel.sysmalloc.map(|level| level.calls),
            process.funnel.arena.filter(|_| process.funnel.arena_estimate.is_none()).map(|level| level.calls),
            calls,
        ];
        figures
    }

    /// Takes over the gauges of another.
    pub(super) fn keep_gauges(&mut self, now: &Self) {
        (self.threshold, self.estimated, self.coverage_ppm) = (now.threshold, now.estimated, now.coverage_ppm);
    }

    /// Forgets the gauges.
    pub(super) fn clear_gauges(&mut self) {
        self.threshold = None;
        self.estimated = [None; FUNCTIONS];
        self.coverage_ppm = None;
    }

    /// Takes in the gauges of one more process that runs.
    pub(super) fn add_gauges(&mut self, now: &Self) {
        self.threshold = self.threshold.max(now.threshold);
        for (total, now) in self.estimated.iter_mut().zip(now.estimated) {
            if let Some(now) = now {
                *total = Some(total.unwrap_or(0).saturating_add(now));
            }
        }
        self.coverage_ppm = match (self.coverage_ppm, now.coverage_ppm) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Adds what `now` counts more than `seen`, and makes `seen` remember it. A figure that is not measured any
    /// more keeps what it was, and is not counted again when it comes back.
    pub(super) fn grow(&mut self, seen: &mut Self, now: &Self) {
        grow_all(&mut self.calls, &mut seen.calls, &now.calls);
        grow_all(&mut self.origin_calls, &mut seen.origin_calls, &now.origin_calls);
        grow_all(&mut self.origin_bytes, &mut seen.origin_bytes, &now.origin_bytes);
        grow_all(&mut self.hits, &mut seen.hits, &now.hits);
        grow(&mut self.crossings, &mut seen.crossings, now.crossings);
        grow(&mut self.raises, &mut seen.raises, now.raises);
        self.chunks.grow(&mut seen.chunks, &now.chunks);
        grow(&mut self.cost_ns, &mut seen.cost_ns, now.cost_ns);
        for ((total, seen), now) in self.requests.iter_mut().zip(&mut seen.requests).zip(&now.requests) {
            let Some(now) = now else { continue };
            let (total, seen) = (total.get_or_insert_default(), seen.get_or_insert_default());
            advance(&mut total.sum, &mut seen.sum, now.sum);
            for ((total, seen), now) in total.buckets.iter_mut().zip(&mut seen.buckets).zip(&now.buckets) {
                advance(total, seen, *now);
            }
        }
    }
}

impl Requests {
    fn of(sum: u64, sizes: &[Bucket]) -> Self {
        let mut requests = Self { sum, ..Self::default() };
        for bucket in sizes {
            let index = BOUNDS.iter().position(|bound| bucket.hi <= *bound).unwrap_or(BOUNDS.len());
            if let Some(calls) = requests.buckets.get_mut(index) {
                *calls = calls.saturating_add(bucket.calls);
            }
        }
        requests
    }
}

fn put(slots: &mut [Option<u64>], index: usize, value: Option<u64>) {
    if let Some(slot) = slots.get_mut(index) {
        *slot = value;
    }
}

fn grow_all(totals: &mut [Option<u64>], seen: &mut [Option<u64>], now: &[Option<u64>]) {
    for ((total, seen), now) in totals.iter_mut().zip(seen).zip(now) {
        grow(total, seen, *now);
    }
}

pub(super) fn grow(total: &mut Option<u64>, seen: &mut Option<u64>, now: Option<u64>) {
    if let Some(now) = now {
        advance(total.get_or_insert_default(), seen.get_or_insert_default(), now);
    }
}

/// `total` grows by what `now` is more than `seen`.
pub(super) fn advance(total: &mut u64, seen: &mut u64, now: u64) {
    *total = total.saturating_add(now.saturating_sub(*seen));
    *seen = now.max(*seen);
}

#[cfg(test)]
mod tests {
    use super::*;
    use malloc_common::histogram::{BUCKETS, bounds};

    #[test]
    fn no_bucket_of_the_kernel_is_split() {
        for index in 0..BUCKETS {
            let (lo, hi) = bounds(index);
            assert!(BOUNDS.iter().all(|bound| hi <= *bound || lo > *bound), "bucket {index}");
        }
    }

    #[test]
    fn a_figure_that_comes_back_is_not_counted_twice() {
        let (mut total, mut seen) = (Figures::default(), Figures::default());
        for (crossings, expected) in [(Some(3), Some(3)), (None, Some(3)), (Some(5), Some(5))] {
            total.grow(&mut seen, &Figures { crossings, ..Figures::default() });
            assert_eq!(total.crossings, expected);
        }
    }
}
