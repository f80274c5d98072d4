//! The report that `record` prints: one block a process, the funnel first.

mod chunks;
mod cost;
mod functions;
mod funnel;
mod heap;
mod histogram;
mod history;
mod incidents;
mod losses;
mod meaning;
mod syscalls;
mod table;

use std::cmp::Reverse;
use std::fmt::Write;
use std::sync::Arc;

use crate::aggregate::model::{End, Process, Snapshot, Threshold, ThresholdMode, ThresholdSource};
use crate::report::escape::printable;
use crate::report::units::{bytes, count, exact_bytes};

pub use self::history::account;
pub use self::table::table;

/// Blocks of one report; the others are in the JSON.
pub const BLOCKS: usize = 20;

/// Characters of a name that a process chose; the kernel keeps 15 bytes of a `comm`.
const NAME: usize = 32;

/// How to print; the command decides by its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether to emphasize by colour (ANSI SGR).
    pub color: bool,
    /// Columns of the terminal; sentences are broken there, tables are not.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self { color: false, width: 80 }
    }
}

/// What a piece of text is, for its colour.
#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Heading,
    Bar,
    Quiet,
    Warning,
}

impl Style {
    fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Heading => "1",
            Tone::Bar => "36",
            Tone::Quiet => "2",
            Tone::Warning => "33",
        };
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Breaks a sentence at the width of the terminal, each line indented.
    fn sentence(self, out: &mut String, indent: usize, tone: Tone, text: &str) {
        let room = self.width.max(indent + 40) - indent;
        let mut line = String::new();
        let mut flush = |line: &mut String| {
            if !line.is_empty() {
                push(out, &format!("{:indent$}{}", "", self.paint(tone, line)));
                line.clear();
            }
        };
        for word in text.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                flush(&mut line);
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        flush(&mut line);
    }
}

/// The whole report: busy processes first, what was lost last.
#[must_use]
pub fn render(snapshot: &Snapshot, style: Style) -> String {
    let mut out = String::new();
    let (mut busy, idle): (Vec<&Arc<Process>>, Vec<_>) =
        snapshot.processes.iter().partition(|process| anything_counted(process) || is_all_there_is(snapshot, process));
    busy.sort_by_key(|process| (Reverse(weight(process)), process.id, process.image_ns));
    for process in busy.iter().take(BLOCKS) {
        block(&mut out, snapshot, process, style);
        out.push('\n');
    }
    if busy.is_empty() {
        push(&mut out, "Nothing was counted.");
    }
    if busy.len() > BLOCKS {
        push(&mut out, &format!("and {} more, in the JSON report", count((busy.len() - BLOCKS) as u64)));
    }
    match idle.len() {
        0 => {}
        1 => push(&mut out, "1 process in which nothing was counted is left out."),
        n => push(&mut out, &format!("{} processes in which nothing was counted are left out.", count(n as u64))),
    }
    while out.ends_with("\n\n") {
        out.pop();
    }
    losses::of_all(&mut out, snapshot, style);
    out
}

fn block(out: &mut String, snapshot: &Snapshot, process: &Process, style: Style) {
    funnel::render(out, process, style);
    notes(out, process, style);
    cost::render(out, process, style);
    if let Some(functions) = &process.functions {
        let sizes = functions.iter().filter_map(|function| function.sizes.as_deref()).flatten();
        histogram::render(out, "Sizes requested", sizes, style);
    }
    if let Some(crossings) = &process.crossings {
        histogram::render(out, "Sizes of crossings", crossings.sizes.iter(), style);
    }
    functions::render(out, process, style);
    threshold(out, process.threshold.as_ref(), style);
    chunks::render(out, process, style);
    heap::render(out, process, style);
    meaning::render(out, snapshot, process, style);
    heap_events(out, process, style);
    incidents::render(out, snapshot, process, style);
    syscalls::render(out, &process.syscalls, style);
    losses::of_process(out, process, style);
}

