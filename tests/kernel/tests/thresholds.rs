//! Proves every way to move the mmap threshold, and every way to fail to, on each libc of the archives.
#![cfg(feature = "real-kernel")]

use kernel_tests::compare::{assert_crossings, assert_threshold};
use kernel_tests::daemon::{Attached, Serving};
use kernel_tests::document::Image;
use kernel_tests::libcs::{self, Libc};
use kernel_tests::process::{Running, run};
use kernel_tests::truth::Truth;
use serde_json::Value;

/// The threshold that glibc begins with.
const AT_FIRST: u64 = 131_072;

/// One run of a victim: what the environment says, and its arguments.
type Case = (&'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    ("", &["series"]),
    ("", &["mallopt", "mmap_threshold", "300000"]),
    ("", &["mallopt", "trim_threshold", "500000"]),
    ("", &["mallopt", "top_pad", "65536"]),
    ("", &["mallopt", "mmap_max", "3"]),
    ("MALLOC_MMAP_THRESHOLD_=300000", &["outside", "mmap_threshold", "300000"]),
    ("MALLOC_TRIM_THRESHOLD_=500000", &["outside", "trim_threshold", "500000"]),
    ("MALLOC_TOP_PAD_=65536", &["outside", "top_pad", "65536"]),
    ("MALLOC_MMAP_MAX_=3", &["outside", "mmap_max", "3"]),
    ("GLIBC_TUNABLES=glibc.malloc.mmap_threshold=300000", &["outside", "mmap_threshold", "300000"]),
    ("GLIBC_TUNABLES=glibc.malloc.trim_threshold=500000", &["outside", "trim_threshold", "500000"]),
    ("GLIBC_TUNABLES=glibc.malloc.top_pad=65536", &["outside", "top_pad", "65536"]),
    ("GLIBC_TUNABLES=glibc.malloc.mmap_max=3", &["outside", "mmap_max", "3"]),
    // Tunables that have nothing to do with it leave the threshold dynamic.
    ("GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0", &["series"]),
    ("MALLOC_ARENA_MAX=1", &["threads", "4"]),
    ("", &["refused_value", "67108864"]),
    ("", &["most", "4"]),
    ("", &["wall"]),
    ("", &["realloc"]),
    ("", &["aligned"]),
    ("", &["threads", "6"]),
    ("", &["beyond"]),
    ("", &["fork"]),
];

/// Whether this libc can do it: up to 2.31 no threshold above 32 MiB can be set.
fn possible(libc: &Libc, arguments: &[&str]) -> bool {
    arguments[0] != "beyond" || libc.minor() > 31
}

/// What the victim says of its raises, in order.
fn told_by_the_victim(truth: &Truth) -> Vec<u64> {
    (1..=truth.threshold.raises).map(|n| truth.fact(&format!("raise_{n}"))).collect()
}

/// The raises of that process, the oldest first.
fn raises(serving: &Serving, pid: u32) -> Vec<Value> {
    let answer = serving.get(&format!("/v1/raises?pid={pid}")).json();
    answer["raises"].as_array().expect("raises").iter().rev().cloned().collect()
}

/// THRESH-1: each raise begins where the one before ended, is of the size of the chunk that was freed, and is the
/// victim's.
fn assert_raises(what: &str, truth: &Truth, raises: &[Value], mut at: u64) {
    let seen: Vec<u64> = raises.iter().map(|raise| raise["to_bytes"].as_u64().expect("a size")).collect();
    assert_eq!(seen, told_by_the_victim(truth), "{what}: raises");
    for raise in raises {
        assert_eq!(raise["from_bytes"], at, "{what}: {raise}");
        at = raise["to_bytes"].as_u64().expect("a size");
        assert_eq!(raise["chunk_bytes"], at, "{what}: glibc sets it to the size of the chunk it frees: {raise}");
    }
}

fn assert_image(what: &str, truth: &Truth, image: &Image) {
    println!("{what}: {} raises to {}", truth.threshold.raises, truth.threshold.bytes);
    assert!(!image.is_null("/crossings"), "{what}: {}", image.0);
    image.assert_complete();
    assert_crossings(truth, image);
    assert_threshold(truth, image);
    assert_eq!(image.number("/threshold/trim_bytes"), truth.fact("trim"), "{what}: trim_bytes");
}

// THRESH-1 CROSS-1: value, mode, raises and crossings equal the victim's account in every way there is.
#[test]
fn every_way_to_move_the_threshold_is_told_as_it_was() {
    let libcs = libcs::all();
    // They map each libc while the daemon starts, so that what follows is counted from its first instruction.
    let holders: Vec<Running> =
        libcs.iter().map(|libc| Running::start(&mut libc.command("thresholds", &["steps"]))).collect();
    let serving = Serving::start(&["--interval", "100ms"]);
    for libc in &libcs {
        for (environment, arguments) in CASES.iter().filter(|case| possible(libc, case.1)) {
            let mut command = libc.command("thresholds", arguments);
            if let Some((name, value)) = environment.split_once('=') {
                command.env(name, value);
            }
            let ended = run(&mut command);
            let what = format!("{} {environment} {}", libc.suite, arguments.join(" "));
            assert_eq!(ended.code(), 0, "{what}: {}", ended.stderr);
            let truths = Truth::parse_all(&ended.stdout);
            assert_eq!(truths.len(), if arguments[0] == "fork" { 2 } else { 1 }, "{what}: {ended:?}");
            for (nth, truth) in truths.iter().enumerate() {
                let image = serving.image_when("its end", truth.pid, |image| !image.is_null("/ended"));
                assert_eq!(image.0["from_start"], true, "{what}");
                assert_image(&what, truth, &image);
                // A forked child goes on from where its parent was: its account comes before its parent's.
                let parent = truths.last().filter(|_| nth + 1 < truths.len());
                let at = parent.map_or(AT_FIRST, |parent| told_by_the_victim(parent)[0]);
                assert_raises(&what, truth, &raises(&serving, truth.pid), at);
                let fallbacks = image.number("/crossings/fallback_calls");
                match arguments[0] {
                    "wall" => assert!(fallbacks > 0 && image.number("/syscalls/brk/failed") > 0, "{what}"),
                    _ => assert_eq!(fallbacks, truth.fact("below"), "{what}: mapped below the threshold"),
                }
            }
        }
    }
    drop(holders);
}

