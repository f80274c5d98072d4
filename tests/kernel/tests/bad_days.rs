//! Proves that the service behaves when things go wrong around it.
#![cfg(feature = "real-kernel")]

use std::os::unix::process::ExitStatusExt;

use std::process::Command;
use std::time::{Duration, Instant};

use kernel_tests::daemon::{Serving, command, run_daemon};
use kernel_tests::process::{Running, until};
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_second_daemon_on_the_same_port_says_so_and_harms_nothing() {
    let first = Serving::start(&["--depth", "syscall"]);
    let second = run_daemon(["serve", "--depth", "syscall", "--listen", &first.address]);
    assert_eq!(second.code(), 2, "{}", second.stderr);
    assert!(second.stderr.contains(&format!("{} is in use by another program", first.address)), "{}", second.stderr);
    assert_eq!(first.get("/readyz").status, 200);
    assert_eq!(first.stop(Signal::TERM).code(), 0);
}

#[test]
fn a_socket_left_behind_by_a_killed_daemon_is_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("api.sock").display());
    let start = || {
        let mut daemon = Running::start(&mut command(["serve", "--depth", "syscall", "--listen", &listen]));
        daemon.wait_for_error_line(&format!("listening on {listen}"));
        daemon
    };
    let first = start();
    let second = run_daemon(["serve", "--depth", "syscall", "--listen", &listen]);
    assert_eq!(second.code(), 2, "a socket that is listened on is left alone: {}", second.stderr);
    first.signal(Signal::KILL);
    assert_eq!(first.end().status.signal(), Some(9));
    let third = start();
    third.signal(Signal::TERM);
    assert_eq!(third.end().code(), 0);
    assert!(!folder.path().join("api.sock").exists());
}

/// Files that the daemon has open: maps, programs and links are among them, so that a start can be followed by it.
fn open_files(pid: u32) -> usize {
    // Until the kernel has given it its name it has the files of the test, which end with the execution.
    let is_daemon = std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"malloc-daemon\n");
    if is_daemon { std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) } else { 0 }
}

#[test]
fn a_daemon_told_to_end_does_so_in_every_phase_of_its_start() {
    let start = || Running::start(&mut command(["-v", "serve", "--listen", "127.0.0.1:0", "--depth", "call"]));
    let mut whole = start();
    whole.wait_for_error_line("probes are attached");
    let all = open_files(whole.pid());
    assert!(all > 30, "maps, programs and links: {all}");
    whole.signal(Signal::TERM);
    assert_eq!(whole.end().code(), 0);
    for phase in (0..=all).step_by(all / 15) {
        let mut daemon = start();
        // How many are open at once at the most differs from start to start: one that is through is told then.
        until("so many files are open", || {
            (open_files(daemon.pid()) >= phase || daemon.has_error_line("probes are attached")).then_some(())
        });
        let told = Instant::now();
        daemon.signal(Signal::TERM);
        let ended = daemon.end();
        // At its very begin there is nobody yet who would catch it.
        let in_order = ended.status.code() == Some(0) || (phase < 10 && ended.status.signal() == Some(15));
        assert!(in_order, "at {phase} of {all} files: {:?}\n{}", ended.status, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(told.elapsed() < Duration::from_secs(20), "at {phase} of {all} files: {:?}", told.elapsed());
    }
}

// HIST-1: what was written before stays, the store opens for a reader and for the next daemon, and the rest is counted anew.
#[test]
fn a_killed_daemon_loses_its_last_interval_at_most() {
    const ROUNDS: u64 = 1000;
    let folder = tempfile::tempdir().expect("a folder");
    let history = folder.path().to_str().expect("a plain path");
    let mut busy = Running::start(&mut Command::new(victim::program("busy")));
    let pid = busy.pid().to_string();
    let arguments = ["--depth", "call", "--pid", &pid, "--history", history];
    let mut work = |steps: usize| {
        busy.write(&vec![b'x'; steps]);
        assert_eq!(busy.read(steps), vec![b'.'; steps]);
    };
    let calls = || {
        let options = ["report", "--history", history, "--from", "-1h", "--format", "json", "--pid", &pid];
        let told = run_daemon(options);
        let told: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{}", told.stderr));
        assert!(told["processes"].as_array().is_some_and(|all| all.len() <= 1), "{told}");
        told["processes"][0]["delta"]["calls"].as_u64().unwrap_or(0)
    };
    let mut written = 0;
    for run in 1..=3 {
        let serving = Serving::start(&arguments);
        let id = pid.parse().expect("a number");
        serving.image_when("its calls are probed", id, |image| image.text("/depth") == "call");
        work(2);
        until("the rounds are on disk", || (calls() == written + 2 * 2 * ROUNDS).then_some(()));
        written += 2 * 2 * ROUNDS;
        // These may fall into the interval that is lost.
        work(1);
        assert_eq!(serving.stop(Signal::KILL).status.signal(), Some(9));
        let after = calls();
        assert!(after == written || after == written + 2 * ROUNDS, "run {run}: {after}, {written} were written");
        written = after;
    }
    let serving = Serving::start(&arguments);
    let health = until("the store is open", || {
        let health = serving.get("/v1/health").json()["history"].clone();
        (health["state"] == "recording").then_some(health)
    });
    assert_eq!(health["set_aside"], Value::Null, "{health}");
    assert_eq!(calls(), written);
}
