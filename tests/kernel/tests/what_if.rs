//! Proves that the advice comes true: what a report foretells of a setting, against a run with that setting.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::Attached;
use kernel_tests::document::Image;
use kernel_tests::process::Running;
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use serde_json::Value;

/// A victim's work, from its start signal to its rest: its own account and the daemon's.
fn observed(work: &str, tunables: &str) -> (Truth, Image) {
    let mut victim =
        Running::start(Command::new(victim::program("large_blocks")).arg(work).env("GLIBC_TUNABLES", tunables));
    assert_eq!(victim.read(1), b"!");
    let daemon = Attached::to(victim.pid());
    victim.write(b"g");
    let truth = Truth::parse(&victim.read_line());
    let (_, document) = daemon.interrupt();
    let image = document.image(victim.pid(), "large_blocks");
    image.assert_complete();
    assert_eq!(image.number("/heap/retained_bytes"), truth.fact("free_bytes"), "HEAP-1");
    victim.close_input();
    assert_eq!(victim.end().code(), 0);
    (truth, image)
}

/// The only estimate of an image.
fn estimate(image: &Image) -> Value {
    let all = image.0["what_if"].as_array().unwrap_or_else(|| panic!("what_if of {}", image.0));
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["estimated"], true);
    assert!(!all[0]["assumptions"].as_array().expect("assumptions").is_empty());
    all[0].clone()
}

fn kinds(image: &Image) -> Vec<String> {
    let findings = image.0["explanation"].as_array().expect("an explanation");
    findings.iter().map(|finding| finding["kind"].as_str().expect("a kind").to_owned()).collect()
}

/// EST-1: a fifth off at most, and within its own bounds.
fn assert_came_true(what: &str, foretold: &Value, before: u64, after: u64) {
    let came = i64::try_from(after).expect("small") - i64::try_from(before).expect("small");
    let [low, about, high] = ["low", "about", "high"].map(|name| foretold[name].as_i64().expect("a number"));
    assert!(
        (about - came).abs() <= came.abs() / 5,
        "{what}: about {about} was foretold, {came} came ({before} to {after})"
    );
    assert!(low <= about && about <= high, "{what}: {foretold}");
    println!("{what}: {about} foretold, {came} came");
}

// EST-1: blocks that the raised threshold keeps in the heap are mapped under the advised setting, and given back.
#[test]
fn a_process_that_retains_gives_back_under_the_advised_setting() {
    let (before, image) = observed("retain", "");
    let kinds = kinds(&image);
    assert!(kinds.contains(&"threshold_raised".to_owned()) && kinds.contains(&"retained".to_owned()), "{kinds:?}");
    let foretold = estimate(&image);
    let setting = foretold["setting"].as_str().expect("a setting");
    assert_eq!(setting, "glibc.malloc.mmap_threshold=131072");
    let (after, image) = observed("retain", setting);
    assert_eq!(foretold["mmap_calls"]["low"], after.crossings.calls, "{foretold}");
    assert_eq!(foretold["mmap_calls"]["high"], after.crossings.calls, "{foretold}");
    assert_eq!(image.number("/crossings/calls"), after.crossings.calls);
    let retained = |truth: &Truth| truth.fact("free_bytes");
    assert_came_true("retained", &foretold["retained_bytes_change"], retained(&before), retained(&after));
    let resident = |truth: &Truth| truth.fact("resident_bytes");
    assert_came_true("resident", &foretold["resident_bytes_change"], resident(&before), resident(&after));
    assert_came_true("faults", &foretold["page_faults_change"], before.fact("faults"), after.fact("faults"));
}

// EST-1: blocks that are mapped and unmapped over and over stay in the heap under the advised setting.
#[test]
fn a_process_that_churns_maps_nothing_under_the_advised_setting() {
    // As it is pinned for many a service to keep its memory small.
    let (before, image) = observed("churn", "glibc.malloc.mmap_threshold=131072");
    assert_eq!(kinds(&image), ["churn", "threshold_pinned"]);
    let foretold = estimate(&image);
    assert_eq!(foretold["mmap_calls_now"], before.crossings.calls);
    let setting = foretold["setting"].as_str().expect("a setting");
    let (after, _) = observed("churn", setting);
    assert_eq!(foretold["mmap_calls"]["low"], after.crossings.calls, "{foretold}");
    assert_eq!(foretold["mmap_calls"]["high"], after.crossings.calls, "{foretold}");
    assert_came_true("faults", &foretold["page_faults_change"], before.fact("faults"), after.fact("faults"));
    let free = |truth: &Truth| truth.fact("free_bytes");
    assert_came_true("retained", &foretold["retained_bytes_change"], free(&before), free(&after));
}
