//! Proves that programs served by other allocators than glibc's are counted call by call, and that no level that such an
//! allocator lacks is made up.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::allocators::{JEMALLOC, MIMALLOC, Preloaded, TCMALLOC, musl_gcc};
use kernel_tests::compare::{assert_functions, assert_functions_beyond};
use kernel_tests::daemon::{Attached, Recording, Report, record_prepared, record_program};
use kernel_tests::document::Image;
use kernel_tests::process::{Running, run};
use kernel_tests::truth::{Row, Truth};
use kernel_tests::victim;

fn portable() -> PathBuf {
    victim::program_with("portable", "portable", Path::new("cc"), &[]).expect("a compiler")
}

/// The portable victim with C++'s operators, which libstdc++ serves unless somebody comes before it.
fn with_operators(more: &[&str]) -> PathBuf {
    let flags: Vec<&str> = ["-DT_OPERATORS", "-lstdc++"].iter().chain(more).copied().collect();
    victim::program_with("portable", "portable", Path::new("cc"), &flags).expect("a compiler with libstdc++")
}

fn arguments<'a>(allocator: &Preloaded, more: &[&'a str]) -> Vec<&'a str> {
    allocator.arguments.iter().chain(more).copied().collect()
}

fn record_preloaded(allocator: &Preloaded, program: &Path, arguments: &[&str]) -> Recording {
    record_prepared(program, arguments, |command| {
        command.env("LD_PRELOAD", allocator.path());
    })
}

// HONEST-1: glibc's levels do not exist here.
fn assert_only_calls_and_system_calls(image: &Image, kind: &str) {
    assert_eq!(image.text("/allocator/kind"), kind);
    assert!(!image.text("/allocator/version").is_empty());
    for level in ["/funnel/arena", "/funnel/sysmalloc", "/funnel/brk", "/funnel/mmap", "/crossings", "/threshold"] {
        assert!(image.is_null(level), "{level} of {kind}: {}", image.0);
    }
    assert!(image.number("/syscalls/mmap/calls") + image.number("/syscalls/brk/calls") > 0);
    let why = image.0["not_measured"].to_string();
    assert!(why.contains(&format!("{kind} has no sysmalloc")), "{why}");
}

/// COUNT-1, COUNT-2, COUNT-3 for the family of malloc and for the operators, which enter it or do not.
fn assert_preloaded(allocator: &Preloaded) {
    let program = with_operators(&[]);
    let arguments = arguments(allocator, &["refused", "new"]);
    // The operators are left out here: those of the allocator do not pass the interposer, what they free does.
    let without_operators = &arguments[..arguments.len() - 1];
    let of_the_libraries = victim::calls_of_the_preloaded(&program, without_operators, &allocator.path());
    let recording = record_preloaded(allocator, &program, &arguments);
    assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
    let (truth, image) = recording.only();
    image.assert_complete();
    assert_functions_beyond(truth, &of_the_libraries, &image);
    assert_only_calls_and_system_calls(&image, allocator.kind);
}

#[test]
fn every_call_of_a_preloaded_jemalloc_is_counted_once() {
    assert_preloaded(&JEMALLOC);
}

#[test]
fn every_call_of_a_preloaded_tcmalloc_is_counted_once() {
    assert_preloaded(&TCMALLOC);
}

#[test]
fn every_call_of_a_preloaded_mimalloc_is_counted_once() {
    assert_preloaded(&MIMALLOC);
}

// COUNT-1: an allocator that the program names itself.
#[test]
fn a_linked_allocator_serves_as_a_preloaded_one_does() {
    for allocator in [JEMALLOC, TCMALLOC, MIMALLOC] {
        let library = allocator.path();
        let directory = library.parent().expect("a directory").display().to_string();
        let name = format!("-l:{}", library.file_name().expect("a name").to_string_lossy());
        let (search, run_path) = (format!("-L{directory}"), format!("-Wl,-rpath,{directory}"));
        let needed = ["-Wl,--no-as-needed", search.as_str(), run_path.as_str(), name.as_str()];
        let program = victim::program_with("portable", "portable", Path::new("cc"), &needed).expect("a linker");
        let recording = record_program(&program, &arguments(&allocator, &[]));
        let (truth, image) = recording.only();
        image.assert_complete();
        let of_the_libraries = victim::calls_of_the_preloaded(&program, &arguments(&allocator, &[]), &library);
        assert_functions_beyond(truth, &of_the_libraries, &image);
        assert_only_calls_and_system_calls(&image, allocator.kind);
    }
}

