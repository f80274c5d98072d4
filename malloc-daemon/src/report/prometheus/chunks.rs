//! Mapped chunks: how many were churn, how long they lived, what the kernel took for them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::Page;
use super::figures::{Figures, advance, grow};
use crate::aggregate::model::{Bucket, Process};

/// Upper bounds of the buckets of a lifetime, nanoseconds: powers of eight from 16 us to 37 min, so that no bucket of the
/// kernel is split.
pub(super) const AGES: [u64; 10] = {
    let mut ages = [0; 10];
    let mut index = 0;
    while index < ages.len() {
        ages[index] = 1 << (14 + 3 * index);
        index += 1;
    }
    ages
};

/// System calls in which time for mapped chunks is spent.
const CALLS: [&str; 3] = ["mmap", "munmap", "mremap"];

/// `None`: never measured. All of it only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ChunkFigures {
    pub churned: Option<u64>,
    pub churned_bytes: Option<u64>,
    /// By [`CALLS`].
    pub call_ns: [Option<u64>; 3],
    pub watched: Option<u64>,
    pub watched_faults: Option<u64>,
    pub lifetimes: Option<Box<Lifetimes>>,
}

/// Nanoseconds; the last bucket has no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lifetimes {
    pub sum: u64,
    pub buckets: [u64; AGES.len() + 1],
}

impl ChunkFigures {
    /// What a process counts now.
    pub(super) fn of(process: &Process) -> Self {
        let Some(crossings) = &process.crossings else { return Self::default() };
        let (ends, faults) = (crossings.ends.as_ref(), crossings.faults.as_ref());
        Self {
            churned: ends.map(|ends| ends.churned.calls),
            churned_bytes: ends.map(|ends| ends.churned.bytes),
            call_ns: [Some(crossings.mmap_ns), ends.map(|ends| ends.munmap_ns), ends.map(|ends| ends.mremap_ns)],
            watched: faults.map(|faults| faults.watched.calls),
            watched_faults: faults.map(|faults| faults.taken),
            lifetimes: ends.map(|ends| Box::new(Lifetimes::of(ends.lifetime_sum_ns, &ends.lifetime_ns))),
        }
    }

    /// As [`Figures::grow`].
    pub(super) fn grow(&mut self, seen: &mut Self, now: &Self) {
        grow(&mut self.churned, &mut seen.churned, now.churned);
        grow(&mut self.churned_bytes, &mut seen.churned_bytes, now.churned_bytes);
        grow(&mut self.watched, &mut seen.watched, now.watched);
        grow(&mut self.watched_faults, &mut seen.watched_faults, now.watched_faults);
        for ((total, seen), now) in self.call_ns.iter_mut().zip(&mut seen.call_ns).zip(now.call_ns) {
            grow(total, seen, now);
        }
        let Some(now) = &now.lifetimes else { return };
        let (total, seen) = (self.lifetimes.get_or_insert_default(), seen.lifetimes.get_or_insert_default());
        advance(&mut total.sum, &mut seen.sum, now.sum);
        for ((total, seen), now) in total.buckets.iter_mut().zip(&mut seen.buckets).zip(&now.buckets) {
            advance(total, seen, *now);
        }
    }
}

impl Lifetimes {
    fn of(sum: u64, lives: &[Bucket]) -> Self {
        let mut lifetimes = Self { sum, ..Self::default() };
        for life in lives {
            let index = AGES.iter().position(|age| life.hi < *age).unwrap_or(AGES.len());
            if let Some(chunks) = lifetimes.buckets.get_mut(index) {
                *chunks = chunks.saturating_add(life.calls);
            }
        }
        lifetimes
    }
}

impl Page {
    pub(super) fn chunks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Of = fn(&Figures) -> Option<u64>;
        let counters: [(&str, &str, Of); 4] = [
            ("malloc_mapped_chunks_churned", "Mapped chunks that were unmapped again within a second", |f| {
                f.chunks.churned
            }),
            ("malloc_mapped_chunks_churned_bytes", "Bytes of these", |f| f.chunks.churned_bytes),
            ("malloc_mapped_chunks_watched", "Mapped chunks whose page faults were counted", |f| f.chunks.watched),
            ("malloc_mapped_chunks_watched_page_faults", "Page faults of these", |f| f.chunks.watched_faults),
        ];
        for (name, help, of) in counters {
            self.by_name(encoder, name, help, of)?;
        }
        let help = "Time in system calls for mapped chunks";
        let name = "malloc_mapped_chunk_syscall_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (name, figures) in self.sums.names() {
            for (call, ns) in CALLS.into_iter().zip(figures.chunks.call_ns) {
                if let Some(ns) = ns {
                    let labels = [(self.label, name), ("syscall", call)];
                    ConstCounter::new(ns as f64 / 1e9).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        let help = "From the mmap of a mapped chunk to its munmap";
        let name = "malloc_mapped_chunk_lifetime_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (name, figures) in self.sums.names() {
            let Some(lives) = &figures.chunks.lifetimes else { continue };
            let bounds = AGES.into_iter().map(|age| age as f64 / 1e9).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(lives.buckets).collect();
            let count = lives.buckets.iter().fold(0u64, |sum, chunks| sum.saturating_add(*chunks));
            metric.encode_family(&[(self.label, name)])?.encode_histogram::<NoLabelSet>(
                lives.sum as f64 / 1e9,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use malloc_common::histogram::{BUCKETS, bounds};

    #[test]
    fn no_bucket_of_the_kernel_is_split() {
        for index in 0..BUCKETS {
            let (lo, hi) = bounds(index);
            assert!(AGES.iter().all(|age| hi < *age || lo >= *age), "bucket {index}");
        }
    }

    #[test]
    fn lifetimes_fall_into_the_bucket_below_their_bound() {
        let life = |ns: u64, calls| {
            let (lo, hi) = bounds(malloc_common::histogram::bucket(ns) as usize);
            Bucket { lo, hi, calls }
        };
        let lives = Lifetimes::of(7, &[life(10, 1), life((1 << 14) - 1, 2), life(1 << 14, 4), life(1 << 47, 8)]);
        assert_eq!((lives.sum, lives.buckets[0], lives.buckets[1], lives.buckets[10]), (7, 3, 4, 8));
    }
}
