//! What the text report promises.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::aggregate::model::{Count, ProcessId};
use crate::report::escape::is_unsafe;
use crate::report::sample;

#[test]
fn a_fully_probed_process_opens_with_its_funnel() {
    insta::assert_snapshot!(render(&sample::snapshot(vec![sample::sqlite()]), Style::default()));
}

#[test]
fn a_level_that_is_not_measured_says_so_and_why() {
    let text = render(&sample::snapshot(vec![sample::at_depth_syscall()]), Style::default());
    insta::assert_snapshot!(text);
    assert_eq!(
        text.lines().filter(|line| line.trim().ends_with("  not measured") || *line == "  not measured").count(),
        6
    );
}

#[test]
fn a_loss_is_told_with_its_meaning() {
    insta::assert_snapshot!(render(&sample::lossy(), Style::default()));
}

#[test]
fn without_loss_there_is_no_section_of_losses() {
    assert!(!render(&sample::snapshot(vec![sample::sqlite()]), Style::default()).contains("Lost"));
}

#[test]
fn a_hostile_name_is_shown_not_obeyed() {
    let text = render(&sample::snapshot(vec![sample::hostile()]), Style::default());
    assert!(text.starts_with("\\x1b[2J\"}\\x0a\\u{202e}\\\\ (666)  glibc 2.36"), "{text}");
}

#[test]
fn colour_adds_nothing_but_colour() {
    let snapshot = sample::lossy();
    let plain = render(&snapshot, Style::default());
    let colored = render(&snapshot, Style { color: true, ..Style::default() });
    assert_ne!(plain, colored);
    let mut stripped = colored;
    for code in ["\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[33m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trimmed(&stripped), trimmed(&plain));
}

#[test]
fn rare_mappings_have_a_line_only_when_there_are_any() {
    let mut process = sample::sqlite();
    for (origin, count) in &mut process.syscalls.mmap.by_origin {
        if *origin == malloc_common::abi::Origin::MmapArenaHeap {
            *count = Some(Count { calls: 2, bytes: 134_217_728 });
        }
    }
    let text = render(&sample::snapshot(vec![process]), Style::default());
    assert!(text.contains("\n    mmap  (arena heaps)"));
    assert!(!text.contains("(fallback)"));
}

#[test]
fn the_busiest_come_first_and_the_rest_is_counted() {
    let processes = (0..25u32).map(|index| {
        let mut process = sample::sqlite();
        process.id = ProcessId { pid: 100 + index, start_ticks: 1 };
        process.funnel.call = Some(Count { calls: 1 + u64::from(index), bytes: 1 });
        process
    });
    let mut idle = sample::at_depth_syscall();
    idle.syscalls = Default::default();
    let text = render(&sample::snapshot(processes.chain([idle]).collect()), Style::default());
    assert!(text.starts_with("sqlite3 (124)"));
    assert!(text.contains("and 5 more, in the JSON report"));
    assert!(text.contains("1 process in which nothing was counted is left out."));
    assert!(!text.contains("java"));
    assert_eq!(text.matches("Functions").count(), BLOCKS);
}

#[test]
fn the_table_has_one_line_a_process() {
    let snapshot = sample::snapshot(vec![sample::at_depth_syscall(), sample::sqlite(), sample::hostile()]);
    insta::assert_snapshot!(table(&snapshot, 40, Style::default()));
}

#[test]
fn the_table_counts_what_it_leaves_out() {
    let snapshot = sample::snapshot(vec![sample::at_depth_syscall(), sample::sqlite()]);
    assert!(table(&snapshot, 1, Style::default()).contains("and 1 more"));
}

proptest! {
    #[test]
    fn no_name_brings_a_control_character_into_a_report(comm in any::<String>(), version in any::<String>(), why in any::<String>()) {
        let mut process = sample::sqlite();
        process.comm = comm.clone();
        process.not_measured = vec![(malloc_common::depth::Depth::Arena, why.clone())];
        if let Some(allocator) = process.allocator.as_mut().map(Arc::make_mut) {
            allocator.version = Some(version.clone());
            allocator.aliases = vec![("malloc".to_owned(), vec![version])];
        }
        let mut snapshot = sample::lossy();
        snapshot.processes = vec![Arc::new(process)];
        for probe in &mut snapshot.probes {
            probe.name.clone_from(&comm);
            if let crate::aggregate::model::Verdict::Broken(broken) = &mut probe.verdict {
                broken.clone_from(&why);
            }
        }
        for text in [render(&snapshot, Style::default()), table(&snapshot, 9, Style::default())] {
            prop_assert!(!text.chars().any(|letter| letter != '\n' && is_unsafe(letter)), "{}", text);
        }
    }

    #[test]
    fn any_counts_can_be_printed(calls in any::<u64>(), bytes in any::<u64>(), milliseconds in any::<u64>(), width in 0usize..300) {
        let mut process = sample::sqlite();
        process.observed_ms = milliseconds;
        process.funnel.call = Some(Count { calls, bytes });
        process.funnel.arena = Some(Count { calls: bytes, bytes: calls });
        for function in process.functions.iter_mut().flatten() {
            function.calls = calls;
            function.bytes = Some(bytes);
            for bucket in function.sizes.iter_mut().flatten() {
                bucket.calls = calls;
            }
        }
        for bucket in &mut process.syscalls.mmap.latency_ns {
            bucket.calls = calls;
        }
        let snapshot = sample::snapshot(vec![process]);
        let style = Style { color: true, width };
        prop_assert!(!render(&snapshot, style).is_empty() && !table(&snapshot, 9, style).is_empty());
    }
}
