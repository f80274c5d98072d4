//! Replays whose outcome can be counted by hand.

use std::sync::Arc;

use super::*;
use crate::aggregate::heap::{Arena, Free, FreeSizes};
use crate::aggregate::model::{ChunkEnds, ChunkFaults, Count, Estimate, FaultsTotal, FunctionCount};
use crate::report::sample;

/// A thousand blocks of 200,000 bytes, the threshold raised above them by one of a MiB, and its heap.
fn raised() -> Process {
    let mut process = sample::sqlite();
    process.observed_ms = 2_000;
    let threshold = process.threshold.as_mut().expect("a threshold");
    threshold.bytes = 1_052_672;
    threshold.trim_bytes = 2_105_344;
    process.functions = Some(vec![function(Function::Malloc, &[(100, 5_000), (200_000, 1_000), (1 << 20, 1)])]);
    process.sysmalloc_sizes = Some(sample::buckets(&[(2_000, 30), (200_016, 20), (1_048_592, 1)]));
    process.funnel.sysmalloc = Some(Count { calls: 51, bytes: 30 * 2_000 + 20 * 200_016 + 1_048_592 });
    let free = Free {
        chunks: 21,
        bytes: 4_000_320 + 600,
        complete: true,
        sizes: vec![
            FreeSizes { lo: 32, hi: 39, chunks: 1, bytes: 600, absent_bytes: 0 },
            FreeSizes { lo: 196_608, hi: 229_375, chunks: 20, bytes: 4_000_320, absent_bytes: 1_000_080 },
        ],
    };
    let arena = Arena {
        is_main: true,
        system_bytes: 6 << 20,
        top_bytes: 300_000,
        top_resident_bytes: Some(200_000),
        free: Some(free),
        ..Arena::default()
    };
    process.heap = Some(Arc::new(Heap { arenas: vec![arena], ..sample::heap() }));
    process
}

fn function(function: Function, sizes: &[(u64, u64)]) -> FunctionCount {
    FunctionCount {
        function,
        calls: sizes.iter().map(|(_, calls)| calls).sum(),
        bytes: Some(sizes.iter().map(|(size, calls)| size * calls).sum()),
        failed: Some(0),
        sizes: Some(sample::buckets(sizes)),
        estimate: None,
        shares_95: None,
    }
}

