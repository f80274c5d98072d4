//! What the probes of `arena` and `call` have counted of one image, in one shape, and what the hits cost it.

use malloc_common::abi::{Counter, Series, Slot};
use malloc_common::function::{self, FUNCTIONS, Function};
use malloc_common::histogram::BUCKETS;

use super::HitPrice;
use crate::collect::RawImage;

/// Rows of a tally: the functions by discriminant, then the arena.
pub const ROWS: usize = FUNCTIONS + 1;
/// The row of `_int_malloc`.
pub const ARENA: usize = FUNCTIONS;

/// One function, or the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Calls that could succeed by their arguments.
    pub calls: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Calls that could not.
    pub failed: u64,
    /// The calls by size; all zero for `free`.
    pub buckets: [u64; BUCKETS],
}

impl Row {
    /// Nothing.
    pub const EMPTY: Self = Self { calls: 0, bytes: 0, failed: 0, buckets: [0; BUCKETS] };

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        self.calls = self.calls.wrapping_add(other.calls);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.failed = self.failed.wrapping_add(other.failed);
        for (mine, other) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.wrapping_add(other);
        }
    }

    /// What was counted since `before`. A transfer is counted just before the entry it announces, so a figure may be
    /// one less than before: that is none.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: u64, before: u64| u64::try_from(now.wrapping_sub(before).cast_signed()).unwrap_or(0);
        let mut row = Self {
            calls: less(self.calls, before.calls),
            bytes: less(self.bytes, before.bytes),
            failed: less(self.failed, before.failed),
            buckets: [0; BUCKETS],
        };
        for (index, bucket) in row.buckets.iter_mut().enumerate() {
            *bucket = less(self.buckets[index], before.buckets[index]);
        }
        row
    }
}

/// Everything that deep probes counted of one image up to a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// By [`Function`] discriminant, the arena last.
    pub rows: Vec<Row>,
    /// Hits of all these probes.
    pub hits: u64,
    /// What hits of `arena` cost, nanoseconds.
    pub arena_cost_ns: u64,
    /// What hits of `call` cost, nanoseconds.
    pub call_cost_ns: u64,
}

/// What a hit costs, by the site it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Entries of the functions, by discriminant, nanoseconds.
    pub calls: [u32; FUNCTIONS],
    /// Branches to them: all are emulated.
    pub transfer: u32,
    /// `_int_malloc`.
    pub arena: u32,
}

impl Prices {
    /// Every site on an emulated instruction.
    #[must_use]
    pub fn emulated(price: HitPrice) -> Self {
        Self { calls: [price.emulated_ns; FUNCTIONS], transfer: price.emulated_ns, arena: price.emulated_ns }
    }
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn empty() -> Self {
        Self { rows: vec![Row::EMPTY; ROWS], hits: 0, arena_cost_ns: 0, call_cost_ns: 0 }
    }

    /// What an image has been counted to have done.
    #[must_use]
    pub fn of(image: &RawImage, prices: &Prices) -> Self {
        let mut tally = Self::empty();
        let counter = |counter: Counter| counted(&image.slot, counter);
        for function in function::ALL {
            let row = &mut tally.rows[function as usize];
            let price = u64::from(prices.calls[function as usize]);
            let (mut entries, mut transfers);
            if function == Function::Free {
                (entries, transfers) = (counter(Counter::Free), counter(Counter::FreeTransfer));
                row.calls = entries.wrapping_sub(transfers);
                entries += counter(Counter::IdleHits);
            } else {
                (entries, transfers) = (counter(Counter::Failed(function)), counter(Counter::FailedTransfer(function)));
                row.failed = entries.wrapping_sub(transfers);
                if let Some(own) = image.histogram(Series::Call(function)) {
                    row.bytes = own.sum;
                    row.buckets = own.buckets;
                    entries += own.buckets.iter().sum::<u64>();
                }
                if let Some(passed) = image.histogram(Series::Transfer(function)) {
                    row.bytes = row.bytes.wrapping_sub(passed.sum);
                    for (bucket, passed) in row.buckets.iter_mut().zip(passed.buckets) {
                        *bucket = bucket.wrapping_sub(passed);
                    }
                    transfers += passed.buckets.iter().sum::<u64>();
                }
                row.calls = row.buckets.iter().fold(0, |sum, bucket| sum.wrapping_add(*bucket));
            }
            tally.hits += entries + transfers;
            tally.call_cost_ns += entries * price + transfers * u64::from(prices.transfer);
        }
        if let Some(arena) = image.histogram(Series::Arena) {
            let row = &mut tally.rows[ARENA];
            row.bytes = arena.sum;
            row.buckets = arena.buckets;
            row.calls = arena.buckets.iter().sum();
            tally.hits += row.calls;
            tally.arena_cost_ns = row.calls * u64::from(prices.arena);
        }
        tally
    }

    /// What all hits cost, nanoseconds.
    #[must_use]
    pub fn cost_ns(&self) -> u64 {
        self.arena_cost_ns + self.call_cost_ns
    }
}

fn counted(slot: &Slot, counter: Counter) -> u64 {
    slot.counters.get(counter.index()).copied().unwrap_or(0)
}
