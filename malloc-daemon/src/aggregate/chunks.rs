//! What a row says of mapped chunks, and what the watched ones say of the rest.

use malloc_common::abi::{Counter, Histogram, Origin, Series};
use malloc_common::chunk::WATCH_FREE;

use super::image::{buckets, counter, sized};
use super::model::{ChunkEnds, ChunkFaults, Count, Crossings, FaultsTotal};
use crate::collect::RawImage;

/// The crossings of an image; `faults`: their page faults were counted.
pub(super) fn crossings(row: &RawImage, told: &dyn Fn(Origin) -> bool, faults: bool) -> Crossings {
    let slot = &row.slot;
    let lengths = sized(row.histogram(Series::Crossing));
    // A chunk that moves unseen is another chunk afterwards.
    let ends = (told(Origin::MunmapChunk) && told(Origin::MremapChunk)).then(|| ChunkEnds {
        lifetime_ns: buckets(row.histogram(Series::Lifetime)),
        lifetime_sum_ns: row.histogram(Series::Lifetime).map_or(0, |ages| ages.sum),
        churned: Count { calls: counter(slot, Counter::ChurnedChunks), bytes: counter(slot, Counter::ChurnedBytes) },
        birth_unknown: counter(slot, Counter::BirthUnknown),
        munmap_ns: counter(slot, Counter::ChunkUnmapNs),
        mremap_ns: counter(slot, Counter::ChunkRemapNs),
    });
    // Without their ends a place would be kept for a chunk that is gone.
    let faults = ends.as_ref().filter(|_| faults).map(|ends| page_faults(row, lengths.count.calls, ends));
    Crossings { count: lengths.count, sizes: lengths.sizes, mmap_ns: counter(slot, Counter::CrossingNs), ends, faults }
}

fn page_faults(row: &RawImage, mapped: u64, ends: &ChunkEnds) -> ChunkFaults {
    let slot = &row.slot;
    let settled = row.histogram(Series::ChunkFaults).copied().unwrap_or(Histogram::EMPTY);
    let mut watched = Count { calls: settled.buckets.iter().sum(), bytes: counter(slot, Counter::WatchedBytes) };
    let mut taken = settled.sum;
    let mut squares = counter(slot, Counter::FaultsSquared);
    for held in slot.watches.iter().filter(|watch| watch.state != WATCH_FREE && watch.start != 0) {
        watched.calls += 1;
        watched.bytes = watched.bytes.wrapping_add(held.end.saturating_sub(held.start));
        taken += held.faults;
        squares = squares.wrapping_add(held.faults.wrapping_mul(held.faults));
    }
    let (churned, churned_taken) = (counter(slot, Counter::ChurnWatched), counter(slot, Counter::ChurnFaults));
    let strata = [
        Stratum { chunks: ends.churned.calls, watched: churned, taken: churned_taken },
        Stratum {
            chunks: mapped.saturating_sub(ends.churned.calls),
            watched: watched.calls.saturating_sub(churned),
            taken: taken.saturating_sub(churned_taken),
        },
    ];
    ChunkFaults {
        watched,
        taken,
        churned,
        churned_taken,
        per_chunk: buckets(Some(&settled)),
        total: total(mapped, watched.calls, taken, squares, strata),
    }
}

/// Chunks that are alike in how long they live, and so in how likely they are to be watched.
#[derive(Clone, Copy)]
struct Stratum {
    chunks: u64,
    watched: u64,
    taken: u64,
}

/// Each stratum's mean times its chunks. The interval is that of a mean of `watched` out of `mapped` drawn by chance.
fn total(mapped: u64, watched: u64, taken: u64, squares: u64, strata: [Stratum; 2]) -> Option<FaultsTotal> {
    if watched >= mapped {
        return Some(FaultsTotal { faults: taken, coverage_ppm: 1_000_000, interval_95: (taken, taken) });
    }
    if watched == 0 {
        return None;
    }
    let (n, all, sum) = (watched as f64, mapped as f64, taken as f64);
    let overall = sum / n;
    let mean = |s: &Stratum| if s.watched == 0 { overall } else { s.taken as f64 / s.watched as f64 };
    // A watched chunk counts with what it took, so that the estimate is never below what was seen.
    let faults: f64 = strata.iter().map(|s| s.taken as f64 + mean(s) * s.chunks.saturating_sub(s.watched) as f64).sum();
    // One chunk tells nothing of how they vary: then it may be anything from what was seen on.
    let high = if watched == 1 {
        f64::MAX
    } else {
        let variance = ((squares as f64 - sum * sum / n) / (n - 1.0)).max(0.0);
        faults + 1.96 * all * (variance / n * (1.0 - n / all)).sqrt()
    };
    let low = (2.0 * faults - high).max(sum);
    // Floats become integers by saturation.
    Some(FaultsTotal {
        faults: faults.round() as u64,
        coverage_ppm: (n / all * 1e6) as u32,
        interval_95: (low.floor() as u64, high.ceil() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_every_chunk_was_watched_the_total_is_a_count() {
        let strata = [Stratum { chunks: 3, watched: 3, taken: 30 }, Stratum { chunks: 1, watched: 1, taken: 5 }];
        let told = total(4, 4, 35, 0, strata).expect("known");
        assert_eq!(told, FaultsTotal { faults: 35, coverage_ppm: 1_000_000, interval_95: (35, 35) });
    }

    #[test]
    fn chunks_that_were_not_watched_count_like_those_of_their_kind() {
        // Ten churned chunks of 100 faults, two watched; ten that stay, of one fault, five watched.
        let strata = [Stratum { chunks: 10, watched: 2, taken: 200 }, Stratum { chunks: 10, watched: 5, taken: 5 }];
        let told = total(20, 7, 205, 2 * 10_000 + 5, strata).expect("known");
        assert_eq!((told.faults, told.coverage_ppm), (1010, 350_000));
        assert!(told.interval_95.0 < 1010 && told.interval_95.1 > 1010 && told.interval_95.0 >= 205, "{told:?}");
    }

    #[test]
    fn equal_chunks_leave_no_doubt_and_a_single_one_leaves_all() {
        let strata =
            |watched, taken| [Stratum { chunks: 100, watched, taken }, Stratum { chunks: 0, watched: 0, taken: 0 }];
        assert_eq!(total(100, 10, 70, 490, strata(10, 70)).map(|t| t.interval_95), Some((700, 700)));
        assert_eq!(total(100, 1, 7, 49, strata(1, 7)).map(|t| t.interval_95), Some((7, u64::MAX)));
        assert_eq!(total(100, 0, 0, 0, strata(0, 0)), None);
    }
}