fn only(process: &Process) -> WhatIf {
    let mut all = what_if(process);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn every_large_request_would_be_mapped() {
    let estimate = only(&raised());
    assert_eq!((estimate.mmap_threshold, estimate.trim_threshold), (131_072, None));
    assert_eq!((estimate.basis, estimate.mmaps_now, estimate.mmaps), (Basis::Call, 1, (1_001, Some(1_001))));
    // 1,001 blocks of 49 and 257 pages, three quarters of them touched, without the growth for 20 of them and for one.
    let all = (1_000 * 49 + 257) * 3 / 4 - (20 * 49 + 257) * 3 / 4;
    assert!((estimate.faults.about - all).abs() < all / 20, "{} and {all}", estimate.faults.about);
    assert!(estimate.faults.low <= estimate.faults.about && estimate.faults.about <= estimate.faults.high);
    assert!(estimate.assumptions.contains(&Assumption::TouchedPercent(75)));
}

// EST-2
#[test]
fn a_replay_of_estimated_requests_says_so() {
    let windows = |process: &Process| only(process).assumptions.contains(&Assumption::InWindows(2));
    let mut process = raised();
    assert!(!windows(&process));
    process.funnel.call_estimate = Some(Estimate { coverage_ppm: 15_000, calls_95: None, bytes_95: None });
    assert!(windows(&process));
}

#[test]
fn chunks_whose_page_faults_were_counted_tell_how_much_is_touched() {
    let mut process = raised();
    let watched = Count { calls: 3, bytes: 12_000_960 };
    let faults = ChunkFaults { watched, taken: watched.bytes.div_ceil(4096), ..ChunkFaults::default() };
    process.crossings.as_mut().expect("crossings").faults = Some(faults);
    // All of these, and three quarters of a third as much.
    assert!(only(&process).assumptions.contains(&Assumption::TouchedPercent(94)));
}

#[test]
fn large_free_chunks_and_a_top_above_the_trim_threshold_would_be_gone() {
    let estimate = only(&raised());
    assert_eq!(estimate.retained.map(|change| change.about), Some(-4_000_320 - (300_000 - 131_072)));
    assert_eq!(estimate.resident.map(|change| change.about), Some(-3_000_240 - (200_000 - 131_072)));
    let mut process = raised();
    process.heap = None;
    let estimate = only(&process);
    assert_eq!((estimate.retained, estimate.resident), (None, None), "not known is not zero");
    assert!(estimate.assumptions.contains(&Assumption::AllTouched));
}

#[test]
fn what_realloc_asked_for_and_a_class_that_is_cut_through_are_told_as_bounds() {
    let mut process = raised();
    let functions = process.functions.as_mut().expect("functions");
    functions.push(function(Function::Realloc, &[(300_000, 7)]));
    functions.push(function(Function::Calloc, &[(131_060, 3)]));
    let (before, after) = (only(&raised()), only(&process));
    assert_eq!(after.mmaps, (1_001, Some(1_011)));
    assert_eq!(after.faults.about, before.faults.about);
    assert!(after.faults.high >= before.faults.high + 7 * 300_000 / 4096);
}

#[test]
fn a_shallower_depth_replays_what_it_has_and_says_so() {
    let mut process = raised();
    process.functions = None;
    process.arena_sizes = Some(sample::buckets(&[(2_000, 100), (200_000, 900)]));
    process.funnel.arena = Some(Count { calls: 1_000, bytes: 2_000 * 100 + 200_000 * 900 });
    let estimate = only(&process);
    assert_eq!((estimate.basis, estimate.mmaps), (Basis::Arena, (900, Some(900))));
    process.arena_sizes = None;
    let estimate = only(&process);
    assert_eq!((estimate.basis, estimate.mmaps), (Basis::Sysmalloc, (21, None)));
    assert!(estimate.assumptions.contains(&Assumption::AtLeast));
}

#[test]
fn a_threshold_that_is_set_or_stands_where_it_began_is_left_alone() {
    let mut process = raised();
    process.threshold.as_mut().expect("a threshold").mode = ThresholdMode::Pinned;
    assert!(what_if(&process).is_empty());
    assert!(what_if(&sample::sqlite()).is_empty());
    assert!(what_if(&sample::at_depth_syscall()).is_empty());
}

/// Blocks mapped and unmapped 500 times a second.
fn churning(sizes: &[(u64, u64)]) -> Process {
    let mut process = sample::sqlite();
    process.observed_ms = 2_000;
    let calls = sizes.iter().map(|(_, calls)| calls).sum();
    let crossings = process.crossings.as_mut().expect("crossings");
    crossings.count = Count { calls, bytes: sizes.iter().map(|(size, calls)| size * calls).sum() };
    crossings.sizes = sample::buckets(sizes);
    let churned = Count { calls, bytes: crossings.count.bytes };
    crossings.ends = Some(ChunkEnds { churned, ..ChunkEnds::default() });
    crossings.faults = None;
    let heap = Heap { max_mmapped_bytes: 819_200, ..sample::heap() };
    process.heap = Some(Arc::new(heap));
    process
}

#[test]
fn churned_chunks_would_stay_in_the_heap() {
    let estimate = only(&churning(&[(204_800, 1_000)]));
    assert_eq!((estimate.mmap_threshold, estimate.trim_threshold), (229_376, Some(1_638_400)));
    assert_eq!((estimate.mmaps_now, estimate.mmaps), (1_000, (0, Some(0))));
    // 50 pages a thousand times, and then 200 once.
    assert_eq!(estimate.faults.about, 200 - 50_000);
    assert_eq!(estimate.retained.map(|change| change.about), Some(819_200 + 131_072));
}

#[test]
fn page_faults_that_were_counted_take_the_place_of_an_assumption() {
    let mut process = churning(&[(204_800, 1_000)]);
    let crossings = process.crossings.as_mut().expect("crossings");
    let total = FaultsTotal { faults: 10_000, coverage_ppm: 500_000, interval_95: (9_000, 11_000) };
    crossings.faults = Some(ChunkFaults { total: Some(total), ..ChunkFaults::default() });
    let estimate = only(&process);
    assert_eq!(estimate.faults.about, (200 - 50_000) / 5);
    assert!(estimate.faults.low <= estimate.faults.about && estimate.faults.about <= estimate.faults.high);
    assert!(estimate.assumptions.contains(&Assumption::FaultsPercent(20)));
}

#[test]
fn a_few_larger_chunks_stay_mapped() {
    let estimate = only(&churning(&[(204_800, 1_000), (64 << 20, 5)]));
    assert_eq!((estimate.mmap_threshold, estimate.mmaps), (229_376, (0, Some(5))));
}

#[test]
fn a_threshold_a_little_higher_keeps_all_of_them() {
    let estimate = only(&churning(&[(204_800, 1_000), (390_000, 5)]));
    assert_eq!((estimate.mmap_threshold, estimate.mmaps), (393_216, (0, Some(0))));
}

#[test]
fn no_threshold_above_the_highest_is_proposed_nor_one_for_a_few_chunks() {
    assert!(what_if(&churning(&[(64 << 20, 1_000)])).is_empty());
    assert!(what_if(&churning(&[(204_800, 10)])).is_empty());
}

#[test]
fn the_means_of_the_classes_make_the_total() {
    let sizes = sample::buckets(&[(1_000, 10), (200_000, 4), (1 << 20, 1)]);
    let total = 10 * 1_000 + 4 * 200_000 + (1 << 20);
    let sum: f64 = fitted(&sizes, total).map(|class| class.mean * class.bucket.calls as f64).sum();
    assert!((sum - total as f64).abs() < 1.0, "{sum} and {total}");
    for class in fitted(&sizes, u64::MAX).chain(fitted(&sizes, 0)) {
        assert!(class.mean >= class.bucket.lo as f64 && class.mean <= class.bucket.hi as f64);
    }
}
