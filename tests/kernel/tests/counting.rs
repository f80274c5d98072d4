//! Proves that every call of every public function is counted once, in the right place.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use kernel_tests::compare::{assert_functions, assert_functions_beyond};
use kernel_tests::daemon::{Recording, record, record_at, record_program};
use kernel_tests::victim;

/// The victim's account, the daemon's, nothing lost, and the parts adding up.
fn assert_exact(recording: &Recording) {
    let (truth, image) = recording.only();
    image.assert_complete();
    recording.document.assert_complete();
    assert_functions(truth, &image);
    image.assert_sums();
}

// COUNT-1, COUNT-2, COUNT-3: the victim calls every function in every way, including those that reach another
// public function inside and those that no heap can satisfy.
#[test]
fn every_public_function_is_counted_once_as_the_outermost() {
    assert_exact(&record("functions", &[]));
}

// COUNT-1: bucket by bucket.
#[test]
fn every_size_falls_into_its_bucket() {
    assert_exact(&record("sizes", &[]));
}

// COUNT-3: the arguments could succeed, so these are calls; the refusals are the kernel's.
#[test]
fn a_call_that_the_kernel_refuses_is_a_call_and_a_failed_mmap() {
    let recording = record("refused", &["5"]);
    assert_exact(&recording);
    let (truth, image) = recording.only();
    let refused = truth.fact("refused");
    assert!(image.number("/syscalls/mmap/failed") >= refused, "each refused request fails at least one mmap");
    assert!(image.number("/syscalls/brk/failed") >= refused, "each refused request fails at least one brk");
    assert_eq!(image.number("/crossings/calls"), 0, "a refused mapping is no crossing (CROSS-1)");
}

fn assert_threads(count: &str) {
    let arguments = [count, "2000"];
    let of_the_libc = victim::calls_of_the_libc("threads", &arguments);
    let recording = record("threads", &arguments);
    let (truth, image) = recording.only();
    image.assert_complete();
    assert_functions_beyond(truth, &of_the_libc, &image);
    image.assert_sums();
}

// COUNT-1 under contention: counters of several processors add up to what the threads did.
#[test]
fn one_thread_loses_no_call() {
    assert_threads("1");
}

#[test]
fn two_threads_lose_no_call() {
    assert_threads("2");
}

#[test]
fn four_threads_lose_no_call() {
    assert_threads("4");
}

#[test]
fn sixteen_threads_lose_no_call() {
    assert_threads("16");
}

// COUNT-1, LOSS-1: threads that find no place of their own to count in do so where their process's first one does.
#[test]
fn more_threads_than_there_are_places_for_lose_no_call() {
    // 300 processes whose threads would take some 10,000 of the 4,096 spare histograms.
    let recording = record("many_threads", &["300", "12"]);
    let calls: u64 = recording.ended.stdout.trim().parse().expect("a number of calls");
    recording.document.assert_complete();
    let mut of_all: BTreeMap<String, u64> = BTreeMap::new();
    for image in recording.document.images() {
        for (name, row) in image.functions() {
            *of_all.entry(name).or_default() += row.calls;
        }
    }
    let of = |name: &str| of_all.get(name).copied().unwrap_or(0);
    for name in ["realloc", "valloc", "posix_memalign"] {
        assert_eq!(of(name), calls, "{name} of {of_all:?}");
    }
    // One function of two names before glibc 2.38.
    assert_eq!(of("memalign") + of("aligned_alloc"), 2 * calls, "{of_all:?}");
}

// COUNT-1: stacks too big for the libc's cache are given back, which frees what they carried.
#[test]
fn the_calls_of_the_libc_for_its_own_threads_are_counted() {
    let arguments = ["4", "32"];
    let of_the_libc = victim::calls_of_the_libc("stacks_arenas", &arguments);
    let recording = record("stacks_arenas", &arguments);
    let (truth, image) = recording.only();
    assert_functions_beyond(truth, &of_the_libc, &image);
}

// COUNT-2: a handler's calls are outermost although the thread has others behind it.
#[test]
fn calls_in_a_signal_handler_are_counted() {
    let recording = record("signals", &["raise"]);
    assert_eq!(recording.only().0.fact("allocated_in_handler"), 1000);
    assert_exact(&recording);
}

// COUNT-1: signals arrive at any instruction, at a probe too.
#[test]
fn a_storm_of_signals_loses_no_call() {
    assert_exact(&record("signals", &["storm"]));
}

// COUNT-1, COUNT-2: a call that longjmp leaves behind is one call, and the next one is counted as usual.
#[test]
fn a_call_that_never_returns_is_one_call_and_spoils_no_other() {
    let recording = record("longjmp", &[]);
    assert_eq!(recording.only().0.fact("faults"), 150);
    assert_exact(&recording);
}

// COUNT-1: what was counted is there after any end, and the end is the command's own.
#[test]
fn a_process_that_exits_at_once_keeps_its_counts() {
    let recording = record_program(&victim::program("sudden_end"), &["exit"]);
    assert_eq!(recording.ended.code(), 7);
    assert_exact(&recording);
}

#[test]
fn a_process_killed_outright_keeps_its_counts() {
    let recording = record_program(&victim::program("sudden_end"), &["kill"]);
    assert_eq!(recording.ended.status.signal(), None, "the daemon itself is not killed");
    assert_eq!(recording.ended.code(), 128 + 9);
    assert_exact(&recording);
}

#[test]
fn a_process_that_aborts_keeps_its_counts() {
    let recording = record_program(&victim::program("sudden_end"), &["abort"]);
    assert_eq!(recording.ended.code(), 128 + 6);
    assert_exact(&recording);
}

// HONEST-1: what a depth does not probe is null, and no function claims a number.
#[test]
fn what_a_depth_does_not_probe_is_null() {
    let depths: [(&str, &[&str]); 4] = [
        ("syscall", &["call", "arena", "sysmalloc"]),
        ("sysmalloc", &["call", "arena"]),
        ("arena", &["call"]),
        ("call", &[]),
    ];
    for (depth, unmeasured) in depths {
        let recording = record_at(depth, "crossings_storm", &["50"]);
        let (truth, image) = recording.only();
        assert_eq!(image.text("/depth"), depth);
        for level in ["call", "arena", "sysmalloc"] {
            let null = image.is_null(&format!("/funnel/{level}")) || image.is_null(&format!("/funnel/{level}/calls"));
            assert_eq!(null, unmeasured.contains(&level), "funnel.{level} at depth {depth}: {}", image.0["funnel"]);
        }
        let functions = image.0["functions"].as_array().cloned().unwrap_or_default();
        let counted = functions.iter().any(|function| function["calls"].is_u64());
        assert_eq!(counted, depth == "call", "functions at depth {depth}: {functions:?}");
        // CROSS-1: by the system calls alone a crossing need not be known; where it is, it is exact.
        if depth != "syscall" || !(image.is_null("/crossings") || image.is_null("/crossings/calls")) {
            assert_eq!(image.number("/crossings/calls"), truth.crossings.calls, "crossings at depth {depth}");
        }
    }
}