// CROSS-1: regions that stand in for a refused heap are no crossings.
#[test]
fn a_region_for_a_refused_break_is_a_fallback_on_every_libc() {
    let libcs = libcs::all();
    let holders: Vec<Running> =
        libcs.iter().map(|libc| Running::start(&mut libc.command("thresholds", &["steps"]))).collect();
    let serving = Serving::start(&["--interval", "100ms"]);
    for libc in &libcs {
        let ended = run(&mut libc.command("fallback", &["1000"]));
        let truth = &Truth::parse_all(&ended.stdout)[0];
        let image = serving.image_when("its end", truth.pid, |image| !image.is_null("/ended"));
        assert_crossings(truth, &image);
        assert_eq!(image.number("/crossings/fallback_calls"), truth.fact("fallback"), "{}", libc.suite);
    }
    drop(holders);
}

/// A victim that does one step after the other.
struct Stepping {
    victim: Running,
    truth: Truth,
}

impl Stepping {
    fn start(libc: &Libc) -> Self {
        let mut victim = Running::start(&mut libc.command("thresholds", &["steps"]));
        let truth = Truth::parse(&victim.read_line());
        Stepping { victim, truth }
    }

    /// Does these steps; its account after them.
    fn step(&mut self, steps: &str) -> &Truth {
        for step in steps.bytes() {
            self.victim.write(&[step]);
            self.truth = Truth::parse(&self.victim.read_line());
        }
        &self.truth
    }
}

// THRESH-1: what was raised before is read from the memory, what is raised from then on is told; the free of a chunk
// that was mapped before has its raise and no stack that mapped it.
#[test]
fn a_threshold_that_was_raised_before_the_daemon_came_is_the_one_in_memory() {
    for long_after in [false, true] {
        let libcs = libcs::all();
        let mut victims: Vec<Stepping> = libcs.iter().map(Stepping::start).collect();
        for victim in &mut victims {
            victim.step(if long_after { "rrrk" } else { "k" });
        }
        let serving = Serving::start(&["--interval", "100ms"]);
        for (libc, victim) in libcs.iter().zip(&mut victims) {
            let what = format!("{}, {}", libc.suite, if long_after { "long after" } else { "before" });
            let at = victim.truth.threshold.bytes;
            let pid = victim.truth.pid;
            let is_there = |image: &Image| image.0["threshold"]["bytes"].is_u64();
            let image = serving.image_when("its threshold", pid, is_there);
            assert_eq!(image.number("/threshold/bytes"), at, "{what}");
            assert_eq!(image.text("/threshold/mode"), "dynamic", "{what}");
            assert_eq!(image.text("/threshold/source"), "memory", "{what}");
            let held = |image: &Image, chunks: u64| image.0["threshold"]["mmapped_chunks"] == chunks;
            drop(serving.image_when("the chunk that it holds", pid, |image| held(image, 1)));
            victim.step("z");
            let truth = victim.step("frk").clone();
            let image = serving.image_when("its raises", pid, |image| {
                is_there(image) && image.0["threshold"]["raises"] == truth.threshold.raises && held(image, 1)
            });
            assert_image(&what, &truth, &image);
            assert_eq!(image.number("/crossings/birth_unknown"), 1, "{what}: the chunk from before");
            let raises = raises(&serving, pid);
            assert_raises(&what, &truth, &raises, at);
            assert!(raises[0]["mapped_by"].is_null(), "{what}: nobody saw it mapped: {}", raises[0]);
        }
    }
}

// THRESH-1: a recording that begins between two raises tells the second one alone.
#[test]
fn a_recording_that_begins_between_two_raises_tells_the_second() {
    for libc in libcs::all() {
        let mut victim = Stepping::start(&libc);
        let at = victim.step("rr").threshold.bytes;
        let recording = Attached::to(victim.truth.pid);
        victim.step("z");
        let truth = victim.step("rrk").clone();
        let (ended, document) = recording.interrupt();
        let image = document.images().into_iter().find(|image| image.pid() == truth.pid);
        let image = image.unwrap_or_else(|| panic!("no image of {}: {ended:?}", truth.pid));
        assert_image(libc.suite, &truth, &image);
        let raises: Vec<Value> = document.0["raises"].as_array().expect("raises").clone();
        assert_raises(libc.suite, &truth, &raises, at);
        let named = |raise: &Value| raise["freed_by"]["frames"].to_string().contains("\"drop\"");
        assert!(raises.iter().all(named), "{}: {raises:?}", libc.suite);
    }
}
