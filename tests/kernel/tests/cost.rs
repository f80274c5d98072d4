//! What observing costs is told: prices measured at start, hits counted, their product in every answer.
#![cfg(feature = "real-kernel")]

use kernel_tests::daemon::{Serving, record_at, record_program};
use kernel_tests::victim;
use serde_json::Value;

// COST-1
#[test]
fn every_hit_of_a_recorded_program_is_in_its_cost() {
    let recording = record_program(&victim::program("sizes"), &["small"]);
    let (_, image) = recording.only();
    let cost = &image.0["cost"];
    let calls: u64 = image.functions().values().map(|row| row.calls).sum();
    let hits = cost["hits"]["call"].as_u64().expect("hits");
    // `free(NULL)` is no call and still a hit; the libc makes a few at the end of a process.
    assert!(hits >= calls && hits <= calls + 64, "{hits} hits, {calls} calls: {cost}");
    assert!(cost["hits"]["syscall"].as_u64() > Some(0), "{cost}");
    let parts: f64 =
        ["syscall", "sysmalloc", "arena", "call"].iter().map(|d| cost["ms_by_depth"][d].as_f64().expect("ms")).sum();
    let whole = cost["ms"].as_f64().expect("ms");
    assert!(whole > 0.0 && (whole - parts).abs() < 0.01, "{cost}");
    // A trap takes no less than 50 ns on any machine, and a counted call no more than 100 us.
    let each = cost["ms_by_depth"]["call"].as_f64().expect("ms") * 1e6 / hits as f64;
    assert!(each > 50.0 && each < 100_000.0, "{each} ns for a call: {cost}");
}

// COST-1: of the way from `sysmalloc` to `mmap`, and from `free` to `munmap`, one instruction carries a probe.
#[test]
fn a_mapped_chunk_takes_one_hit_in_its_life() {
    let recording = record_at("sysmalloc", "mapped_chunks", &["1", "400", "200000"]);
    let (_, image) = recording.only();
    let number = |path: &str| image.number(path);
    let hits = number("/cost/hits/sysmalloc");
    // Resizing and the heap have a probe each on the branch to their system call.
    let others = number("/syscalls/mremap/calls") + number("/syscalls/brk/calls");
    let entries = number("/funnel/sysmalloc/calls");
    assert!(number("/crossings/calls") > 300 && number("/syscalls/munmap/by_origin/chunk") > 200, "{:?}", image.0);
    assert!(hits >= entries && hits <= entries + others + 16, "{hits} hits, {entries} entries, {others} others");
}

// COST-1
#[test]
fn a_served_machine_knows_its_prices_and_the_table_of_emulated_instructions_holds() {
    let serving = Serving::start(&[]);
    let health = serving.get("/v1/health").json();
    let calibration = &health["calibration"];
    assert_eq!(calibration["not_measured"], Value::Null, "{calibration}");
    let price = |name: &str| calibration["hit_ns"][name].as_u64().expect("a price");
    assert!(price("blank") > 0 && price("call") > 0 && price("syscall") > 0, "{calibration}");
    // On a machine where stepping is as cheap, nothing is told, and nothing is wrong.
    assert!(matches!(calibration["table"].as_str(), Some("holds" | "untold")), "{calibration}");
    let metrics = serving.get("/metrics").body;
    assert!(metrics.contains("malloc_probe_hit_seconds{probe=\"call\"}"), "{metrics}");
}
