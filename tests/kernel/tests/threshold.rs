//! Proves who moved the mmap threshold, from what to what, and on which stack.
#![cfg(feature = "real-kernel")]

use kernel_tests::daemon::record_at;
use kernel_tests::document::Image;
use serde_json::Value;

fn functions(stack: &Value) -> Vec<String> {
    let frames = stack["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().filter_map(|frame| frame["function"].as_str().map(str::to_owned)).collect()
}

// THRESH-1: each raise of the dynamic threshold, in order, with the thread's stack; the last one is where it stands.
#[test]
fn every_raise_is_told_with_its_cause() {
    let recording = record_at("sysmalloc", "dynamic_threshold", &[]);
    let (truth, image) = recording.only();
    let raises = recording.document.0["raises"].as_array().expect("raises");
    let own: Vec<&Value> = raises.iter().filter(|raise| raise["pid"] == truth.pid).collect();
    assert_eq!(own.len() as u64, truth.threshold.raises);
    let mut at = 131_072;
    for raise in &own {
        assert_eq!(raise["from_bytes"], at, "the chain of raises has no gap: {raise}");
        at = raise["to_bytes"].as_u64().expect("a size");
        assert_eq!(raise["chunk_bytes"], at, "glibc sets it to the size of the chunk it frees: {raise}");
        assert!(raise["freed_by"]["cut"].is_null(), "{raise}");
        let names = functions(&raise["freed_by"]);
        assert!(names.contains(&"main".to_owned()), "{names:?}");
        assert!(functions(&raise["mapped_by"]).contains(&"main".to_owned()), "{raise}");
    }
    assert_eq!(at, truth.threshold.bytes);
    assert_eq!(Image(image.0.clone()).number("/threshold/raises"), truth.threshold.raises);
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
    assert!(own.iter().all(|sample| functions(&sample["stack"]).contains(&"main".to_owned())), "{last}");
}
