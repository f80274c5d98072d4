//! Proves that profiles of a recording name who had chunks mapped, and that their weights are all crossings.
#![cfg(feature = "real-kernel")]

use std::fs;
use std::path::Path;
use std::process::Command;

use kernel_tests::daemon;
use kernel_tests::process::{Running, run, until};
use kernel_tests::victim;

/// Records a victim that says who maps and frees, in a format; what it says, and the file.
fn recorded(format: &str, weight: &str) -> (serde_json::Value, Vec<u8>) {
    let flags = ["-O2", "-fno-omit-frame-pointer"];
    let program = victim::program_with("call_stacks", "call_stacks_framed", Path::new("cc"), &flags);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("profile");
    let mut command =
        daemon::command(["record", "--depth", "sysmalloc", "--duration", "3s", "--format", format, "--weight", weight]);
    command.arg("-o").arg(&file).arg("--").arg(program.unwrap_or_else(|error| panic!("{error}")));
    // It waits for the end of its input: its stacks are named while it runs.
    let mut recording = Running::start(&mut command);
    let says = serde_json::from_str(&recording.read_line()).expect("what it says of itself");
    let written = until("the report is written", || fs::read(&file).ok().filter(|bytes| !bytes.is_empty()));
    recording.close_input();
    assert_eq!(recording.end().code(), 0);
    (says, written)
}

// CROSS-2: every crossing is in a line, the one that it is sure of under who asked for it.
#[test]
fn folded_stacks_name_who_had_a_chunk_mapped_and_sum_to_the_crossings() {
    for (weight, least) in [("calls", 1), ("bytes", 1 << 20)] {
        let (says, written) = recorded("collapsed", weight);
        let text = String::from_utf8(written).expect("text");
        let lines: Vec<(&str, u64)> = text
            .lines()
            .map(|line| line.rsplit_once(' ').expect("a weight"))
            .map(|(stack, weight)| (stack, weight.parse().expect("a number")))
            .collect();
        let maker = says["mapped"][0].as_str().expect("a function");
        let frames = |stack: &str| stack.split(';').map(str::to_owned).collect::<Vec<_>>();
        let by_maker = lines.iter().find(|(stack, _)| frames(stack).iter().any(|frame| frame == maker));
        let (stack, own) = by_maker.unwrap_or_else(|| panic!("no {maker} in {text}"));
        assert!(*own >= least, "{text}");
        assert!(frames(stack).iter().position(|frame| frame == "main") < frames(stack).iter().position(|f| f == maker));
        assert!(lines.iter().all(|(stack, weight)| stack.starts_with("call_stacks_fra;") && *weight > 0), "{text}");
    }
}

// CROSS-2: a gzip reader and a search for words are enough here: unit tests read every field.
#[test]
fn a_profile_is_packed_and_holds_functions_files_and_build_ids() {
    let (says, written) = recorded("pprof", "calls");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("profile.pb.gz");
    fs::write(&file, written).expect("a file");
    let unpack = "import gzip, sys; sys.stdout.write(repr(gzip.open(sys.argv[1]).read()))";
    let mut python = Command::new("python3");
    let unpacked = run(python.args(["-c", unpack]).arg(&file));
    assert_eq!(unpacked.code(), 0, "{}", unpacked.stderr);
    let text = unpacked.stdout;
    for words in [
        says["mapped"][0].as_str(),
        says["freed"][0].as_str(),
        Some("call_stacks.c"),
        Some("libc.so.6"),
        Some("raises"),
    ] {
        assert!(text.contains(words.expect("words")), "{words:?} in {text}");
    }
    assert_eq!(daemon::run_daemon(["record", "--format", "pprof", "--depth", "syscall", "--", "true"]).code(), 2);
}
