//! Proves that the stack of a raise and of a crossing names the right function and line, whatever the program is.
#![cfg(feature = "real-kernel")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::daemon::{Serving, record_with};
use kernel_tests::process::{Running, until};
use kernel_tests::victim;
use serde_json::Value;

/// The interpreter of the system, which its headers belong to.
const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = "
import json, large, os, sys

def make_large():
    return large.make()

def drop_large():
    return large.drop()

mapped, freed = make_large(), drop_large()
print(json.dumps({'pid': os.getpid(), 'mapped': ['make', mapped], 'freed': ['drop', freed]}), flush=True)
sys.stdin.read()
";

/// The source of a victim, its way, and flags of the compiler.
fn plain(name: &str, flags: &[&str]) -> PathBuf {
    victim::program_with("call_stacks", name, Path::new("cc"), flags).unwrap_or_else(|error| panic!("{error}"))
}

/// A victim that did its work and waits, with what it says of itself.
struct Waiting {
    victim: Running,
    says: Value,
}

impl Waiting {
    fn start(command: &mut Command) -> Self {
        let mut victim = Running::start(command);
        let line = victim.read_line();
        let says = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}: {command:?}"));
        Waiting { victim, says }
    }

    fn pid(&self) -> u32 {
        u32::try_from(self.says["pid"].as_u64().expect("a pid")).expect("a pid")
    }

    /// Its raise and its crossing of 1 MiB, as soon as both are named: who freed, who mapped, and who mapped as the
    /// crossing has it.
    fn stacks(&self, serving: &Serving) -> [Value; 3] {
        until("its raise and its crossing are named", || {
            let raises = serving.get(&format!("/v1/raises?pid={}", self.pid())).json();
            let raises = raises["raises"].as_array()?.clone();
            let raise = raises.iter().find(|raise| raise["to_bytes"].as_u64() >= Some(1 << 20))?.clone();
            let crossings = serving.get(&format!("/v1/crossings?pid={}", self.pid())).json();
            let all = crossings["crossings"].as_array()?.clone();
            let crossing = all.into_iter().find(|one| one["mapped_bytes"].as_u64() >= Some(1 << 20))?;
            let stacks = [raise["freed_by"].clone(), raise["mapped_by"].clone(), crossing["stack"].clone()];
            stacks.iter().all(|stack| !stack.is_null()).then_some(stacks)
        })
    }

    /// What it says of this act: function and line.
    fn said(&self, act: &str) -> (String, u64) {
        let said = &self.says[act];
        (said[0].as_str().expect("a function").to_owned(), said[1].as_u64().expect("a line"))
    }

    /// The frame of the function that the victim names, on the line that it names: the first one that belongs neither
    /// to the allocator nor to what a language puts over it, so that no caller is missing.
    fn assert_names(&self, what: &str, stack: &Value, act: &str) {
        let (function, line) = self.said(act);
        let frames = frames(stack);
        let first = frames.iter().find(|frame| !is_allocation(frame));
        let first = first.unwrap_or_else(|| panic!("{what}: no caller in {stack}"));
        assert!(first.function.starts_with(&function), "{what}, {act}: {function} in {frames:#?}");
        assert_eq!(first.line, Some(line), "{what}, {act}: {frames:#?}");
    }
}

#[derive(Clone, Debug)]
struct Frame {
    function: String,
    file: String,
    line: Option<u64>,
    module: String,
    inlined: bool,
}

fn frames(stack: &Value) -> Vec<Frame> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let frames = stack["frames"].as_array().expect("frames").iter();
    let frame = |frame: &Value| Frame {
        function: text(&frame["function"]),
        file: text(&frame["file"]),
        line: frame["line"].as_u64(),
        module: text(&frame["module"]),
        inlined: frame["inlined"] == true,
    };
    frames.map(frame).collect()
}

/// Whether a frame is the C library's, or a language's way to it.
fn is_allocation(frame: &Frame) -> bool {
    let library = frame.module.contains("/libc.so") || frame.module.contains("/libstdc++");
    let rust = frame.file.contains("/library/alloc/") || frame.file.contains("/library/core/");
    library || rust || frame.function.starts_with("__rust") || frame.function.starts_with("__rdl")
}

fn has(stack: &Value, function: &str) -> bool {
    frames(stack).iter().any(|frame| frame.function == function)
}