/// What a reader must know about a block before reading it.
fn notes(out: &mut String, process: &Process, style: Style) {
    if !process.from_start {
        style.sentence(out, 2, Tone::Quiet, "observed from the middle of its life: what it did before is not counted");
    }
    match process.ended {
        Some(End::Replaced) => {
            style.sentence(
                out,
                2,
                Tone::Quiet,
                "this program was replaced by another one (exec), which has its own block",
            );
        }
        Some(End::OomKilled) => {
            style.sentence(out, 2, Tone::Warning, "the kernel killed this process because memory ran out");
        }
        Some(End::Exited) | None => {}
    }
}

fn threshold(out: &mut String, threshold: Option<&Threshold>, style: Style) {
    heading(out, "Threshold", style);
    let Some(threshold) = threshold else {
        push(out, "  not measured");
        return;
    };
    let mode = match threshold.mode {
        ThresholdMode::Dynamic => "dynamic",
        ThresholdMode::Pinned => "pinned",
        ThresholdMode::Unknown => "dynamic or pinned: not known",
    };
    let source = match threshold.source {
        ThresholdSource::Memory => "the process's memory",
        ThresholdSource::Event => "the last slow-path event",
    };
    let raises = match threshold.raises {
        0 => "never seen to rise".to_owned(),
        1 => "raised once".to_owned(),
        n => format!("raised {} times", count(n)),
    };
    push(out, &format!("  mmap from {}, {mode}, {raises}", exact_bytes(threshold.bytes)));
    push(out, &format!("  trim from {}", exact_bytes(threshold.trim_bytes)));
    let chunks = if threshold.mmapped_chunks == 1 { "chunk" } else { "chunks" };
    push(
        out,
        &format!(
            "  {} mapped {chunks} ({}); read from {source}",
            count(threshold.mmapped_chunks),
            bytes(threshold.mmapped_bytes)
        ),
    );
}

/// What the allocator's static probes told, as far as anything happened.
fn heap_events(out: &mut String, process: &Process, style: Style) {
    let told = process.heap_events.iter().flatten();
    let told: Vec<String> = told
        .filter_map(|(event, times)| {
            let times = times.filter(|times| *times != 0)?;
            Some(format!("{} {}", event.name().replace('_', " "), count(times)))
        })
        .collect();
    if !told.is_empty() {
        heading(out, "Arenas and heaps", style);
        style.sentence(out, 2, Tone::Quiet, &told.join(", "));
    }
}

/// Starts a section of a block.
fn heading(out: &mut String, title: &str, style: Style) {
    out.push('\n');
    push(out, &style.paint(Tone::Heading, title));
}

/// The first line of a block: who, and above which columns the numbers stand; `calls` ends at `column`.
fn heading_line(out: &mut String, title: &str, column: usize, style: Style) {
    let room = column.saturating_sub(title.chars().count()).max(7);
    push(out, &style.paint(Tone::Heading, &format!("{title}{:>room$}{:>11}", "calls", "bytes")));
}

/// One line, without blanks at its end.
fn push(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", line.trim_end());
}

/// The name as it may be shown.
fn name(process: &Process) -> String {
    printable(&process.comm, NAME)
}

/// The calls of the highest level that is measured: what processes are ordered by.
fn weight(process: &Process) -> u64 {
    let funnel = &process.funnel;
    let s = &process.syscalls;
    funnel.call.or(funnel.arena).or(funnel.sysmalloc).map_or_else(
        || [&s.mmap, &s.munmap, &s.mremap, &s.brk].iter().fold(0u64, |sum, call| sum.saturating_add(call.calls)),
        |level| level.calls,
    )
}

/// Who asks for one process wants to see its heap even when nothing happened.
fn is_all_there_is(snapshot: &Snapshot, process: &Process) -> bool {
    snapshot.processes.len() == 1 && process.heap.is_some()
}

fn anything_counted(process: &Process) -> bool {
    let funnel = &process.funnel;
    let levels = [funnel.call, funnel.arena, funnel.sysmalloc, funnel.brk, funnel.mmap];
    let s = &process.syscalls;
    levels.into_iter().flatten().any(|level| level.calls > 0)
        || process.functions.iter().flatten().any(|function| function.calls > 0 || function.failed > Some(0))
        || [&s.mmap, &s.munmap, &s.mremap, &s.brk].iter().any(|call| call.calls > 0)
        || process.losses.iter().any(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests;
