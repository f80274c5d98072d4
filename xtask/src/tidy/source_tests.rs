//! Tests of the rules over tokens.
use super::*;

const PURE: &str = "malloc-daemon/src/report/json.rs";
const SYSCALLS: &str = "malloc-daemon/src/probes/syscall.rs";

fn source(text: &str) -> Source {
    Source::parse(text).unwrap()
}

fn lines(violations: &[Violation]) -> Vec<usize> {
    violations.iter().map(|violation| violation.line).collect()
}

fn unsafe_lines(path: &str, text: &str) -> Vec<usize> {
    lines(&unsafety(path, text, &source(text)))
}

#[test]
fn a_pure_module_names_no_file_clock_or_runtime() {
    for text in [
        "use std::fs;",
        "use std::{fmt, fs::File};",
        "use std::{fmt, net::{IpAddr}};",
        "use tokio;",
        "fn f() { tokio::spawn(x); }",
        "fn f() { ::std::fs::read(p); }",
        "use aya::Ebpf;",
        "extern crate aya;",
        "fn f() { let t = Instant::now(); }",
        "fn f() { std::time::Instant::now() }",
        "use std::time::{Duration, SystemTime};",
        "fn f(t: SystemTime) {}",
        "macro!(std::fs::read(p));",
    ] {
        assert_eq!(lines(&pure(PURE, &source(text))), [1], "{text}");
    }
}

#[test]
fn a_pure_module_may_speak_of_files_and_take_instants() {
    let text = "//! Like tokio and std::fs.\nuse std::{fmt, time::Instant};\n\
                fn f(aya: u8, now: Instant) -> &'static str { let tokio = aya; fs::x(); \"std::fs SystemTime\" }\n\
                use self::aya as bpf; use aya_ebpf::x;";
    assert!(pure(PURE, &source(text)).is_empty());
}

#[test]
fn other_modules_and_tests_of_pure_ones_may_read_files() {
    let text = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
    assert!(pure(PURE, &source(text)).is_empty());
    assert!(pure("malloc-daemon/src/host/maps.rs", &source("use std::fs;")).is_empty());
}

#[test]
fn code_after_a_test_item_is_checked_again() {
    let text = "#[cfg(test)]\nuse x::y;\nuse std::fs;\n#[test]\nfn t() -> [u8; 2] { a() }\nuse std::net;\n#[cfg(not(test))]\nuse tokio;";
    assert_eq!(lines(&pure(PURE, &source(text))), [3, 6, 8]);
}

#[test]
fn every_branch_of_a_nested_import_is_seen() {
    let text = "use a::{self, b::{c, d as e}, std};\nuse std::{\n    a::{b, c},\n    fs::{self, File},\n};\nfn f() { std::net::x() }";
    assert_eq!(lines(&pure(PURE, &source(text))), [4, 4, 6]);
}

#[test]
fn confined_crates_stay_where_they_are() {
    assert_eq!(confined("malloc-daemon/src/host/mod.rs", &source("use aya::Ebpf;")).len(), 1);
    assert_eq!(confined("malloc-daemon/src/host/mod.rs", &source("use aya_obj::Object;")).len(), 1);
    assert_eq!(confined("malloc-daemon/src/host/mod.rs", &source("use serde::Serialize;")).len(), 1);
    assert!(confined("malloc-daemon/src/probes/object.rs", &source("use aya::Ebpf;")).is_empty());
    assert!(confined("malloc-daemon/src/collect/bpf.rs", &source("use aya::maps::Map;")).is_empty());
    assert!(confined("malloc-daemon/src/report/json.rs", &source("use serde::Serialize;")).is_empty());
    assert!(confined("malloc-ebpf/src/call.rs", &source("use aya_ebpf::macros::map;")).is_empty());
}

#[test]
fn only_commands_print() {
    let text = "fn f() {\n    println!(\"a\");\n    eprint!(\"b\");\n    let o = std::io::stdout();\n}";
    assert_eq!(lines(&printing("malloc-daemon/src/daemon.rs", &source(text))), [2, 3, 4]);
    for path in
        ["malloc-daemon/src/command/top.rs", "malloc-daemon/src/main.rs", "xtask/src/run.rs", "tests/kernel/src/lib.rs"]
    {
        assert!(printing(path, &source(text)).is_empty(), "{path}");
    }
}

#[test]
fn talk_of_printing_is_no_printing() {
    let text = "// println!(\"a\")\nfn f(stdout: u8) { writeln!(out, \"println!\"); c.stdout(Stdio::null()) }";
    assert!(printing("malloc-daemon/src/daemon.rs", &source(text)).is_empty());
}

#[test]
fn unsafe_outside_its_places_is_reported_even_when_justified() {
    assert_eq!(unsafe_lines("malloc-daemon/src/daemon.rs", "// SAFETY: no\nfn f() { unsafe { g() } }"), [2]);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    assert_eq!(unsafe_lines(SYSCALLS, "fn f() {\n    unsafe { g() }\n}"), [2]);
    assert!(
        unsafe_lines(SYSCALLS, "fn f() {\n    // SAFETY: g has no precondition.\n    unsafe { g() }\n}").is_empty()
    );
    assert!(unsafe_lines(SYSCALLS, "// SAFETY: plain data.\nunsafe impl Pod for A {}").is_empty());
    assert_eq!(unsafe_lines(SYSCALLS, "// SAFETY: a\nlet a;\nlet b;\nlet c;\nlet d;\nunsafe { g() }"), [6]);
}

#[test]
fn a_long_safety_comment_counts_as_one() {
    let text = "// SAFETY: one,\n// two,\n// three,\n// four.\nlet a =\n    unsafe { g() };";
    assert!(unsafe_lines(SYSCALLS, text).is_empty());
}

#[test]
fn an_unsafe_attribute_needs_no_comment_but_its_place() {
    let text = "#[unsafe(no_mangle)]\nfn f() {}";
    assert!(unsafe_lines("malloc-ebpf/src/main.rs", text).is_empty());
    assert_eq!(unsafe_lines("malloc-daemon/src/daemon.rs", text), [1]);
}

#[test]
fn test_text_keeps_the_lines_of_test_items_only() {
    let text = "// COUNT-1\nfn f() {}\n#[cfg(test)]\nmod tests {\n    // COUNT-2\n}\n// COUNT-3\n";
    let kept = source(text).test_text("malloc-common/src/tracker.rs", text);
    assert!(kept.contains("COUNT-2") && !kept.contains("COUNT-1") && !kept.contains("COUNT-3"), "{kept}");
    assert!(source(text).test_text("tests/kernel/src/lib.rs", text).contains("COUNT-1"));
}

#[test]
fn what_is_not_rust_is_refused_at_its_line() {
    assert_eq!(Source::parse("fn a() {}\nfn b( {\n").err(), Some(2));
}
