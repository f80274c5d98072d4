//! One process whole, as lines of `top`.

use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};

use crate::report::json::document::{Bucket, OneProcess, Process};
use crate::report::printable;
use crate::report::units::{bar, bytes, count, exact_bytes, milliseconds};

/// Cells of the longest bar.
const BAR: usize = 32;

/// Everything there is to say, a line each; the drawing breaks long ones.
pub fn lines(one: &OneProcess<'_>) -> Vec<Line<'static>> {
    let process = &one.process;
    let mut out = vec![heading(&format!("{} ({})", printable(&process.comm, 32), process.pid))];
    let state = process.ended.as_ref().map_or_else(String::new, |ended| format!(", ended: {}", printable(ended, 32)));
    let whole = if process.complete { "nothing is missing" } else { "incomplete, or estimated" };
    let seen = milliseconds(process.observed_ms);
    out.push(quiet(&format!("observed for {seen} at depth {}, {whole}{state}", printable(&process.depth, 16))));
    for lack in &process.not_measured {
        let why = printable(&lack.why, 200);
        out.push(quiet(&format!("depth {} is not measured: {why}", printable(&lack.depth, 16))));
    }
    for said in &process.explanation {
        out.push(Line::from(format!("- {}", printable(&said.text, 600))));
    }
    for what_if in &process.what_if {
        out.push(Line::from(format!("- {}: {}", printable(&what_if.setting, 120), printable(&what_if.text, 600))));
    }
    funnel(&mut out, process);
    threshold(&mut out, process);
    heap(&mut out, process);
    cost(&mut out, process);
    sizes(&mut out, process);
    out
}

fn funnel(out: &mut Vec<Line<'static>>, process: &Process<'_>) {
    let (call, arena) = (process.funnel.call, process.funnel.arena);
    let level = |level: crate::report::json::document::Level| (level.calls, level.bytes, level.estimate.is_some());
    let exact = |count: crate::report::json::document::Count| (count.calls, count.bytes, false);
    let levels = [
        ("calls", call.map(level)),
        ("_int_malloc", arena.map(level)),
        ("sysmalloc", process.funnel.sysmalloc.map(exact)),
        ("brk", process.funnel.brk.map(exact)),
        ("mmap", process.funnel.mmap.map(exact)),
    ];
    let most = levels.iter().filter_map(|(_, level)| Some(level.as_ref()?.0)).max().unwrap_or_default();
    out.extend([Line::default(), heading("From call to kernel")]);
    for (name, level) in levels {
        let Some((calls, sum, estimated)) = level else {
            out.push(Line::from(format!("  {name:<12} not measured")));
            continue;
        };
        let mark = if estimated { "~" } else { "" };
        let figures = format!("  {name:<12} {:>14} {:>11}  ", format!("{mark}{}", count(calls)), bytes(sum));
        out.push(Line::from(vec![Span::raw(figures), Span::raw(bar(calls, most, BAR)).cyan()]));
    }
    for (name, estimate) in [("calls", call.and_then(|l| l.estimate)), ("_int_malloc", arena.and_then(|l| l.estimate))]
    {
        let Some(estimate) = estimate else { continue };
        let sure = match estimate.interval_95 {
            Some([low, high]) => format!("95 times in 100 between {} and {}", count(low), count(high)),
            None => "too few windows to tell how sure".to_owned(),
        };
        let part = estimate.coverage * 100.0;
        out.push(quiet(&format!("  {name}: estimated, counted in {part:.1} % of the time; {sure}")));
    }
}

fn threshold(out: &mut Vec<Line<'static>>, process: &Process<'_>) {
    out.extend([Line::default(), heading("Threshold")]);
    let Some(threshold) = &process.threshold else {
        out.push(Line::from("  not measured"));
        return;
    };
    let rose = match threshold.raises {
        0 => "not seen to rise".to_owned(),
        1 => "raised once".to_owned(),
        times => format!("raised {} times", count(times)),
    };
    let mode = printable(&threshold.mode, 16);
    out.push(Line::from(format!("  mmap from {}, {mode}, {rose}", exact_bytes(threshold.bytes))));
    out.push(Line::from(format!("  trim from {}", exact_bytes(threshold.trim_bytes))));
    let (chunks, sum) = (count(threshold.mmapped_chunks), bytes(threshold.mmapped_bytes));
    out.push(Line::from(format!("  mapped chunks {chunks} ({sum})")));
    match &process.crossings {
        None => out.push(Line::from("  crossings not measured")),
        Some(all) => out.push(Line::from(format!("  crossings {} ({})", count(all.calls), bytes(all.bytes)))),
    }
}

fn heap(out: &mut Vec<Line<'static>>, process: &Process<'_>) {
    out.extend([Line::default(), heading("Heap")]);
    let Some(heap) = &process.heap else {
        let why = process.heap_unread.as_ref().map_or_else(String::new, |why| format!(": {}", printable(why, 200)));
        out.push(Line::from(format!("  not read{why}")));
        return;
    };
    let least = if heap.complete { "" } else { "at least " };
    out.push(Line::from(format!(
        "  held {}, retained {least}{}, at the tops {}",
        bytes(heap.system_bytes),
        bytes(heap.retained_bytes),
        bytes(heap.top_bytes)
    )));
}

fn cost(out: &mut Vec<Line<'static>>, process: &Process<'_>) {
    out.extend([Line::default(), heading("Cost of observing it")]);
    match &process.cost {
        None => out.push(Line::from("  not measured")),
        Some(cost) => {
            let share =
                cost.share.map_or_else(String::new, |share| format!(", {:.2} % of its CPU time", share * 100.0));
            out.push(Line::from(format!("  ~{:.0} ms{share}", cost.ms)));
        }
    }
}

/// Sizes at the highest level that is measured, by powers of two.
fn sizes(out: &mut Vec<Line<'static>>, process: &Process<'_>) {
    let called = process.functions.as_ref().map(|functions| {
        functions.iter().filter_map(|function| function.sizes.as_deref()).flatten().copied().collect::<Vec<_>>()
    });
    let levels = [
        ("Sizes requested", called),
        ("Sizes asked of _int_malloc", process.arena_sizes.clone()),
        ("Sizes asked of sysmalloc", process.sysmalloc_sizes.clone()),
    ];
    let measured = levels.into_iter().find_map(|(title, buckets)| Some((title, buckets?)));
    out.push(Line::default());
    let Some((title, buckets)) = measured else {
        out.extend([heading("Sizes"), Line::from("  not measured")]);
        return;
    };
    out.push(heading(title));
    let sums = powers(&buckets);
    let most = sums.values().copied().max().unwrap_or_default();
    for (lo, calls) in sums {
        let figures = format!("  from {:<10} {:>14}  ", bytes(lo), count(calls));
        out.push(Line::from(vec![Span::raw(figures), Span::raw(bar(calls, most, BAR)).cyan()]));
    }
}

fn powers(buckets: &[Bucket]) -> std::collections::BTreeMap<u64, u64> {
    let mut sums = std::collections::BTreeMap::new();
    for bucket in buckets {
        let power = bucket.lo.checked_ilog2().map_or(0, |log| 1 << log);
        let sum: &mut u64 = sums.entry(power).or_default();
        *sum = sum.saturating_add(bucket.calls);
    }
    sums
}

fn heading(text: &str) -> Line<'static> {
    Line::styled(text.to_owned(), Style::new().bold())
}

fn quiet(text: &str) -> Line<'static> {
    Line::styled(text.to_owned(), Style::new().dim())
}
