//! Proves what `serve` answers over HTTP.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::Serving;
use kernel_tests::document::{Document, Image};
use kernel_tests::process::{Running, run, within_patience};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use rustix::process::Signal;

const ROUNDS: u64 = 1000;

fn busy() -> Running {
    let mut busy = Running::start(&mut Command::new(victim::program("busy")));
    work(&mut busy, 1);
    busy
}

fn work(busy: &mut Running, steps: usize) {
    busy.write(&vec![b'x'; steps]);
    assert_eq!(busy.read(steps), vec![b'.'; steps]);
}

#[test]
fn a_ready_daemon_answers_every_documented_path() {
    let serving = Serving::start(&[]);
    for path in ["/healthz", "/readyz", "/v1/snapshot", "/v1/processes", "/v1/health", "/metrics", "/"] {
        assert_eq!(serving.get(path).status, 200, "{path}");
    }
    let document = Document::parse(&serving.get("/v1/snapshot").body);
    assert!(document.0["host"]["kernel"].is_string() && document.0["sequence"].is_u64());
    let ended = serving.stop(Signal::TERM);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
}

#[test]
fn an_unknown_process_is_a_documented_error() {
    let serving = Serving::start(&[]);
    // Above the largest pid that Linux gives out.
    let answer = serving.get("/v1/processes/4194305");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["code"], "process_not_found");
    assert!(answer.json()["error"]["message"].is_string());
}

#[test]
fn a_path_or_a_process_number_that_makes_no_sense_is_refused_in_json() {
    let serving = Serving::start(&[]);
    for (path, status) in [("/v1/nothing", 404), ("/v1/processes/abc", 400), ("/v1/snapshot?limit=minus", 400)] {
        let answer = serving.get(path);
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["error"]["code"].is_string(), "{path}: {}", answer.body);
    }
}

// COUNT-1: the attached process's calls, and the counts only grow.
#[test]
fn a_process_under_call_depth_is_counted_exactly() {
    let mut busy = busy();
    let pid = busy.pid();
    let serving = Serving::start(&["--depth", "call", "--pid", &pid.to_string()]);
    work(&mut busy, 3);
    serving.image_when("three steps", pid, |image| image.calls("malloc") >= 3 * ROUNDS);
    work(&mut busy, 2);
    let image = serving.image_when("five steps", pid, |image| image.calls("malloc") >= 5 * ROUNDS);
    assert_eq!(image.calls("malloc"), 5 * ROUNDS);
    assert_eq!(image.calls("free"), 10 * ROUNDS);
    image.assert_complete();
}

// IDENT-1, CROSS-1: a process that starts after the daemon appears with all its crossings.
#[test]
fn a_process_that_starts_later_appears() {
    let serving = Serving::start(&[]);
    let mut late = Running::start(Command::new(victim::program("dynamic_threshold")).arg("hold"));
    let truth = Truth::parse(&late.read_line());
    let image = serving.image_when("all crossings of the new process", late.pid(), |image| {
        !image.is_null("/crossings/calls") && image.number("/crossings/calls") >= truth.crossings.calls
    });
    assert_eq!(image.comm(), "dynamic_thresho");
    assert_eq!(image.number("/crossings/calls"), truth.crossings.calls);
    // HONEST-1: the default depth does not count calls.
    assert!(image.is_null("/funnel/call") || image.is_null("/funnel/call/calls"));
    // THRESH-1: the process is alive, so the threshold is the one in its memory.
    assert_eq!(image.number("/threshold/bytes"), truth.threshold.bytes);
}

// THRESH-1: what happened before the daemon started is still in the process's memory.
#[test]
fn the_threshold_of_an_older_process_is_read_from_its_memory() {
    let mut early = Running::start(Command::new(victim::program("dynamic_threshold")).arg("hold"));
    let truth = Truth::parse(&early.read_line());
    let pid = early.pid();
    let serving = Serving::start(&[]);
    let image = serving.image_when("the older process", pid, |image| {
        image.0.pointer("/threshold/bytes").is_some_and(serde_json::Value::is_u64)
    });
    assert_eq!(image.number("/threshold/bytes"), truth.threshold.bytes);
    assert_eq!(image.text("/threshold/mode"), "dynamic");
    assert_eq!(image.text("/threshold/source"), "memory", "nothing has happened in it since");
}

