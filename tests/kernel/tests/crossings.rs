//! Proves what is told of mapped chunks: how many, how long they lived, who asked for them.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::compare::assert_crossings;
use kernel_tests::daemon::{Attached, Serving, record_at};
use kernel_tests::document::Image;
use kernel_tests::process::{Running, until};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use serde_json::Value;

const SECOND: u64 = 1_000_000_000;

fn buckets(value: &Value) -> Vec<(u64, u64)> {
    let buckets = value.as_array().unwrap_or_else(|| panic!("{value} is no histogram"));
    buckets.iter().map(|b| (b["lo"].as_u64().expect("lo"), b["calls"].as_u64().expect("calls"))).collect()
}

fn assert_lives(truth: &Truth, image: &Image) {
    let fact = |name: &str| truth.facts[name];
    let lives = buckets(&image.0["crossings"]["lifetime_ns"]);
    let (ended, short): (u64, u64) = (
        lives.iter().map(|(_, calls)| calls).sum(),
        lives.iter().filter(|(lo, _)| *lo < SECOND / 2).map(|(_, calls)| calls).sum(),
    );
    assert_eq!(ended, fact("ended"), "each chunk that was freed: {truth:?}");
    assert_eq!(image.number("/crossings/churned/calls"), fact("churned"));
    assert_eq!(image.number("/crossings/churned/bytes"), fact("churned_bytes"));
    assert!(short <= fact("churned") && short > 0, "{lives:?}");
    assert_eq!(image.number("/crossings/calls") - ended, fact("left"));
    assert_eq!(image.number("/crossings/birth_unknown"), fact("unknown"));
}

// CHUNK-1 CROSS-1: mapped, resized, freed by another thread, kept, left: call for call.
#[test]
fn every_mapped_chunk_is_followed_to_its_end() {
    for arguments in [["1", "400", "200000"], ["4", "300", "300000"]] {
        let recording = record_at("sysmalloc", "mapped_chunks", &arguments);
        recording.document.assert_complete();
        let (truth, image) = recording.only();
        assert_crossings(truth, &image);
        assert_lives(truth, &image);
        let spent = ["mmap_ns", "munmap_ns", "mremap_ns"].map(|name| image.number(&format!("/crossings/{name}")));
        assert!(spent.iter().all(|ns| *ns > 0), "{spent:?}");
        let of_all = |call: &str| -> u64 {
            buckets(&image.0["syscalls"][call]["latency_ns"]).iter().map(|(lo, calls)| lo * calls).sum()
        };
        // A bucket's upper bound is at most a quarter above its lower one.
        assert!(spent[0] <= of_all("mmap") * 5 / 4 + 1, "{spent:?} of {}", of_all("mmap"));
    }
}

// CHUNK-1: what a process had mapped before it was observed is unmapped without a birth.
#[test]
fn chunks_from_before_the_observation_have_no_lifetime() {
    let mut victim =
        Running::start(Command::new(victim::program("mapped_chunks")).args(["2", "80", "200000", "before"]));
    let pid = Truth::parse(&victim.read_line()).pid;
    let attached = Attached::to(pid);
    victim.write(b"x");
    let truth = Truth::parse(&victim.read_line());
    let (_, document) = attached.wait();
    let image = document.image(truth.pid, &truth.victim);
    assert!(truth.facts["unknown"] > 0, "{truth:?}");
    assert_crossings(&truth, &image);
    assert_lives(&truth, &image);
}

// CHUNK-1: a server tells it while the process runs.
#[test]
fn a_server_tells_the_lives_of_a_running_programs_chunks() {
    let serving = Serving::start(&[]);
    let mut victim = Running::start(Command::new(victim::program("mapped_chunks")).args(["2", "80", "200000", "hold"]));
    let truth = Truth::parse(&victim.read_line());
    let ended = |image: &Image| -> u64 {
        let lives = &image.0["crossings"]["lifetime_ns"];
        if lives.is_null() { 0 } else { buckets(lives).iter().map(|(_, calls)| calls).sum() }
    };
    let image = serving.image_when("its chunks", truth.pid, |image| ended(image) == truth.facts["ended"]);
    assert_lives(&truth, &image);
}

// FAULT-1: four chunks at a time are watched to their end, so that every page fault in them is counted: those of four
// threads as the kernel counted them for each thread.
#[test]
fn page_faults_of_chunks_are_those_that_the_threads_took() {
    for threads in ["1", "4"] {
        let recording = record_at("sysmalloc", "mapped_chunks", &[threads, "400", "300000", "once"]);
        let (truth, image) = recording.only();
        assert_crossings(truth, &image);
        let faults = &image.0["crossings"]["faults"];
        assert_eq!(faults["watched"]["calls"], truth.crossings.calls, "{faults}");
        assert_eq!(faults["taken"], truth.facts["faults"], "{faults}");
        assert_eq!((&faults["total"], &faults["estimated"]), (&faults["taken"], &Value::Bool(false)), "{faults}");
        assert_eq!(faults["churned"], truth.facts["churned"], "{faults}");
        let chunks: u64 = buckets(&faults["per_chunk"]).iter().map(|(_, calls)| calls).sum();
        assert_eq!(chunks, truth.crossings.calls);
    }
}

