//! Names the stacks of real programs, whose registers and memory are read while they stand still.
#![cfg(target_arch = "x86_64")]

mod victim;

use std::path::Path;
use std::time::{Duration, Instant};

use malloc_daemon::symbols::{Limits, StackEnd, Symbolizer};
use victim::{Victim, assert_in_a_row, limits, line_of, names, stack_of};

const MMAP: i64 = 9;
const EXIT_GROUP: i64 = 231;

#[test]
fn a_program_without_frame_pointers_is_named_up_to_its_start() {
    let stack = stack_of("calls.c", "gcc", &["-O2", "-fomit-frame-pointer"], "nested");
    assert_in_a_row(&stack, &["stop_here", "third", "second", "first", "main"]);
    assert!(names(&stack).contains(&"raise"), "{:?}", names(&stack));
    let main = stack.frames.iter().position(|frame| frame.function.as_deref() == Some("main")).unwrap();
    let above = &stack.frames[main + 1..];
    assert!(above.iter().all(|frame| frame.module.is_some()), "{above:?}");
    assert_eq!(stack.end, StackEnd::Complete);
    assert!(stack.frames.iter().all(|frame| !frame.by_frame_pointer));
}

#[test]
fn other_ways_to_compile_give_the_same_calls() {
    let ways: [&[&str]; 4] = [
        &["-O2", "-fno-omit-frame-pointer"],
        &["-O2", "-fomit-frame-pointer", "-no-pie"],
        &["-O2", "-static"],
        &["-O0", "-g", "-gz=zlib"],
    ];
    for options in ways {
        let stack = stack_of("calls.c", "gcc", options, "nested");
        assert_in_a_row(&stack, &["stop_here", "third", "second", "first", "main"]);
        assert_eq!(stack.end, StackEnd::Complete, "{options:?}");
    }
}

#[test]
fn merged_calls_of_cpp_are_shown_with_their_lines() {
    let stack = stack_of("inlined.cc", "g++", &["-O2", "-g"], "");
    let wanted = ["outer::Box<long>::stop()", "merged_inner"];
    let outer = ["merged_outer", "outer::holder(int)", "main"];
    let frames = assert_in_a_row(&stack, &[&wanted[..], &outer[..]].concat());
    assert_eq!(frames.iter().map(|frame| frame.inlined).collect::<Vec<_>>(), [false, true, true, false, false]);
    for (frame, text) in frames[1..4].iter().zip(["of merged_inner", "of merged_outer", "of holder"]) {
        assert_eq!(frame.line, Some(line_of("inlined.cc", &format!("line {text}"))), "{frame:?}");
        assert_eq!(Path::new(frame.file.as_deref().unwrap()), victim::programs().join("inlined.cc"));
    }
    assert_eq!(frames[1].address, frames[3].address, "merged calls share the address");
    assert_eq!(stack.end, StackEnd::Complete);
}

