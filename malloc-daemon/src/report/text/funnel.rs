//! The first picture: each level of the way from call to kernel, with a bar as long as it is busy.

use malloc_common::abi::Origin;
use malloc_common::depth::Depth;

use super::{Style, Tone, heading_line, name, push};
use crate::aggregate::model::{Count, Estimate, Process};
use crate::report::escape::printable;
use crate::report::units::{bar, bytes, count, milliseconds, share};

/// Characters of the longest bar.
const CELLS: usize = 24;
/// Characters before the bar.
const LABEL: usize = 14;

/// Writes the picture and, below it, why a level is missing.
pub(super) fn render(out: &mut String, process: &Process, style: Style) {
    let funnel = &process.funnel;
    heading_line(out, &title(process), LABEL + CELLS + 13, style);
    let levels = [("call", funnel.call), ("arena", funnel.arena), ("sysmalloc", funnel.sysmalloc)];
    let longest = funnel
        .call
        .map(|level| level.calls)
        .or_else(|| levels.iter().filter_map(|(_, level)| level.map(|level| level.calls)).max())
        .unwrap_or(0);
    for (label, level) in levels {
        let whole = funnel.call.filter(|_| label != "call").map(|call| call.calls);
        line(out, &format!("  {label}"), level, Some(longest), whole, style);
    }
    for (label, estimate) in [("call", funnel.call_estimate), ("arena", funnel.arena_estimate)] {
        if let Some(estimate) = estimate {
            style.sentence(out, 2, Tone::Quiet, &estimated(label, &estimate));
        }
    }
    line(out, "    brk", funnel.brk, None, None, style);
    mappings(out, process, style);
    reasons(out, process, style);
}

/// `call is estimated: 1.3 % of the time was counted; 95 % sure: 12,345 to 23,456 calls`
fn estimated(label: &str, estimate: &Estimate) -> String {
    let covered = f64::from(estimate.coverage_ppm) / 1e4;
    let sure = match estimate.calls_95 {
        Some((low, high)) => format!("95 % sure: {} to {} calls", count(low), count(high)),
        None => "too little to say how sure".to_owned(),
    };
    format!("{label} is estimated: {covered:.1} % of the time was counted; {sure}")
}

/// `sqlite3 (4242)  glibc 2.36  0.86 s`
fn title(process: &Process) -> String {
    let mut title = format!("{} ({})", name(process), process.id.pid);
    if let Some(allocator) = &process.allocator {
        title.push_str("  ");
        title.push_str(&printable(&allocator.kind, 24));
        if let Some(version) = &allocator.version {
            title.push(' ');
            title.push_str(&printable(version, 24));
        }
    }
    title.push_str("  ");
    title.push_str(&milliseconds(process.observed_ms));
    title
}

/// The allocator's mappings by why it made them; crossings always, the rare ones only when there are any.
fn mappings(out: &mut String, process: &Process, style: Style) {
    let origin = |wanted| {
        process.syscalls.mmap.by_origin.iter().find(|(origin, _)| *origin == wanted).and_then(|(_, count)| *count)
    };
    let crossings = process.crossings.as_ref().map(|sized| sized.count).or_else(|| origin(Origin::MmapCrossing));
    let label = if crossings.is_some() { "    mmap  (crossings)" } else { "    mmap" };
    line(out, label, crossings, None, None, style);
    for (label, wanted) in
        [("    mmap  (fallback)", Origin::MmapFallback), ("    mmap  (arena heaps)", Origin::MmapArenaHeap)]
    {
        if let Some(count) = origin(wanted).filter(|count| count.calls > 0) {
            line(out, label, Some(count), None, None, style);
        }
    }
}

fn line(out: &mut String, label: &str, level: Option<Count>, longest: Option<u64>, whole: Option<u64>, style: Style) {
    let Some(level) = level else {
        push(out, &format!("{label:<LABEL$}{}", style.paint(Tone::Quiet, "not measured")));
        return;
    };
    let blocks = longest.map(|longest| bar(level.calls, longest, CELLS)).unwrap_or_default();
    let width = (LABEL + CELLS).saturating_sub(label.chars().count().max(LABEL));
    let padding = width.saturating_sub(blocks.chars().count());
    let share = whole.and_then(|whole| share(level.calls, whole)).map(|share| format!("  {share}")).unwrap_or_default();
    push(
        out,
        &format!(
            "{label:<LABEL$}{}{:padding$}{:>13}{:>11}{share}",
            style.paint(Tone::Bar, &blocks),
            "",
            count(level.calls),
            bytes(level.bytes)
        ),
    );
}

/// Says once why levels are not measured.
fn reasons(out: &mut String, process: &Process, style: Style) {
    for (depth, why) in &process.not_measured {
        let why = printable(why, 200);
        style.sentence(out, 2, Tone::Quiet, &format!("not measured: {depth}, because {why}"));
    }
    if process.funnel.call.is_some() {
        for one in process.allocator.iter().flat_map(|allocator| &allocator.not_counted) {
            style.sentence(out, 2, Tone::Quiet, &format!("not counted: {}", printable(one, 200)));
        }
    }
    let missing: Vec<&str> = [Depth::Sysmalloc, Depth::Arena, Depth::Call]
        .into_iter()
        .filter(|depth| *depth > process.depth)
        .filter(|depth| !process.not_measured.iter().any(|(other, _)| other == depth))
        .map(Depth::name)
        .collect();
    let Some(deepest) = missing.last() else { return };
    let levels = missing.join(", ");
    let text = if process.not_measured.is_empty() {
        format!("not measured: {levels}, recorded at depth {}; --depth {deepest} measures it", process.depth)
    } else {
        format!("not measured: {levels}, above a level that cannot be measured or was not asked for")
    };
    style.sentence(out, 2, Tone::Quiet, &text);
}
