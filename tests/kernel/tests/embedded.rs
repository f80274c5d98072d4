//! Proves what is told and counted where the allocator lies inside the executable, where a program brings two, and where a
//! libc has neither its usual name nor symbols.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::allocators::{JEMALLOC, MIMALLOC, TCMALLOC, musl_gcc, musl_static_pie};
use kernel_tests::compare::{assert_crossings, assert_functions, assert_functions_beyond, assert_threshold};
use kernel_tests::daemon::{Attached, record_program, run_daemon};
use kernel_tests::document::Image;
use kernel_tests::process::{Running, copy_executable};
use kernel_tests::truth::{Row, Truth};
use kernel_tests::victim;
use serde_json::Value;
use tempfile::TempDir;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
const UNTOLD: &str = "it is a static program without symbols: what in it is malloc cannot be told";

fn portable(compiler: &Path, flags: &[&str]) -> PathBuf {
    victim::program_with("portable", "portable", compiler, flags).expect("a compiler with a static libc")
}

fn locate(file: &Path) -> Value {
    let ended = run_daemon(["locate", "--json", file.to_str().expect("a path")]);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr))
}

/// Static executables, bound to an address and not, of both C libraries.
fn ways() -> [(&'static str, PathBuf, Vec<String>); 4] {
    let owned = |flags: [&str; 2]| flags.map(str::to_owned).to_vec();
    [
        ("glibc", PathBuf::from("cc"), owned(["-static", "-no-pie"])),
        ("glibc", PathBuf::from("cc"), owned(["-static-pie", "-fPIE"])),
        ("musl", musl_gcc(), owned(["-static", "-no-pie"])),
        ("musl", musl_gcc(), musl_static_pie()),
    ]
}

// COUNT-1, HONEST-1: with symbols all is told and counted; without, nothing is made up of what no rule tells.
#[test]
fn a_static_program_is_told_by_its_symbols_and_one_on_musl_unknown_without() {
    for (kind, compiler, flags) in ways() {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let whole = portable(&compiler, &flags);
        let document = locate(&whole);
        assert_eq!(document["allocator"]["kind"], kind, "{flags:?}");
        let functions: Vec<_> = document["functions"].as_array().expect("functions").iter().collect();
        let named = |name: &str| functions.iter().any(|function| function["name"] == name);
        assert!(["malloc", "calloc", "realloc", "free"].into_iter().all(named), "{kind}, {flags:?}: {functions:?}");
        if kind != "musl" {
            continue;
        }
        let recording = record_program(&whole, &["multiply", "refused"]);
        let (truth, image) = recording.only();
        image.assert_complete();
        assert_functions(truth, &image);
        assert_eq!(image.text("/allocator/kind"), "musl");

        let stripped = portable(&compiler, &[flags.as_slice(), &["-s"]].concat());
        let ended = run_daemon(["locate", stripped.to_str().expect("a path")]);
        assert_eq!(ended.code(), 2);
        assert!(
            ended.stderr.contains("a static program without symbols, and no glibc is found in it"),
            "{}",
            ended.stderr
        );
        let recording = record_program(&stripped, &[]);
        assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
        let (_, image) = recording.only();
        assert!(image.is_null("/allocator"), "{kind}, {flags:?}: {}", image.0["allocator"]);
        for level in ["/funnel/call", "/funnel/arena", "/funnel/sysmalloc", "/crossings", "/threshold", "/functions"] {
            assert!(image.is_null(level), "{level} of {kind}, {flags:?}");
        }
        assert!(image.0["not_measured"].to_string().contains(UNTOLD), "{}", image.0["not_measured"]);
        assert!(image.number("/syscalls/mmap/calls") + image.number("/syscalls/brk/calls") > 0);
    }
}

/// The calls that a static C library makes on its own, by a program with symbols: what was counted beyond what it knows of.
fn calls_of_the_start(truth: &Truth, image: &Image) -> BTreeMap<String, Row> {
    let seen = image.functions();
    let beyond =
        |(name, row): (&String, &Row)| (name.clone(), row.minus(&truth.functions[name]).expect("no fewer calls"));
    seen.iter().map(beyond).collect()
}

// COUNT-1, CROSS-1, THRESH-1: the glibc in a static program is told by what its code does, and every number is the program's own.
#[test]
fn a_static_program_without_symbols_is_counted_by_what_its_code_does() {
    for flags in [&["-static", "-no-pie"][..], &["-static-pie", "-fPIE"]] {
        let linked = |name: &str, more: &[&str]| {
            let flags = [flags, more].concat();
            victim::program_with(name, name, Path::new("cc"), &flags).expect("a compiler with a static libc")
        };
        let recording = record_program(&linked("sizes", &[]), &["small"]);
        let (truth, image) = recording.only();
        assert_eq!(image.text("/allocator/located_by"), "symtab");
        let of_the_libc = calls_of_the_start(truth, &image);
        assert!(of_the_libc.values().map(|row| row.calls).sum::<u64>() < 64, "{of_the_libc:?}");
        for (name, arguments) in [("sizes", &[][..]), ("functions", &[]), ("trim", &["32"]), ("dynamic_threshold", &[])]
        {
            let named = record_program(&linked(name, &[]), arguments);
            let unnamed = record_program(&linked(name, &["-s"]), arguments);
            assert_eq!(unnamed.ended.code(), 0, "{name}: {}", unnamed.ended.stderr);
            let ((_, by_symbols), (truth, image)) = (named.only(), unnamed.only());
            assert_eq!(image.text("/allocator/kind"), "glibc");
            assert_eq!(image.text("/allocator/located_by"), "inferred");
            image.assert_complete();
            assert_functions_beyond(truth, &of_the_libc, &image);
            assert_crossings(truth, &image);
            assert_threshold(truth, &image);
            // How much large alignments take depends on where the heap begins, which no two runs share.
            if name == "functions" {
                continue;
            }
            // Whether memory was read beside depends on when the short program ended.
            for part in COUNTED.into_iter().filter(|part| *part != "/threshold").chain(["/threshold/raises"]) {
                assert!(image.0.pointer(part).is_some(), "{part}");
                assert_eq!(image.0.pointer(part), by_symbols.0.pointer(part), "{part} of {name}, {flags:?}");
            }
        }
    }
}

// COUNT-1: of two libraries that both define malloc the first one serves; the other is named and counts nothing.
#[test]
fn of_two_preloaded_allocators_the_first_serves() {
    let program = portable(Path::new("cc"), &[]);
    for [first, second] in [[JEMALLOC, TCMALLOC], [TCMALLOC, JEMALLOC], [MIMALLOC, JEMALLOC]] {
        let both = format!("{} {}", first.path().display(), second.path().display());
        let mut command = Command::new(&program);
        let mut victim = Running::start(command.args(first.arguments).arg("wait").env("LD_PRELOAD", &both));
        assert_eq!(victim.read(1), b".");
        let pid = victim.pid();
        let (ended, document) = Attached::until_the_end_of(victim);
        let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
        let image = document.image(pid, "portable");
        assert_functions(&truth, &image);
        assert_eq!(image.text("/allocator/kind"), first.kind);
        let beside = image.0["allocator"]["also_mapped"].to_string();
        assert!(beside.contains(second.kind) && beside.contains("libc.so.6 (glibc"), "{beside}");
    }
}

/// A copy of this machine's libc with a build id that no debug file has, and a copy of its loader.
struct Stripped {
    directory: TempDir,
    libc: PathBuf,
    loader: PathBuf,
}

impl Stripped {
    /// `loader` is what the copy of the loader is called: one of another name than loaders have is asked nothing.
    fn new(loader: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (libc, loader) = (directory.path().join("libc.so.6"), directory.path().join(loader));
        copy_executable(Path::new(LOADER), &loader);
        let told = locate(Path::new(LIBC));
        let id = told["allocator"]["build_id"].as_str().expect("a build id").to_owned();
        let digits = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).expect("a digit");
        let id: Vec<u8> = (0..id.len()).step_by(2).map(digits).collect();
        let mut bytes = fs::read(LIBC).expect("a libc");
        let at = bytes.windows(id.len()).position(|part| part == id).expect("its build id");
        bytes[at] ^= 0xff;
        fs::write(&libc, bytes).expect("a file");
        Self { directory, libc, loader }
    }

    /// What the loader is told to run a program with this libc.
    fn words(&self, program: &Path) -> [String; 3] {
        ["--library-path".to_owned(), self.directory.path().display().to_string(), program.display().to_string()]
    }

    fn is_stripped(&self) -> bool {
        locate(&self.libc)["allocator"]["located_by"] == "inferred"
    }
}

