//! The seam between kernel and daemon: rows as the kernel side keeps them, from real maps or simulated ones.

use std::sync::Arc;

use malloc_common::abi::{Counter, Event, Histogram, Origin, Series, Slot};
use malloc_common::loss::LOSSES;

mod bpf;
mod rows;
#[cfg(test)]
pub mod sim;

pub use bpf::{BpfCollector, CollectError, Events, Samples, boot_ns};
pub use rows::Rows;

/// Everything the kernel side has counted, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct RawSnapshot {
    /// Nanoseconds since boot.
    pub now_ns: u64,
    /// Images that live or ended since the last collection. One in which nothing was counted since may be the very one
    /// of then.
    pub images: Vec<Arc<RawImage>>,
    /// Indexed by `Loss`.
    pub lost: [u64; LOSSES],
    /// Programs that the kernel skipped.
    pub missed: u64,
}

/// One image of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct RawImage {
    /// Its row.
    pub slot: Slot,
    /// Its histograms by [`Series::index`], those that hold something.
    pub histograms: Vec<(usize, Histogram)>,
}

impl RawImage {
    /// Mapped chunks of which the kernel side still knows the birth.
    #[must_use]
    pub fn mapped_chunks(&self) -> u64 {
        let counter = |counter: Counter| self.slot.counters.get(counter.index()).copied().unwrap_or(0);
        let gone = self.histogram(Series::Lifetime).map_or(0, |ages| ages.buckets.iter().sum());
        counter(Counter::OriginCalls(Origin::MmapCrossing)).saturating_sub(gone)
    }

    /// A number that is another one after anything was counted: the sum of counters and of sizes, wrapping.
    #[must_use]
    pub fn counted(&self) -> u64 {
        let counters = self.slot.counters.iter().fold(0u64, |sum, count| sum.wrapping_add(*count));
        self.histograms.iter().fold(counters, |sum, (_, histogram)| sum.wrapping_add(histogram.sum))
    }

    /// The histogram of a series, if anything was recorded.
    #[must_use]
    pub fn histogram(&self, series: Series) -> Option<&Histogram> {
        let index = series.index();
        self.histograms.iter().find(|(held, _)| *held == index).map(|(_, histogram)| histogram)
    }
}

/// Reads what was counted. An image that ended is reported once; then its row is used again.
pub trait Collector {
    /// Collects.
    fn collect(&mut self) -> RawSnapshot;
}

/// Receives rare events.
pub trait EventSource {
    /// Calls `f` for each event that waits.
    fn drain(&mut self, f: &mut dyn FnMut(Event));
}
