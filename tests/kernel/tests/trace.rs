//! Proves that `trace` shows each step of the slow path with the arguments it really had.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::command;
use kernel_tests::process::run;
use kernel_tests::truth::Truth;
use kernel_tests::victim;

/// The lines that `trace` printed for one run of `trace_one`, without the victim's own.
fn trace_one(arguments: &[&str]) -> Vec<String> {
    let mut trace = command(["trace"]);
    trace.args(arguments).arg("--").arg(victim::program("trace_one"));
    let ended = run(&mut trace);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    ended.stdout.lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect()
}

fn line<'a>(lines: &'a [String], start: &str) -> &'a str {
    let found: Vec<_> = lines.iter().filter(|line| line.trim_start().starts_with(start)).collect();
    assert_eq!(found.len(), 1, "lines with {start:?} in:\n{}", lines.join("\n"));
    found[0].trim()
}

// CROSS-1: 1048576 bytes become a chunk of 1048592 and a mapping of 257 pages, PROT_READ|PROT_WRITE,
// MAP_PRIVATE|MAP_ANONYMOUS.
#[test]
fn one_mebibyte_is_traced_from_the_call_to_the_kernel() {
    let lines = trace_one(&["--min-bytes", "1000000"]);
    assert_eq!(line(&lines, "-> malloc "), "-> malloc (bytes=1048576)");
    let arena = line(&lines, "-> _int_malloc ");
    assert!(arena.starts_with("-> _int_malloc (av=0x") && arena.contains("<main_arena>"), "{arena}");
    assert!(arena.ends_with("bytes=1048576)"), "{arena}");
    let mmap = line(&lines, "-> mmap ");
    assert!(mmap.starts_with("-> mmap (addr=0x0, len=1052672, prot=3, flags=34, fd=-1, offset=0) = 0x"), "{mmap}");
    let steps: Vec<_> = lines.iter().filter_map(|line| line.trim_start().strip_prefix("-> ")).collect();
    let names: Vec<_> = steps.iter().filter_map(|step| step.split([' ', '(']).next()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"malloc"), Some(&"mmap")), "outermost first");
}

// HONEST-1: where the build has sysmalloc as a function of its own the line has its arguments; where it is
// inlined the line says so.
#[test]
fn sysmalloc_is_shown_with_its_arguments_or_as_inlined() {
    let lines = trace_one(&["--min-bytes", "1000000"]);
    let step = line(&lines, "-> sysmalloc");
    if step.contains("inlined") {
        assert!(!step.contains("nb="), "an inlined step has no arguments of its own: {step}");
    } else {
        assert!(step.starts_with("-> sysmalloc (nb=1048592, av=0x"), "{step}");
    }
}

// The head of a chain names the program and the thread.
#[test]
fn a_chain_names_its_program_and_thread() {
    let lines = trace_one(&["--min-bytes", "1000000"]);
    let head = lines.iter().find(|line| line.contains("trace_one[")).expect("a head line");
    let pid = head.split("trace_one[").nth(1).and_then(|rest| rest.split(']').next()).expect("a pid");
    assert!(head.trim_end().ends_with(&format!("thread {pid}")), "the only thread has the process's id: {head}");
}

#[test]
fn a_trace_ends_after_so_many_chains() {
    let mut trace = command(["trace", "--min-bytes", "200000", "--count", "3", "--"]);
    trace.arg(victim::program("crossings_storm")).args(["50", "200000"]);
    let ended = run(&mut trace);
    assert_eq!(ended.stdout.lines().filter(|line| line.contains("crossings_storm[")).count(), 3, "{}", ended.stdout);
}

// SAFE-1
#[test]
fn a_traced_program_prints_what_it_prints_alone() {
    let mut trace = command(["trace", "--"]);
    let traced = run(trace.arg(victim::program("trace_one")));
    let alone = run(&mut Command::new(victim::program("trace_one")));
    let account = |output: &str| {
        let line = output.lines().find(|line| line.starts_with('{')).expect("an account").to_owned();
        line.split_once("\"malloc\"").expect("functions").1.to_owned()
    };
    assert_eq!(account(&traced.stdout), account(&alone.stdout));
}

// THRESH-1: each raise is a line below the free that made it, from the threshold before to the one after.
#[test]
fn every_raise_is_a_line_below_its_free() {
    let mut trace = command(["trace"]);
    trace.arg("--").arg(victim::program("dynamic_threshold"));
    let ended = run(&mut trace);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let truth = ended.stdout.lines().find(|line| line.starts_with('{')).map(Truth::parse).expect("an account");
    let lines: Vec<&str> = ended.stdout.lines().map(str::trim).collect();
    let mut at = 131_072;
    let mut raises = 0;
    for (index, line) in lines.iter().enumerate() {
        let Some(raise) = line.strip_prefix("=> mmap threshold ") else { continue };
        let (from, rest) = raise.split_once(" -> ").expect("from and to");
        let (to, cause) = rest.split_once("  ").expect("to and cause");
        assert_eq!(from.parse(), Ok(at), "{line}");
        at = to.parse().expect("a size");
        assert_eq!(cause, format!("(by the free of a mapped chunk of {at})"));
        assert!(lines[index - 2].starts_with("-> free (ptr=0x"), "{:?}", &lines[index - 2..=index]);
        raises += 1;
    }
    assert_eq!((raises, at), (truth.threshold.raises, truth.threshold.bytes));
}
