//! Proves that attaching to a running process counts exactly what happens while attached, and leaves no trace.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::{Attached, Serving};
use kernel_tests::process::{Running, until};
use kernel_tests::text::changed_code;
use kernel_tests::victim;
use rustix::process::Signal;

/// Rounds that `busy` makes for each byte it reads.
const ROUNDS: u64 = 1000;

fn busy() -> Running {
    let mut busy = Running::start(&mut Command::new(victim::program("busy")));
    // Its first answer shows that it runs and that its heap exists.
    work(&mut busy, 1);
    busy
}

fn work(busy: &mut Running, steps: usize) {
    busy.write(&vec![b'x'; steps]);
    assert_eq!(busy.read(steps), vec![b'.'; steps]);
}

fn assert_no_probe(pid: u32) {
    // The kernel takes probes out after the last holder's file is closed, which may follow its end.
    until("the process's code is as in its file", || changed_code(pid).is_empty().then_some(()));
}

// COUNT-1: not one call from before or after.
#[test]
fn exactly_the_calls_while_attached_are_counted() {
    let mut busy = busy();
    let pid = busy.pid();
    work(&mut busy, 3);
    let attached = Attached::to(pid);
    work(&mut busy, 5);
    let (ended, document) = attached.interrupt();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    work(&mut busy, 2);
    let image = document.image(pid, "busy");
    for (function, calls) in [("malloc", 5 * ROUNDS), ("calloc", 5 * ROUNDS), ("free", 10 * ROUNDS)] {
        assert_eq!(image.calls(function), calls, "{function}");
    }
    image.assert_complete();
    image.assert_sums();
}

// COUNT-1, IDENT-1: a child that executes another program with the same libc brings no second probe to its parent.
#[test]
fn a_child_that_executes_a_program_does_not_double_its_parents_calls() {
    let mut busy = busy();
    let pid = busy.pid();
    let attached = Attached::to(pid);
    work(&mut busy, 2);
    busy.write(b"ccc");
    assert_eq!(busy.read(3), b"...");
    work(&mut busy, 3);
    let (ended, document) = attached.interrupt();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let image = document.image(pid, "busy");
    assert_eq!((image.calls("malloc"), image.calls("calloc")), (5 * ROUNDS, 5 * ROUNDS));
}

// SAFE-1: an orderly end takes every probe out.
#[test]
fn a_recording_that_ends_leaves_no_probe() {
    let mut busy = busy();
    let attached = Attached::to(busy.pid());
    work(&mut busy, 1);
    assert!(!changed_code(busy.pid()).is_empty(), "attached, the libc's code holds probes");
    let (ended, _) = attached.interrupt();
    assert_eq!(ended.code(), 0);
    assert_no_probe(busy.pid());
    work(&mut busy, 1);
}

// SAFE-1: even SIGKILL leaves none, and the process goes on.
#[test]
fn a_killed_daemon_leaves_no_probe() {
    let mut busy = busy();
    let attached = Attached::to(busy.pid());
    work(&mut busy, 1);
    assert!(!changed_code(busy.pid()).is_empty(), "attached, the libc's code holds probes");
    let _killed = attached.kill();
    assert_no_probe(busy.pid());
    work(&mut busy, 3);
    assert!(busy.end().status.success());
}

#[test]
fn a_recording_ends_after_its_duration() {
    let mut busy = busy();
    let pid = busy.pid();
    let attached = Attached::with(pid, &["--duration", "1s"]);
    let (ended, document) = attached.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let duration = document.0["window"]["duration_ms"].as_u64().expect("window.duration_ms");
    assert!(duration >= 1000, "{duration} ms");
    assert_eq!(document.image(pid, "busy").calls("malloc"), 0);
    work(&mut busy, 1);
}

// COUNT-1: the last calls of a process that ends under the recording are there.
#[test]
fn a_recording_ends_with_its_process_and_has_its_last_calls() {
    let mut busy = busy();
    let pid = busy.pid();
    let attached = Attached::to(pid);
    work(&mut busy, 4);
    assert!(busy.end().status.success());
    let (ended, document) = attached.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_eq!(document.image(pid, "busy").calls("malloc"), 4 * ROUNDS);
}

// IDENT-1: another process of the same program works at the same time.
#[test]
fn a_bystander_of_the_same_program_is_not_counted() {
    let (mut watched, mut bystander) = (busy(), busy());
    let attached = Attached::to(watched.pid());
    work(&mut bystander, 7);
    work(&mut watched, 2);
    work(&mut bystander, 7);
    let (_, document) = attached.interrupt();
    assert_eq!(document.image(watched.pid(), "busy").calls("malloc"), 2 * ROUNDS);
    assert_eq!(document.images().iter().filter(|image| image.pid() != watched.pid()).count(), 0);
}

// COUNT-1: probes of two daemons on the same instruction do not disturb each other.
#[test]
fn two_recordings_of_one_process_both_count_everything() {
    let mut busy = busy();
    let first = Attached::to(busy.pid());
    work(&mut busy, 1);
    let second = Attached::to(busy.pid());
    work(&mut busy, 2);
    let (_, document) = first.interrupt();
    assert_eq!(document.image(busy.pid(), "busy").calls("malloc"), 3 * ROUNDS);
    work(&mut busy, 4);
    let (_, document) = second.interrupt();
    assert_eq!(document.image(busy.pid(), "busy").calls("malloc"), 6 * ROUNDS);
}

// SAFE-1. Here and not with the other tests of `serve`: those run daemons that probe every process.
#[test]
fn a_terminated_server_exits_well_and_leaves_no_probe() {
    let mut busy = busy();
    let pid = busy.pid();
    let serving = Serving::start(&["--depth", "call", "--pid", &pid.to_string()]);
    work(&mut busy, 1);
    assert!(!changed_code(pid).is_empty(), "attached, the libc's code holds probes");
    let ended = serving.stop(Signal::TERM);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_no_probe(pid);
    work(&mut busy, 1);
}