/// Starts a victim under the process number that another one had: the kernel gives out the number after the last.
fn busy_again(pid: u32) -> Running {
    let started = within_patience(|| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("the last number can be set");
        let again = busy();
        (again.pid() == pid).then_some(again)
    });
    started.unwrap_or_else(|| panic!("the number {pid} does not come again"))
}

// IDENT-1: a number used again is another process, with counts of its own.
#[test]
fn a_process_number_used_again_is_another_process() {
    let serving = Serving::start(&["--depth", "call"]);
    let mut first = busy();
    let pid = first.pid();
    work(&mut first, 4);
    let counted = |rounds: u64| move |image: &Image| image.calls("malloc") >= rounds * ROUNDS;
    let before = serving.image_when("five rounds of the first", pid, counted(5));
    assert!(first.end().status.success());
    let mut second = busy_again(pid);
    let after = serving.image_when("the round of the second", pid, |image| {
        image.0["start_time_ticks"] != before.0["start_time_ticks"] && counted(1)(image)
    });
    assert_eq!((before.calls("malloc"), after.calls("malloc")), (5 * ROUNDS, ROUNDS));
    let document = Document::parse(&serving.get("/v1/snapshot").body);
    let rows = document.0["processes"].as_array().expect("processes");
    let own: Vec<_> = rows.iter().filter(|row| row["pid"] == pid).map(|row| row["ended"].clone()).collect();
    assert_eq!(own, ["exited".into(), serde_json::Value::Null], "the first one stays for a while, apart");
    work(&mut second, 1);
}

// The list has everything but the histograms; one process is whole.
#[test]
fn the_list_of_processes_has_no_histograms() {
    let busy = busy();
    let pid = busy.pid();
    let serving = Serving::start(&[]);
    let whole = serving.image_when("the process", pid, |_| true);
    assert!(whole.0.pointer("/syscalls/mmap/sizes").is_some());
    let list = serving.get("/v1/processes").json();
    let row = list["processes"].as_array().expect("processes").iter().find(|row| row["pid"] == pid).cloned();
    let row = Image(row.expect("the process is in the list"));
    assert_eq!(row.comm(), "busy");
    assert!(row.0.pointer("/syscalls/mmap/sizes").is_none());
}

// LOSS-1, COST-1: health names every probe's verdict, what was lost and what the daemon costs.
#[test]
fn health_tells_verdicts_and_losses() {
    let health = Serving::start(&[]).get("/v1/health").json();
    let probes = health["probes"].as_array().expect("probes");
    assert!(!probes.is_empty() && probes.iter().all(|probe| probe["verdict"].is_string()), "{health}");
    assert!(health["losses"].is_array(), "{health}");
    let daemon = &health["daemon"];
    for figure in ["cpu_ms", "resident_bytes", "kernel_bytes", "collect_us"] {
        assert!(daemon[figure].is_u64(), "{figure}: {health}");
    }
    assert!(daemon["resident_bytes"].as_u64() > Some(1 << 20), "{health}");
}

// LOSS-1, BOUND-1: rows of ended processes are free again before they run out, however seldom a snapshot is asked for.
#[test]
fn more_processes_end_between_two_snapshots_than_there_are_rows_and_none_is_lost() {
    let serving = Serving::start(&["--interval", "60s"]);
    let before = serving.get("/v1/health").json()["sequence"].as_u64();
    // One more than there are, each an image before its exec, too.
    let ended = run(Command::new("sh").args(["-c", "i=0; while [ $i -le 4096 ]; do /bin/true; i=$((i+1)); done"]));
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let health = serving.get("/v1/health").json();
    assert!(health["sequence"].as_u64() > before, "{health}");
    let log = serving.stop(Signal::TERM).stderr;
    assert!(!log.contains("no free slot"), "{log}");
}