// STACK-1: programs without and with frame pointers, with inlined functions, in Rust, and an interpreter with an extension in C.
#[test]
fn a_raise_and_a_crossing_name_the_function_and_the_line() {
    let module = victim::python_module(Path::new(PYTHON), "large_module", "large");
    let with_module = |command: &mut Command| {
        command.args(["-c", SCRIPT]).env("PYTHONPATH", &module);
    };
    let mut python = Command::new(PYTHON);
    with_module(&mut python);
    let programs: [(&str, Command, &str); 5] = [
        ("no frame pointers", Command::new(plain("call_stacks_bare", &["-O2", "-fomit-frame-pointer"])), "main"),
        ("frame pointers", Command::new(plain("call_stacks_framed", &["-O2", "-fno-omit-frame-pointer"])), "main"),
        ("C++", Command::new(victim::cpp_program("call_stacks_inlined")), "main"),
        ("Rust", Command::new(victim::rust_program("call_stacks_rust")), "call_stacks_rust::main"),
        ("Python", python, "Py_BytesMain"),
    ];
    let serving = Serving::start(&["--interval", "200ms"]);
    for (what, mut command, outermost) in programs {
        let victim = Waiting::start(&mut command);
        let [freed_by, mapped_by, crossing] = victim.stacks(&serving);
        victim.assert_names(what, &freed_by, "freed");
        victim.assert_names(what, &mapped_by, "mapped");
        victim.assert_names(what, &crossing, "mapped");
        for stack in [&freed_by, &mapped_by, &crossing] {
            assert!(stack["cut"].is_null(), "{what}: {stack}");
            assert!(frames(stack).iter().any(|frame| frame.function.starts_with(outermost)), "{what}: {stack}");
        }
        if what == "C++" {
            let inlined = frames(&freed_by).into_iter().find(|frame| frame.inlined).expect("an inlined frame");
            assert!(inlined.function.contains("Buffer<char>::release"), "{inlined:?}");
            assert!(frames(&freed_by).iter().any(|frame| frame.function.starts_with("store::clear(")), "{freed_by}");
        }
    }
}

// STACK-1, BOUND-1: 1,000 calls deep, a stack that is no stack, one that goes in a circle: the direct caller is there, what is
// missing is said, and the daemon goes on.
#[test]
fn deep_and_corrupt_stacks_are_bounded_and_marked() {
    const FRAMES: usize = 128;
    let serving = Serving::start(&["--interval", "200ms"]);
    let program = plain("call_stacks_framed", &["-O2", "-fno-omit-frame-pointer"]);
    for (way, number, says) in [
        ("deep", "16", "there are more frames than are shown"),
        ("deep", "2000", "the copied part of the stack ends"),
        ("corrupt", "0", "the code belongs to no file that is known"),
        ("circular", "0", "the copied part of the stack ends"),
    ] {
        let victim = Waiting::start(Command::new(&program).args([way, number]));
        let [freed_by, mapped_by, crossing] = victim.stacks(&serving);
        for (stack, act) in [(&freed_by, "freed"), (&mapped_by, "mapped"), (&crossing, "mapped")] {
            victim.assert_names(way, stack, act);
            assert!(frames(stack).len() <= FRAMES, "{way}: {stack}");
            assert_eq!(stack["cut"], says, "{way}: {stack}");
        }
        if way == "deep" {
            assert!(frames(&freed_by).iter().filter(|frame| frame.function == "deep").count() > 5, "{freed_by}");
        }
    }
}

// STACK-1: code that an interpreter wrote has the name that it wrote down, unless the file is not its own.
#[test]
fn code_that_a_program_wrote_is_named_by_its_own_map_alone() {
    let serving = Serving::start(&["--interval", "200ms"]);
    let program = plain("call_stacks_framed", &["-O2", "-fno-omit-frame-pointer"]);
    for (owner, named) in [("0", true), ("65534", false)] {
        let victim = Waiting::start(Command::new(&program).args(["generated", owner]));
        let map = format!("/tmp/perf-{}.map", victim.pid());
        assert!(fs::exists(&map).expect("a file or none"));
        let [freed_by, mapped_by, _] = victim.stacks(&serving);
        for (stack, act) in [(&freed_by, "freed"), (&mapped_by, "mapped")] {
            victim.assert_names("generated", stack, act);
            assert_eq!(has(stack, "script:handle_request"), named, "owner {owner}: {stack}");
            assert!(has(stack, "main"), "the stack goes on beyond it: {stack}");
        }
        let Waiting { mut victim, .. } = victim;
        victim.close_input();
        assert_eq!(victim.end().code(), 0);
        assert!(!fs::exists(&map).expect("a file or none"), "the victim takes its map away");
    }
}

// STACK-1, HONEST-1: a program that is over within a millisecond of its raise is named, or its stack is said to be cut;
// never is a frame made up.
#[test]
fn a_recorded_program_that_ends_at_once_is_named_or_its_stack_is_cut() {
    let program = plain("call_stacks_bare", &["-O2", "-fomit-frame-pointer"]);
    for _ in 0..5 {
        let recording = record_with("sysmalloc", &program, &[], |_| {});
        let raises = recording.document.0["raises"].as_array().expect("raises");
        assert_eq!(raises.len(), 1, "{raises:?}");
        for (stack, function) in [(&raises[0]["freed_by"], "drop_large"), (&raises[0]["mapped_by"], "make_large")] {
            let unnamed = frames(stack).iter().all(|frame| frame.function.is_empty());
            assert!(has(stack, function) || (unnamed && stack["cut"].is_string()), "{stack}");
        }
    }
}
