//! Proves who moved the mmap threshold, from what to what, and on which stack.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::{Serving, record_at};
use kernel_tests::process::{Running, until};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use serde_json::Value;

fn functions(stack: &Value) -> Vec<String> {
    let frames = stack["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().filter_map(|frame| frame["function"].as_str().map(str::to_owned)).collect()
}

// THRESH-1: each raise of the dynamic threshold, in order, with the thread's stack; the last one is where it stands.
#[test]
fn every_raise_is_told_with_its_cause() {
    let serving = Serving::start(&[]);
    let mut victim = Running::start(Command::new(victim::program("dynamic_threshold")).arg("hold"));
    let truth = Truth::parse(&victim.read_line());
    let path = format!("/v1/raises?pid={}", truth.pid);
    let named = |raises: &Vec<Value>| {
        let whole = raises.iter().all(|raise| !raise["freed_by"].is_null() && !raise["mapped_by"].is_null());
        raises.len() as u64 == truth.threshold.raises && whole
    };
    let mut raises = until("every raise is there and named", || {
        Some(serving.get(&path).json()["raises"].as_array().cloned().unwrap_or_default()).filter(named)
    });
    // The answer begins with the newest.
    raises.reverse();
    let mut at = 131_072;
    for raise in &raises {
        assert_eq!(raise["from_bytes"], at, "the chain of raises has no gap: {raise}");
        at = raise["to_bytes"].as_u64().expect("a size");
        assert_eq!(raise["chunk_bytes"], at, "glibc sets it to the size of the chunk it frees: {raise}");
        assert!(raise["freed_by"]["cut"].is_null(), "{raise}");
        let names = functions(&raise["freed_by"]);
        assert!(names.contains(&"main".to_owned()), "{names:?}");
        assert!(functions(&raise["mapped_by"]).contains(&"main".to_owned()), "{raise}");
    }
    assert_eq!(at, truth.threshold.bytes);
    let image = serving.image_when("its threshold", truth.pid, |image| !image.is_null("/threshold/raises"));
    assert_eq!(image.number("/threshold/raises"), truth.threshold.raises);
}

// CROSS-1: the sampled crossings stand for all of them.
#[test]
fn the_weights_of_the_crossings_stacks_add_up() {
    let recording = record_at("sysmalloc", "crossings_storm", &["500", "200000"]);
    let (truth, _) = recording.only();
    let samples = recording.document.0["crossing_samples"].as_array().expect("samples");
    let own: Vec<&Value> = samples.iter().filter(|sample| sample["pid"] == truth.pid).collect();
    let last = own.last().expect("some");
    let weights: u64 = own.iter().filter_map(|sample| sample["weight"].as_u64()).sum();
    assert_eq!(last["nth"].as_u64(), Some(weights));
    assert!(weights <= truth.crossings.calls, "{weights} of {}", truth.crossings.calls);
    // The program may be over before its last stacks are named; then they say so.
    let named = |sample: &&Value| functions(&sample["stack"]).contains(&"main".to_owned());
    assert!(own.iter().all(|sample| named(sample) || !sample["stack"]["cut"].is_null()), "{last}");
}
