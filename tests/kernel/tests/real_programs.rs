//! Proves the counts on programs that nobody wrote for these tests.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::daemon::{Recording, record_prepared};
use kernel_tests::document::Image;
use kernel_tests::process::run;
use kernel_tests::truth::{Row, Truth};
use kernel_tests::victim;

const SQL: &str = "create table t(a integer primary key, b text, c int);
    with recursive n(i) as (select 1 union all select i+1 from n where i < 50000)
        insert into t select i, printf('row %d', i), i * 7919 % 50021 from n;
    create index x on t(c); select count(*), sum(c) from t where c > 100;";

const JSON_WORK: &str = "import json
d = [{'k%d' % i: list(range(i % 50)), 's': 'x' * (i % 300)} for i in range(3000)]
print(json.loads(json.dumps(d)) == d)";

/// Runs the program at fixed addresses: hashes of addresses would change what it allocates.
fn record_still(program: &Path, arguments: &[&str]) -> Recording {
    let setarch = PathBuf::from("/usr/bin/setarch");
    let mut all = vec!["-R", program.to_str().expect("UTF-8")];
    all.extend(arguments);
    let recording = record_prepared(&setarch, &all, |command| {
        command.env("PYTHONHASHSEED", "0");
    });
    assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
    recording.document.assert_complete();
    recording
}

/// The image of that program; it must be the only one of its name that allocates. (A compiler's driver also
/// appears as the child that is about to start the next program.)
fn image(recording: &Recording, comm: &str) -> Image {
    let allocates = |image: &Image| image.comm() == comm && image.number("/funnel/call/calls") > 0;
    let mut images: Vec<_> = recording.document.images().into_iter().filter(allocates).collect();
    assert_eq!(images.len(), 1, "images of {comm}");
    images.remove(0)
}

/// COUNT-1: two runs of a deterministic program have the same calls, bytes and buckets. Then what holds in
/// each: parts and wholes agree, and each step of the funnel is no wider than what leads to it.
fn assert_repeatable(program: &Path, arguments: &[&str], comms: &[&str]) {
    let runs = [record_still(program, arguments), record_still(program, arguments)];
    for comm in comms {
        let images = runs.each_ref().map(|recording| image(recording, comm));
        assert_eq!(images[0].functions(), images[1].functions(), "{comm}");
        for image in &images {
            image.assert_complete();
            image.assert_sums();
            assert_funnel(image);
        }
    }
}

fn assert_funnel(image: &Image) {
    let calls = |level: &str| image.number(&format!("/funnel/{level}/calls"));
    let functions = image.functions();
    let over_aligned: u64 = ["memalign", "aligned_alloc", "posix_memalign", "valloc", "pvalloc"]
        .iter()
        .filter_map(|name| functions.get(*name))
        .map(|row| row.calls)
        .sum();
    // A thread's first call also allocates its cache (one more each), an over-aligned one may try twice,
    // and a request that failed in one arena tries another.
    let threads = image.number("/syscalls/mmap/by_origin/thread_stack") + 1;
    let most = calls("call") + over_aligned + threads + image.number("/syscalls/mmap/failed");
    assert!(calls("arena") <= most, "arena {} of at most {most}", calls("arena"));
    assert!(calls("sysmalloc") <= calls("arena"), "{}: sysmalloc", image.comm());
    assert!(calls("sysmalloc") > 0, "{}: a program that runs needs a heap", image.comm());
}

fn found(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH");
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file()).expect(name)
}

#[test]
fn two_runs_of_sqlite_agree() {
    assert_repeatable(&found("sqlite3"), &[":memory:", SQL], &["sqlite3"]);
}

#[test]
fn two_runs_of_python_agree() {
    // The program itself, not a script in front of it.
    let python = run(Command::new("python3").args(["-c", "import sys; print(sys.executable)"])).stdout;
    let python = PathBuf::from(python.trim());
    let arguments = ["-S", "-c", JSON_WORK];
    // Its compiled modules are written by the first run.
    assert!(run(Command::new(&python).args(arguments)).status.success());
    let comm = python.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    assert_repeatable(&python, &arguments, &[&comm]);
}

#[test]
fn two_runs_of_the_compiler_agree_in_each_of_its_processes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = directory.path().join("small.c");
    std::fs::write(&source, "#include <stdlib.h>\nint f(int n) { return n ? f(n - 1) + abs(n) : 0; }\n")
        .expect("a source");
    let object = directory.path().join("small.o");
    let arguments = ["-O2", "-c", source.to_str().expect("UTF-8"), "-o", object.to_str().expect("UTF-8")];
    assert_repeatable(&found("gcc"), &arguments, &["gcc", "cc1", "as"]);
}

// COUNT-1, by an oracle that shares nothing with the daemon: a preloaded library counts the same calls.
#[test]
fn the_daemon_and_the_preloaded_oracle_agree_on_sqlite() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = directory.path().join("interposed");
    let ended = run(Command::new("setarch")
        .arg("-R")
        .arg(found("sqlite3"))
        .args([":memory:", SQL])
        .env("LD_PRELOAD", victim::interposer())
        .env("INTERPOSE_FILE", &report));
    assert!(ended.status.success(), "{}", ended.stderr);
    let text = std::fs::read_to_string(&report).expect("the interposer's account");
    let oracle = Truth::parse(text.lines().last().expect("an account"));
    let seen = image(&record_still(&found("sqlite3"), &[":memory:", SQL]), "sqlite3").functions();
    let requests = |functions: &BTreeMap<String, Row>| -> BTreeMap<String, Row> {
        functions
            .iter()
            .filter(|(name, row)| *name != "free" && row.calls > 0)
            .map(|(n, r)| (n.clone(), r.clone()))
            .collect()
    };
    assert_eq!(requests(&oracle.functions), requests(&seen));
    // Libraries still free after the oracle has reported.
    assert!(seen["free"].calls >= oracle.functions["free"].calls);
}