// FAULT-1 HONEST-1: where more chunks are mapped than are watched, the total is an estimate and says so.
#[test]
fn page_faults_of_many_chunks_at_a_time_are_an_estimate() {
    let recording = record_at("sysmalloc", "mapped_chunks", &["4", "300", "300000"]);
    let (truth, image) = recording.only();
    let faults = &image.0["crossings"]["faults"];
    let number = |name: &str| faults[name].as_u64().unwrap_or_else(|| panic!("{name} in {faults}"));
    let watched = faults["watched"]["calls"].as_u64().expect("a number");
    assert!(watched >= 4 && watched < truth.crossings.calls, "{faults}");
    assert_eq!(faults["estimated"], true);
    assert!(number("taken") <= truth.facts["faults"] && number("total") >= number("taken"), "{faults} {truth:?}");
    let coverage = faults["coverage"].as_f64().expect("a share");
    assert!((coverage - watched as f64 / truth.crossings.calls as f64).abs() < 1e-5, "{faults}");
}

// HONEST-1: a server that was not asked to count page faults has none, and zero is no answer.
#[test]
fn page_faults_that_were_not_asked_for_are_null() {
    for (arguments, counted) in [(&[][..], false), (&["--faults"][..], true)] {
        let serving = Serving::start(arguments);
        let mut victim =
            Running::start(Command::new(victim::program("mapped_chunks")).args(["1", "40", "200000", "hold"]));
        let truth = Truth::parse(&victim.read_line());
        let image = serving.image_when("its chunks", truth.pid, |image| {
            !image.is_null("/crossings") && image.number("/crossings/calls") == truth.crossings.calls
        });
        assert_eq!(image.is_null("/crossings/faults"), !counted, "{}", image.0["crossings"]);
    }
}

// CROSS-2: a process that crosses without end leaves the others their first stacks.
#[test]
fn a_storm_of_crossings_does_not_hide_how_others_cross() {
    let serving = Serving::start(&[]);
    let storm = Running::start(Command::new(victim::program("crossings_storm")).args(["100000000", "200000"]));
    // Twenty times what it may have sent at once.
    serving.image_when("its crossings", storm.pid(), |image| {
        !image.is_null("/crossings") && image.number("/crossings/calls") > 2000
    });
    for _ in 0..3 {
        let mut other =
            Running::start(Command::new(victim::program("mapped_chunks")).args(["1", "10", "200000", "hold"]));
        let truth = Truth::parse(&other.read_line());
        let path = format!("/v1/crossings?pid={}", truth.pid);
        let stacks = until("stacks of the other", || {
            let answer = serving.get(&path).json();
            let named = answer["crossings"].as_array()?.iter().filter(|one| !one["stack"].is_null()).cloned();
            Some(named.collect::<Vec<_>>()).filter(|named| !named.is_empty())
        });
        assert!(stacks[0]["stack"].to_string().contains("\"work\""), "{}", stacks[0]);
        other.end();
    }
}

// CROSS-2: shares of stacks and the rest are all crossings, over HTTP, in a recording, and in the metrics.
#[test]
fn crossings_by_stack_add_up_to_the_crossings() {
    let serving = Serving::start(&[]);
    let mut victim =
        Running::start(Command::new(victim::program("mapped_chunks")).args(["2", "400", "200000", "hold"]));
    let truth = Truth::parse(&victim.read_line());
    let path = format!("/v1/crossings?by=stack&pid={}", truth.pid);
    let told = until("its crossings by stack", || {
        let answer = serving.get(&path).json();
        let told = answer["processes"].as_array().and_then(|all| all.first()).cloned()?;
        let named = told["stacks"].as_array().is_some_and(|stacks| !stacks.is_empty());
        (named && told["calls"] == truth.crossings.calls).then_some(told)
    });
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no number in {told}"));
    let stacks = told["stacks"].as_array().expect("stacks");
    let shares: u64 = stacks.iter().map(|share| number(&share["calls"])).sum();
    assert_eq!(shares + number(&told["other"]["calls"]), truth.crossings.calls, "{told}");
    assert_eq!(told["estimated"], number(&told["samples"]) < truth.crossings.calls);
    let by_main = |share: &&Value| share["stack"]["frames"].to_string().contains("\"work\"");
    assert!(stacks.iter().filter(by_main).count() >= 2, "malloc and memalign are two ways: {told}");
    // Other programs of that name may run at the same time: the metrics have their sum.
    until("the metrics of what ended last", || {
        let metrics = serving.get("/metrics").body;
        let tells = |(name, least): (&str, &str)| {
            let start = format!("malloc_mapped_{name}{{comm=\"mapped_chunks\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok());
            value >= Some(truth.facts[least])
        };
        [("chunks_churned_total", "churned"), ("chunk_lifetime_seconds_count", "ended")]
            .into_iter()
            .all(tells)
            .then_some(())
    });
}
