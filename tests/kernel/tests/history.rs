//! Proves what the history on disk tells after the fact.
#![cfg(feature = "real-kernel")]

use std::path::Path;
use std::process::Command;

use kernel_tests::daemon::{Serving, run_daemon};
use kernel_tests::process::{Ended, Running, run, within_patience};
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const ROUNDS: u64 = 1000;

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().expect("a plain path")
}

fn recording(serving: &Serving) -> bool {
    serving.get("/v1/health").json()["history"]["state"] == "recording"
}

fn why_off(serving: &Serving) -> Option<String> {
    let health = serving.get("/v1/health").json();
    (health["history"]["state"] == "off").then(|| health["history"]["why"].as_str().expect("a reason").to_owned())
}

fn eventually<T>(what: &str, f: impl FnMut() -> Option<T>) -> T {
    within_patience(f).unwrap_or_else(|| panic!("it never came: {what}"))
}

fn report(folder: &TempDir, arguments: &[&str]) -> Value {
    let mut all = vec!["report", "--history", path(folder), "--from", "-1h", "--format", "json"];
    all.extend(arguments);
    let ended = run_daemon(&all);
    assert!(ended.code() <= 1, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

/// When the second step begins, which begins a time without gaps.
fn first_step(serving: &Serving) -> String {
    let second = eventually("a second step", || {
        let course = serving.get("/v1/history").json();
        course["points"].as_array().and_then(|points| points.get(1).cloned())
    });
    second["from_unix_ms"].as_u64().expect("a time").to_string()
}

// HIST-1
#[test]
fn what_a_process_did_is_told_after_it_and_the_daemon_are_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut busy = Running::start(&mut Command::new(victim::program("busy")));
    let pid = busy.pid().to_string();
    let arguments = ["--depth", "call", "--pid", &pid, "--history", path(&folder)];
    let serving = Serving::start(&arguments);
    eventually("the store is open", || recording(&serving).then_some(()));
    busy.write(b"xxx");
    assert_eq!(busy.read(3), b"...");
    serving.image_when("three steps", busy.pid(), |image| image.calls("malloc") >= 3 * ROUNDS);
    // A first step is on disk and can be asked for while more come.
    eventually("a step is written", || {
        let answer = serving.get(&format!("/v1/history?pid={pid}"));
        (answer.status == 200 && answer.json()["points"].as_array().is_some_and(|points| !points.is_empty()))
            .then_some(())
    });
    assert_eq!(serving.get("/v1/history?from=tomorrow").status, 400);
    // It may be read from the folder while the daemon writes it.
    assert_eq!(report(&folder, &["--pid", &pid])["processes"][0]["pid"], busy.pid());
    // Whoever is asked, the status tells whether something is missing; the time before the first step is not.
    let url = format!("http://{}", serving.address);
    for (from, status) in [("-1h".to_owned(), 0), (first_step(&serving), 0)] {
        let places = [["--url", &url], ["--history", path(&folder)]];
        let asked = places.map(|[option, place]| run_daemon(["report", "--from", &from, "--pid", &pid, option, place]));
        assert_eq!(asked.each_ref().map(Ended::code), [status; 2], "from {from}: {asked:?}");
    }
    let ended = serving.stop(Signal::TERM);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    drop(busy);
    let told = report(&folder, &["--pid", &pid]);
    let process = &told["processes"][0];
    assert_eq!((&process["comm"], told["processes"].as_array().map(Vec::len)), (&Value::from("busy"), Some(1)));
    assert_eq!(process["delta"]["calls"], 3 * 2 * ROUNDS, "{process}");
    assert_eq!(process["delta"]["frees"], 3 * 2 * ROUNDS, "{process}");
    let text = run_daemon(["report", "--history", path(&folder), "--from", "-1h", "--comm", "busy"]);
    assert!(text.stdout.contains("busy") && text.stdout.contains("6,000"), "{}", text.stdout);
    let nobody = report(&folder, &["--comm", "nobody-has-this"]);
    assert_eq!(nobody["processes"], Value::Array(Vec::new()));
}

// HIST-1
#[test]
fn two_daemons_do_not_share_a_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Serving::start(&["--depth", "syscall", "--history", path(&folder)]);
    eventually("the store is open", || recording(&first).then_some(()));
    let second = Serving::start(&["--depth", "syscall", "--history", path(&folder)]);
    let why = eventually("the second goes without", || why_off(&second));
    assert!(why.contains("another malloc-daemon"), "{why}");
    assert_eq!(second.get("/readyz").status, 200);
    let answer = second.get("/v1/history");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &Value::from("history_unavailable")));
    assert!(recording(&first));
    let none = Serving::start(&["--depth", "syscall"]);
    assert_eq!(none.get("/v1/diff").json()["error"]["code"], "no_history");
}

/// A file system of its own, taken down in the end.
struct Mounted(TempDir);

impl Mounted {
    fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], folder.path());
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

fn mount(arguments: &[&str], at: &Path) {
    let ended = run(Command::new("mount").args(arguments).arg(at));
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
}

// HIST-1
#[test]
fn a_folder_without_room_or_right_to_write_is_no_history_and_no_failure() {
    for (options, words) in [("size=16k", "no room"), ("ro", "Read-only")] {
        let mounted = Mounted::new(options);
        let serving = Serving::start(&["--depth", "syscall", "--history", path(&mounted.0)]);
        let why = eventually("it goes without", || why_off(&serving));
        assert!(why.contains(words), "{options}: {why}");
        assert_eq!(serving.get("/readyz").status, 200);
        assert!(serving.get("/v1/processes").json()["processes"].as_array().is_some_and(|all| !all.is_empty()));
        assert_eq!(serving.stop(Signal::TERM).code(), 0);
    }
}