// COUNT-1 under contention.
#[test]
fn threads_lose_no_call_of_another_allocator() {
    let program = victim::program_with("threads", "threads", Path::new("cc"), &["-DT_FOREIGN"]).expect("a compiler");
    for allocator in [JEMALLOC, TCMALLOC, MIMALLOC] {
        let of_the_libraries = victim::calls_of_the_preloaded(&program, &["4", "2000"], &allocator.path());
        let recording = record_preloaded(&allocator, &program, &["4", "2000"]);
        let (truth, image) = recording.only();
        image.assert_complete();
        assert_functions_beyond(truth, &of_the_libraries, &image);
    }
}

// COUNT-2: on glibc the operators enter malloc, which is where they count.
#[test]
fn the_operators_of_libstdcpp_count_as_the_malloc_they_enter() {
    let recording = record_program(&with_operators(&["-DT_GLIBC_OPERATORS"]), &["alias", "new"]);
    let (truth, image) = recording.only();
    image.assert_complete();
    let library = victim::calls_of_the_interposed(&with_operators(&["-DT_GLIBC_OPERATORS"]), &["alias", "new"]);
    assert_functions_beyond(truth, &library, &image);
    assert_eq!(image.text("/allocator/kind"), "glibc");
}

fn assert_musl(flags: &[&str]) {
    let program = victim::program_with("portable", "portable", &musl_gcc(), flags).expect("musl's compiler");
    let recording = record_program(&program, &["multiply", "refused"]);
    assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
    let (truth, image) = recording.only();
    image.assert_complete();
    assert_functions(truth, &image);
    assert_eq!(image.text("/allocator/kind"), "musl");
    assert!(image.0["not_measured"].to_string().contains("musl has no sysmalloc"), "{}", image.0["not_measured"]);
    let threads = victim::program_with("threads", "threads", &musl_gcc(), &[flags, &["-DT_FOREIGN"]].concat());
    let recording = record_program(&threads.expect("musl's compiler"), &["4", "500"]);
    let (truth, image) = recording.only();
    assert_functions(truth, &image);
}

// COUNT-1, COUNT-2: calloc, memalign and their like enter other public functions of musl.
#[test]
fn every_call_of_a_program_on_musl_is_counted_once() {
    assert_musl(&[]);
}

#[test]
fn every_call_of_a_static_program_on_musl_is_counted_once() {
    assert_musl(&["-static", "-no-pie"]);
}

// HONEST-1, COST-1: musl's valloc begins with no instruction that the kernel emulates.
#[test]
fn a_dear_function_is_counted_only_when_asked_for_and_said_to_be_left_out() {
    let program = victim::program_with("portable", "portable", &musl_gcc(), &[]).expect("musl's compiler");
    let report = Report::new();
    let ended = run(report.default_command("call").arg("--").arg(program));
    let document = report.read(&ended);
    let truth = Truth::parse_all(&ended.stdout).remove(0);
    let image = document.image(truth.pid, "portable");
    assert!(truth.functions["valloc"].calls > 0);
    let seen = image.functions();
    assert_eq!(seen.get("malloc").map(|row| row.calls), Some(truth.functions["malloc"].calls));
    assert!(!seen.contains_key("valloc"), "{seen:?}");
    let told = image.0["allocator"]["not_counted"].to_string();
    assert!(told.contains("valloc") && told.contains("--stepped"), "{told}");
}