#[test]
fn rust_names_are_readable_and_merged_calls_are_shown() {
    let stack = stack_of("program.rs", "rustc", &["--edition=2024", "-O", "-g"], "");
    let frames = assert_in_a_row(
        &stack,
        &["program::deep::innermost", "program::deep::merged", "program::outer", "program::main"],
    );
    assert_eq!(frames.iter().map(|frame| frame.inlined).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(frames[0].line, Some(line_of("program.rs", "super::raise(19)")));
    assert_eq!(stack.end, StackEnd::Complete);
}

#[test]
fn a_deep_recursion_is_cut_and_says_so() {
    let victim = Victim::start("calls.c", "gcc", &["-O1", "-fno-optimize-sibling-calls"], "recursive");
    let mut symbolizer = Symbolizer::new(limits());
    let stack = symbolizer.stack(&victim.take(64 << 10).sample());
    assert_eq!((stack.frames.len(), stack.end), (128, StackEnd::FrameLimit));
    let mut symbolizer = Symbolizer::new(Limits { frames: 5000, ..limits() });
    let stack = symbolizer.stack(&victim.take(64 << 10).sample());
    assert_eq!(names(&stack).iter().filter(|&&name| name == "recursive").count(), 1001);
    assert_eq!(stack.end, StackEnd::Complete);
    let stack = symbolizer.stack(&victim.take(1 << 10).sample());
    assert_eq!(stack.end, StackEnd::StackCut);
    assert!((10..128).contains(&stack.frames.len()), "{}", stack.frames.len());
    victim.end();
}

#[test]
fn a_realigned_stack_does_not_end_the_walk() {
    let stack = stack_of("calls.c", "gcc", &["-O2"], "realigned");
    assert_in_a_row(&stack, &["stop_here", "third", "realigned", "main"]);
    assert_eq!(stack.end, StackEnd::Complete);
}

#[test]
fn below_a_signal_handler_the_interrupted_function_is_named() {
    let stack = stack_of("calls.c", "gcc", &["-O2", "-g"], "signal");
    assert_in_a_row(&stack, &["stop_here", "handler"]);
    let frames = assert_in_a_row(&stack, &["interrupted", "main"]);
    assert_eq!(frames[0].line, Some(line_of("calls.c", "*(volatile int *)8")));
    assert_eq!(stack.end, StackEnd::Complete);
}

#[test]
fn code_a_program_wrote_has_the_name_it_wrote_down() {
    let stack = stack_of("calls.c", "gcc", &["-O2", "-fno-omit-frame-pointer"], "written");
    let frames = assert_in_a_row(&stack, &["stop_here", "written_function", "run_written_code"]);
    assert_eq!(frames[1].module.as_deref(), Some("[anonymous]"));
    assert_eq!(frames.iter().map(|frame| frame.by_frame_pointer).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(stack.end, StackEnd::Complete);
}

#[test]
fn a_file_without_rules_is_walked_by_frame_pointer_or_not_at_all() {
    let no_rules = ["-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let with = [&no_rules[..], &["-fno-omit-frame-pointer"]].concat();
    let stack = stack_of("calls.c", "gcc", &with, "nested");
    let frames = assert_in_a_row(&stack, &["stop_here", "third", "second", "first", "main"]);
    assert!(frames[1..].iter().all(|frame| frame.by_frame_pointer));
    let without = [&no_rules[..], &["-fomit-frame-pointer"]].concat();
    let stack = stack_of("calls.c", "gcc", &without, "nested");
    assert!(matches!(&stack.end, StackEnd::NoUnwindInformation { module } if module.ends_with("/victim")), "{stack:?}");
    assert_eq!(names(&stack).last(), Some(&"stop_here"));
}

#[test]
fn a_malloc_that_maps_is_named_from_the_system_call_to_main() {
    let mut victim = Victim::start("calls.c", "gcc", &["-O2"], "allocate");
    victim.run_to_syscall(MMAP);
    let stack = Symbolizer::new(limits()).stack(&victim.take(64 << 10).sample());
    assert_in_a_row(&stack, &["malloc", "allocate", "main"]);
    assert_eq!(stack.end, StackEnd::Complete);
    victim.end();
}

#[test]
fn every_instruction_of_a_free_that_unmaps_leads_to_main() {
    // Bound at the start: the code that binds `free` at its first call needs rbx, which a sample does not hold.
    let mut victim = Victim::start("calls.c", "gcc", &["-O2", "-Wl,-z,now"], "allocate");
    victim.run_to_syscall(MMAP);
    let mut symbolizer = Symbolizer::new(limits());
    let mut seen = std::collections::BTreeSet::new();
    let mut steps = 0;
    // Through the rest of malloc and all of free; the first is left, the second entered, by then.
    while steps < 2000 {
        let stack = symbolizer.stack(&victim.take(16 << 10).sample());
        assert!(names(&stack).contains(&"main"), "step {steps}: {stack:#?}");
        assert_eq!(stack.end, StackEnd::Complete, "step {steps}");
        if seen.contains("free") && names(&stack).first() == Some(&"allocate") {
            break;
        }
        seen.extend(stack.frames.into_iter().filter_map(|frame| frame.function));
        victim.step();
        steps += 1;
    }
    assert!(seen.contains("malloc") && seen.contains("free") && steps > 50, "{steps} {seen:?}");
    victim.run_to_syscall(EXIT_GROUP);
    victim.end();
}

#[test]
fn a_process_that_was_noted_is_named_after_its_end() {
    let victim = Victim::start("calls.c", "gcc", &["-O2", "-g"], "nested");
    let mut symbolizer = Symbolizer::new(limits());
    symbolizer.note_process(victim.id());
    let taken = victim.take(64 << 10);
    victim.end();
    symbolizer.forget(taken.pid);
    let stack = symbolizer.stack(&taken.sample());
    assert_in_a_row(&stack, &["stop_here", "third", "second", "first", "main"]);
    let stack = Symbolizer::new(limits()).stack(&taken.sample());
    assert_eq!((stack.frames.len(), stack.end), (1, StackEnd::ProcessGone));
    assert_eq!(stack.frames[0].address, taken.ip);
}

#[test]
fn files_that_rest_are_let_go_and_opened_again() {
    let victim = Victim::start("calls.c", "gcc", &["-O2", "-g"], "nested");
    let mut symbolizer = Symbolizer::new(limits());
    let taken = victim.take(64 << 10);
    let first = symbolizer.stack(&taken.sample());
    let after = |seconds| Instant::now() + Duration::from_secs(seconds);
    assert!(!symbolizer.let_go(after(20)), "they may be needed soon");
    let open = symbolizer.usage().1;
    assert!(symbolizer.let_go(after(40)) && open > 0);
    assert_eq!((symbolizer.usage().1, symbolizer.usage().2), (open, 0));
    assert_eq!(symbolizer.stack(&taken.sample()), first);
    symbolizer.let_go(after(100));
    assert_eq!(symbolizer.usage().1, 0, "a deleted file would hold its blocks");
    assert_eq!(symbolizer.stack(&taken.sample()), first);
    victim.end();
}

#[test]
fn nothing_is_kept_beyond_the_limits() {
    let limits = Limits { modules: 2, table_bytes: 64 << 10, processes: 1, ..limits() };
    let mut symbolizer = Symbolizer::new(limits);
    for _ in 0..3 {
        let victim = Victim::start("calls.c", "gcc", &["-O2", "-g"], "nested");
        let stack = symbolizer.stack(&victim.take(64 << 10).sample());
        assert!(!stack.frames.is_empty());
        let (processes, modules, bytes) = symbolizer.usage();
        assert!(processes <= 1 && modules <= 2 && bytes <= 64 << 10, "{processes} {modules} {bytes}");
        victim.end();
    }
}
