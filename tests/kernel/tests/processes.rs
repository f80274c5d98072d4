//! Proves that children are followed, every image has an account of its own, and a command behaves as without us.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::path::Path;

use kernel_tests::compare::assert_functions;
use kernel_tests::daemon::{Recording, Report, record, record_program, run_daemon};
use kernel_tests::process::Running;
use kernel_tests::truth::{Row, Truth};
use kernel_tests::victim;

fn assert_every_account(recording: &Recording) {
    for truth in &recording.truths {
        let image = recording.document.image(truth.pid, &truth.victim);
        image.assert_complete();
        assert_functions(truth, &image);
        image.assert_sums();
    }
}

fn path_of(program: &Path) -> &str {
    program.to_str().expect("a path in UTF-8")
}

// IDENT-1, COUNT-1: parent and children share the heap's pages and the probes, and nothing else.
#[test]
fn forked_children_have_accounts_of_their_own() {
    let recording = record("fork_noexec", &["3"]);
    assert_eq!(recording.truths.len(), 4);
    assert_every_account(&recording);
    assert_eq!(recording.document.images().iter().filter(|image| image.comm() == "fork_noexec").count(), 4);
}

// IDENT-1: whichever thread ends last, the name is the process's.
#[test]
fn a_process_is_not_named_after_the_thread_that_ends_last() {
    let recording = record("other_names", &[]);
    let (truth, image) = recording.only();
    assert_eq!(image.comm(), "other_names");
    // The end of the first thread loads a library, which allocates.
    assert!(image.calls("malloc") >= truth.functions["malloc"].calls, "{}", image.0["functions"]);
}

// IDENT-1: one pid, two programs, two accounts.
#[test]
fn a_program_started_by_a_child_begins_a_new_account() {
    let recording = record("fork_exec", &[path_of(&victim::program("sizes")), "small"]);
    assert_eq!(recording.truths.len(), 3);
    let [before_exec, after_exec, parent] = recording.truths.as_slice() else { unreachable!("three accounts") };
    assert_eq!((before_exec.pid, after_exec.victim.as_str()), (after_exec.pid, "sizes"));
    assert_ne!(parent.pid, after_exec.pid);
    assert_every_account(&recording);
}

#[test]
fn a_program_started_by_vfork_begins_a_new_account() {
    let recording = record("vfork_exec", &["exec", path_of(&victim::program("sizes")), "small"]);
    assert_eq!(recording.truths.len(), 2);
    assert_every_account(&recording);
}

#[test]
fn a_program_started_by_posix_spawn_begins_a_new_account() {
    let recording = record("vfork_exec", &["spawn", path_of(&victim::program("sizes")), "small"]);
    assert_eq!(recording.truths.len(), 2);
    assert_every_account(&recording);
}

// IDENT-1: the child of vfork works in the parent's memory; its calls are still its own.
#[test]
fn the_calls_of_a_child_that_borrows_its_parents_memory_are_the_childs() {
    let recording = record("vfork_exec", &["allocate", path_of(&victim::program("sizes")), "small"]);
    assert_every_account(&recording);
    let parent = recording.truths.iter().find(|truth| truth.victim == "vfork_exec").expect("the parent's account");
    let child = u32::try_from(parent.fact("child_pid")).expect("a pid");
    let functions = recording.document.image(child, "vfork_exec").functions();
    assert_eq!(functions["malloc"].calls, parent.fact("child_mallocs"));
    assert_eq!(functions["malloc"].bytes, Some(parent.fact("child_malloc_bytes")));
    assert_eq!(functions["free"].calls, parent.fact("child_mallocs"));
}

// COUNT-1: a shell's children are followed through two generations.
#[test]
fn grandchildren_are_followed() {
    let script = format!("({0} small; {0} small) & {0} small; wait", path_of(&victim::program("sizes")));
    let recording = record_program(Path::new("/bin/sh"), &["-c", &script]);
    assert_eq!(recording.truths.len(), 3);
    let pids: BTreeMap<u32, &Truth> = recording.truths.iter().map(|truth| (truth.pid, truth)).collect();
    assert_eq!(pids.len(), 3, "three processes");
    assert_every_account(&recording);
}

// LOSS-1, BOUND-1: however many processes come and go, each has its account, or the document says that some have not.
#[test]
fn a_stream_of_short_processes_is_counted_or_reported_lost() {
    let script =
        format!("i=0; while [ $i -lt 150 ]; do {} small; i=$((i+1)); done", path_of(&victim::program("sizes")));
    let recording = record_program(Path::new("/bin/sh"), &["-c", &script]);
    assert_eq!(recording.truths.len(), 150);
    if recording.document.0["complete"] == true {
        recording.document.assert_complete();
        assert_every_account(&recording);
    } else {
        let losses = recording.document.0["losses"].as_array().expect("losses");
        assert!(losses.iter().any(|loss| loss["count"].as_u64().is_some_and(|count| count > 0)), "{losses:?}");
    }
}

#[test]
fn the_commands_exit_status_is_the_recordings() {
    for (command, code) in
        [("true", 0), ("false", 1), ("exit 42", 42), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)]
    {
        let ended = run_daemon(["record", "--output", "/dev/null", "--", "/bin/sh", "-c", command]);
        assert_eq!(ended.code(), code, "{command}: {}", ended.stderr);
    }
}

// SAFE-1: the command reads what it is given and its output is its own, byte for byte.
#[test]
fn the_commands_standard_streams_pass_through() {
    let report = Report::new();
    let mut daemon = Running::start(report.command("call").args(["--", "/bin/cat"]));
    daemon.write(b"one\ntwo\0three");
    assert_eq!(daemon.read(13), b"one\ntwo\0three");
    let ended = daemon.end();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert!(report.read(&ended).images().iter().any(|image| image.comm() == "cat"));
}

// SAFE-1: a program computes under the probes what it computes without.
#[test]
fn a_recorded_program_does_what_it_does_alone() {
    for (name, arguments) in [("functions", vec![]), ("threads", vec!["4", "500"]), ("dynamic_threshold", vec![])] {
        let alone = victim::run_alone(name, &arguments);
        let recorded = record(name, &arguments).truths;
        let functions = |truths: &[Truth]| -> Vec<BTreeMap<String, Row>> {
            truths.iter().map(|truth| truth.functions.clone()).collect()
        };
        assert_eq!(functions(&alone), functions(&recorded), "{name}");
        assert_eq!(alone[0].threshold, recorded[0].threshold, "{name}");
    }
}

#[test]
fn a_report_without_an_output_goes_to_standard_error_and_leaves_the_output_alone() {
    let ended = run_daemon(["record", "--", "/bin/echo", "hello"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "hello\n"));
    assert!(ended.stderr.contains("malloc"), "{}", ended.stderr);
    assert!(!ended.stderr.contains('\u{1b}'), "no colour without a terminal: {}", ended.stderr);
}