// COUNT-1, COUNT-2, COUNT-3, CROSS-1: the whole chain is inside the executable. What the libc asks for before main is
// the same in every program: another victim tells it.
#[test]
fn every_call_of_a_static_program_on_glibc_is_counted_once() {
    for flags in [["-static", "-no-pie"], ["-static-pie", "-fPIE"]] {
        let other = victim::program_with("sizes", "sizes", Path::new("cc"), &flags).expect("a static libc");
        let recording = record_program(&other, &["small"]);
        let (truth, image) = recording.only();
        let seen = image.functions();
        let of_the_libc: BTreeMap<String, Row> = truth
            .functions
            .iter()
            .filter_map(|(name, known)| Some((name.clone(), seen.get(name)?.minus(known)?)))
            .collect();
        assert!(of_the_libc.values().all(|row| row.calls < 30), "{flags:?}: {of_the_libc:?}");
        let program = victim::program_with("functions", "functions", Path::new("cc"), &flags).expect("a static libc");
        let recording = record_program(&program, &[]);
        assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
        let (truth, image) = recording.only();
        image.assert_complete();
        assert_functions_beyond(truth, &of_the_libc, &image);
        assert_eq!(image.text("/allocator/kind"), "glibc");
        assert_eq!(image.number("/crossings/calls"), truth.crossings.calls, "{flags:?}");
    }
}

// IDENT-1, HONEST-1: what is attached to a running process is the allocator that serves it.
#[test]
fn a_running_process_is_probed_where_its_allocator_is() {
    let mut victim = Running::start(Command::new(portable()).arg("wait").env("LD_PRELOAD", JEMALLOC.path()));
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let (ended, document) = Attached::until_the_end_of(victim);
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let image = document.image(pid, "portable");
    assert_functions(&truth, &image);
    assert_eq!(image.text("/allocator/kind"), "jemalloc");
    // The C library's malloc is there and does not serve.
    let beside = image.0["allocator"]["also_mapped"].to_string();
    assert!(beside.contains("libc.so.6 (glibc"), "{beside}");
}

// COUNT-1, HONEST-1: a library that passes every call on makes none of them two, and the document names it.
#[test]
fn a_library_in_front_that_passes_calls_on_does_not_count_them_again() {
    let recording = record_prepared(&portable(), &["alias", "multiply"], |command| {
        command.env("LD_PRELOAD", victim::interposer());
    });
    let (truth, image) = recording.only();
    assert_functions(truth, &image);
    assert_eq!(image.text("/allocator/kind"), "glibc");
    let beside = image.0["allocator"]["also_mapped"].to_string();
    assert!(beside.contains("interpose.so (unknown, comes first"), "{beside}");
}

/// Rust's allocator lies in the executable under names of its own, and serves Rust alone: the victim's counts by its own words.
fn assert_inside_a_rust_program(name: &str, kind: &str, counted: &[&str]) {
    let program = victim::cargo_program(name);
    let mut victim = Running::start(&mut Command::new(program));
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let (ended, document) = Attached::until_the_end_of(victim);
    let image = document.image(pid, name);
    assert_eq!(image.text("/allocator/kind"), kind);
    assert!(image.0["allocator"]["also_mapped"].to_string().contains("libc.so.6 (glibc"), "{}", image.0["allocator"]);
    let words: Vec<&str> = ended.stdout.split_whitespace().collect();
    for function in counted {
        let at = words.iter().position(|word| word == function).expect("a number of that name");
        let known: u64 = words[at + 1].parse().expect("a number");
        // Beside these Rust prints one line.
        let seen = image.calls(function);
        assert!((known..known + 16).contains(&seen), "{function}: {seen} for {known}");
    }
    assert!(image.is_null("/funnel/sysmalloc"), "{}", image.0["funnel"]);
}

// COUNT-1, COUNT-2
#[test]
fn a_jemalloc_inside_a_rust_program_is_counted_by_its_own_names() {
    assert_inside_a_rust_program("jemalloc-victim", "jemalloc", &["malloc", "calloc", "realloc", "free"]);
}

// COUNT-1, COUNT-2
#[test]
fn a_mimalloc_inside_a_rust_program_is_counted_by_its_own_names() {
    assert_inside_a_rust_program("mimalloc-victim", "mimalloc", &["malloc", "realloc", "free"]);
}
