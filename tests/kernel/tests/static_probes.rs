//! Proves what glibc's static probes tell, where a libc has them.
#![cfg(feature = "real-kernel")]

use kernel_tests::compare::{assert_crossings, assert_functions, assert_threshold};
use kernel_tests::libcs::{self, Libc, only};

/// Debian builds them in from glibc 2.43 on.
fn with_static_probes() -> Vec<Libc> {
    let all: Vec<Libc> = libcs::all().into_iter().filter(|libc| libc.minor() >= 43).collect();
    assert!(!all.is_empty(), "no libc here has static probes");
    all
}

// THRESH-1: the probe at the raise itself and the looks at mp_ around it count one raise, not two.
#[test]
fn a_raise_that_is_told_counts_once_and_has_its_cause() {
    for libc in with_static_probes() {
        let recording = libc.record("call", "dynamic_threshold", &[], |_| {});
        let (truth, image) = only(&recording);
        image.assert_complete();
        assert_threshold(truth, &image);
        assert_crossings(truth, &image);
        assert_functions(truth, &image);
        let raises = recording.document.0["raises"].as_array().expect("raises");
        assert_eq!(raises.len() as u64, truth.threshold.raises, "{}", libc.suite);
        let mut at = 131_072;
        for raise in raises {
            assert_eq!(raise["from_bytes"], at, "{}: the chain of raises has no gap: {raise}", libc.suite);
            at = raise["to_bytes"].as_u64().expect("a size");
            assert_eq!(raise["chunk_bytes"], at, "{}: {raise}", libc.suite);
        }
        assert_eq!(at, truth.threshold.bytes);
    }
}

#[test]
fn arenas_that_are_made_and_shared_are_counted() {
    for libc in with_static_probes() {
        let recording = libc.record("sysmalloc", "arenas", &["8", "4"], |_| {});
        let (truth, image) = only(&recording);
        image.assert_complete();
        let told = |event: &str| image.number(&format!("/heap_events/{event}"));
        assert_eq!(told("arena_made"), truth.fact("arenas_made"), "{}", libc.suite);
        assert_eq!(told("arena_reused"), truth.fact("arenas_reused"), "{}", libc.suite);
        assert!(told("heap_made") >= told("arena_made"), "an arena begins with a heap");
        assert!(told("heap_grown") > 0, "2,000 bytes 600 times are more than a heap begins with");
        assert_eq!(told("call_retried"), 0, "no request failed");
    }
}

#[test]
fn the_main_heaps_growth_and_trim_are_told_as_often_as_they_are_seen() {
    for libc in with_static_probes() {
        let recording = libc.record("sysmalloc", "trim", &["32"], |_| {});
        let (truth, image) = only(&recording);
        for (event, fact, origin) in [("sbrk_more", "growths", "growth"), ("sbrk_less", "trims", "trim")] {
            assert_eq!(image.number(&format!("/heap_events/{event}")), truth.fact(fact), "{}: {event}", libc.suite);
            assert_eq!(image.number(&format!("/syscalls/brk/by_origin/{origin}")), truth.fact(fact), "{}", libc.suite);
        }
    }
}

// HONEST-1
#[test]
fn a_libc_without_static_probes_has_null_for_what_they_tell() {
    let libc = libcs::of("bookworm").expect("a libc");
    let recording = libc.record("sysmalloc", "trim", &["4"], |_| {});
    assert!(only(&recording).1.is_null("/heap_events"));
}
