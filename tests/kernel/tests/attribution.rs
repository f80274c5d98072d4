//! Proves that each system call is laid at the right door: a crossing, a heap, a stack, or the program itself.
#![cfg(feature = "real-kernel")]

use kernel_tests::compare::{assert_crossings, assert_functions, assert_threshold};
use kernel_tests::daemon::{Recording, record, record_prepared};
use kernel_tests::document::Image;
use kernel_tests::victim;

fn assert_mappings(recording: &Recording) -> Image {
    let (truth, image) = recording.only();
    image.assert_complete();
    assert_functions(truth, &image);
    assert_crossings(truth, &image);
    assert_threshold(truth, &image);
    image.assert_sums();
    image
}

// CROSS-1, THRESH-1: every chunk is mapped and every one is reported, with the length the kernel saw.
#[test]
fn every_mapped_chunk_is_a_crossing() {
    let image = assert_mappings(&record("crossings_storm", &["1000"]));
    assert_eq!(image.number("/crossings/calls"), 1000);
}

#[test]
fn chunks_that_stay_mapped_are_crossings_too() {
    let image = assert_mappings(&record("crossings_storm", &["3000", "40000", "keep"]));
    assert_eq!(image.number("/crossings/calls"), 3000);
}

// CROSS-1: most of these sizes are above the threshold at the start and served from the heap later.
#[test]
fn a_large_request_that_the_heap_serves_is_no_crossing() {
    let image = assert_mappings(&record("sizes", &[]));
    assert!(image.number("/crossings/calls") > 0, "some are mapped");
}

// THRESH-1: each free of a larger mapped chunk moves the threshold there, up to 32 MiB.
#[test]
fn the_threshold_follows_the_frees_that_raise_it() {
    let image = assert_mappings(&record("dynamic_threshold", &[]));
    assert_eq!(image.number("/threshold/trim_bytes"), 2 * image.number("/threshold/bytes"));
}

// THRESH-1: set from outside, the threshold stands, in whatever order chunks are freed.
#[test]
fn a_threshold_set_by_the_environment_is_pinned() {
    let recording = record_prepared(&victim::program("trace_one"), &[], |command| {
        command.env("MALLOC_MMAP_THRESHOLD_", "262144");
    });
    let (_, image) = recording.only();
    assert_eq!(image.number("/threshold/bytes"), 262_144);
    assert_eq!(image.text("/threshold/mode"), "pinned");
    assert_eq!(image.number("/threshold/raises"), 0);
}

// CROSS-1: a region that stands in for the refused heap has a crossing's flags and is none.
#[test]
fn a_region_mapped_for_a_refused_break_is_a_fallback() {
    for chunks in ["100", "1000"] {
        let recording = record("fallback", &[chunks]);
        let image = assert_mappings(&recording);
        let regions = recording.only().0.fact("fallback");
        assert_eq!(image.number("/syscalls/mmap/by_origin/fallback"), regions, "{chunks} chunks");
        assert_eq!(image.number("/crossings/fallback_calls"), regions, "{chunks} chunks");
        assert_eq!(image.number("/syscalls/brk/failed"), regions, "{chunks} chunks");
    }
}

#[test]
fn each_thread_is_one_stack_mapping_and_each_arena_a_heap() {
    let recording = record("stacks_arenas", &["4", "32"]);
    let (truth, image) = recording.only();
    assert_eq!(image.number("/syscalls/mmap/by_origin/thread_stack"), truth.fact("thread_stacks"));
    let heaps = image.number("/syscalls/mmap/by_origin/arena_heap");
    assert!(heaps >= truth.fact("arena_heaps"), "{heaps} heap mappings for {} heaps", truth.fact("arena_heaps"));
    assert_eq!(image.number("/crossings/calls"), 0, "a heap is no crossing (CROSS-1)");
    image.assert_sums();
}

#[test]
fn growth_and_trim_of_the_heap_are_exact() {
    let recording = record("trim", &["32"]);
    let (truth, image) = recording.only();
    for (pointer, fact) in [
        ("/syscalls/brk/by_origin/growth", "growths"),
        ("/syscalls/brk/by_origin/trim", "trims"),
        ("/syscalls/brk/grown_bytes", "grown_bytes"),
        ("/syscalls/brk/shrunk_bytes", "shrunk_bytes"),
    ] {
        assert_eq!(image.number(pointer), truth.fact(fact), "{pointer}");
    }
    assert_eq!(image.number("/syscalls/brk/failed"), 0);
    assert_mappings(&recording);
}

// CROSS-1: same length, same flags, between two mallocs: only the caller tells them apart.
#[test]
fn the_programs_own_calls_are_the_programs() {
    let (idle, working) = (record("own_syscalls", &["0"]), record("own_syscalls", &["10"]));
    let (truth, with) = working.only();
    let (_, without) = idle.only();
    let more = |pointer: &str| with.number(pointer) - without.number(pointer);
    for (pointer, fact) in [
        ("/syscalls/mmap/by_origin/other", "mmap_other"),
        ("/syscalls/mmap/by_origin/file", "mmap_file"),
        ("/syscalls/mmap/failed", "mmap_failed"),
        ("/syscalls/munmap/by_origin/other", "munmap_other"),
        ("/syscalls/mremap/by_origin/other", "mremap_other"),
        ("/syscalls/brk/by_origin/other", "sbrk_calls"),
        ("/syscalls/brk/grown_bytes", "sbrk_bytes"),
    ] {
        assert_eq!(more(pointer), truth.fact(fact), "{pointer}");
    }
    for pointer in [
        "/syscalls/mmap/by_origin/crossing",
        "/syscalls/mmap/by_origin/fallback",
        "/syscalls/mmap/by_origin/arena_heap",
        "/syscalls/munmap/by_origin/chunk",
        "/syscalls/brk/by_origin/growth",
        "/crossings/calls",
    ] {
        assert_eq!(more(pointer), 0, "{pointer}");
    }
    with.assert_sums();
}

// The program loads its libc before its first instruction: these mappings are the loader's, from files.
#[test]
fn mappings_of_the_loader_are_of_files() {
    let recording = record("trace_one", &[]);
    let (_, image) = recording.only();
    assert!(image.number("/syscalls/mmap/by_origin/file") >= 4, "the libc alone has four segments");
    assert_eq!(image.number("/syscalls/mmap/by_origin/crossing"), 1);
    assert_eq!(image.number("/syscalls/mmap/by_origin/thread_stack"), 0);
}