/// What is counted of a process and its allocator: not what took time, nor what the loader asks of the kernel.
const COUNTED: [&str; 18] = [
    "/funnel",
    "/functions",
    "/arena_sizes",
    "/sysmalloc_sizes",
    "/threshold",
    "/heap_events",
    "/crossings/calls",
    "/crossings/bytes",
    "/crossings/sizes",
    "/crossings/fallback_calls",
    "/syscalls/brk/by_origin/growth",
    "/syscalls/brk/by_origin/trim",
    "/syscalls/mmap/by_origin/crossing",
    "/syscalls/mmap/by_origin/fallback",
    "/syscalls/mmap/by_origin/arena_heap",
    "/syscalls/munmap/by_origin/chunk",
    "/syscalls/munmap/by_origin/arena_heap",
    "/syscalls/mremap/by_origin/chunk",
];

// COUNT-1, CROSS-1, THRESH-1: what is inferred stands for what symbols tell, in every number.
#[test]
fn a_stripped_libc_gives_the_same_funnel_as_one_with_symbols() {
    let stripped = Stripped::new("ld-linux-x86-64.so.2");
    assert!(stripped.is_stripped());
    // What these need from the kernel does not depend on where it lies.
    for (name, arguments) in [("sizes", &[][..]), ("trim", &["32"]), ("dynamic_threshold", &[])] {
        let program = victim::program(name);
        let named = record_program(&program, arguments);
        let words = stripped.words(&program);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let unnamed = record_program(&stripped.loader, &words);
        assert_eq!(unnamed.ended.code(), 0, "{name}: {}", unnamed.ended.stderr);
        let (_, by_symbols) = named.only();
        let truth = unnamed.truths.first().expect("an account");
        let inferred = unnamed.document.image(truth.pid, "ld-linux-x86-64.so.2");
        assert_eq!(by_symbols.text("/allocator/located_by"), "debug_file");
        assert_eq!(inferred.text("/allocator/located_by"), "inferred");
        assert_eq!(inferred.text("/allocator/version"), by_symbols.text("/allocator/version"));
        assert_eq!(Path::new(inferred.text("/allocator/path")), stripped.libc);
        inferred.assert_complete();
        for part in COUNTED {
            assert!(inferred.0.pointer(part).is_some(), "{part}");
            assert_eq!(inferred.0.pointer(part), by_symbols.0.pointer(part), "{part} of {name}");
        }
    }
}

// IDENT-1: a libc is known by what it defines, whatever it and the process's executable are called.
#[test]
fn a_libc_of_another_name_is_known_by_its_content() {
    let stripped = Stripped::new("start");
    let renamed = stripped.directory.path().join("own-c.so");
    fs::copy(&stripped.libc, &renamed).expect("a copy");
    let program = victim::program_with("portable", "portable", Path::new("cc"), &[]).expect("a compiler");
    let mut command = Command::new(&stripped.loader);
    // Preloaded it comes before the libc of the usual name, and everything binds to it.
    let mut victim = Running::start(
        command.arg("--preload").arg(&renamed).args(stripped.words(&program)).args(["alias", "multiply", "wait"]),
    );
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let ended = run_daemon(["locate", "--json", "--pid", &pid.to_string()]);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stderr));
    assert_eq!(document["allocator"]["kind"], "glibc", "{document}");
    let (ended, document) = Attached::until_the_end_of(victim);
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let image = document.image(pid, "start");
    assert_functions(&truth, &image);
    assert_eq!(Path::new(image.text("/allocator/path")), renamed);
}
