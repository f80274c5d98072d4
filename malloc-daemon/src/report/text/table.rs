//! One line a process, for a whole machine.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Style, Tone, anything_counted, losses, name, push, weight};
use crate::aggregate::model::{Count, Process, Snapshot};
use crate::report::units::{bytes, count};

/// The table of `record --all`: busy processes first, at most `rows`; what is not measured is a dash.
#[must_use]
pub fn table(snapshot: &Snapshot, rows: usize, style: Style) -> String {
    let mut out = String::new();
    let mut busy: Vec<&Arc<Process>> = snapshot.processes.iter().filter(|process| anything_counted(process)).collect();
    busy.sort_by_key(|process| (Reverse(weight(process)), process.id, process.image_ns));
    let shown = || busy.iter().take(rows);
    let width = shown().map(|process| name(process).chars().count()).max().unwrap_or(0).max(15);
    let title = format!(
        "{:>7}  {:<width$}  {:<9}{:>12}{:>14}{:>12}{:>10}{:>11}{:>12}",
        "PID", "COMM", "DEPTH", "CALLS/S", "CALLS", "SYSMALLOC", "BRK", "CROSSINGS", "THRESHOLD"
    );
    push(&mut out, &style.paint(Tone::Heading, &title));
    for process in shown() {
        let funnel = &process.funnel;
        let rate = funnel
            .call
            .and_then(|call| u128::from(call.calls).saturating_mul(1000).checked_div(u128::from(process.observed_ms)))
            .map(|rate| u64::try_from(rate).unwrap_or(u64::MAX));
        push(
            &mut out,
            &format!(
                "{:>7}  {:<width$}  {:<9}{:>12}{:>14}{:>12}{:>10}{:>11}{:>12}",
                process.id.pid,
                name(process),
                process.depth.name(),
                number(rate),
                calls(funnel.call),
                calls(funnel.sysmalloc),
                calls(funnel.brk),
                calls(process.crossings.as_ref().map(|crossings| crossings.count)),
                process.threshold.map_or_else(|| "-".to_owned(), |threshold| bytes(threshold.bytes))
            ),
        );
    }
    if busy.len() > rows {
        push(&mut out, &format!("and {} more, in the JSON report", count((busy.len() - rows) as u64)));
    }
    push(&mut out, &style.paint(Tone::Quiet, "-  not measured at this depth"));
    let incomplete = snapshot.processes.iter().filter(|process| !process.complete).count();
    if incomplete > 0 {
        let text = format!("{} of these processes have losses, named in the JSON report", count(incomplete as u64));
        push(&mut out, &style.paint(Tone::Warning, &text));
    }
    losses::of_all(&mut out, snapshot, style);
    out
}

fn calls(level: Option<Count>) -> String {
    number(level.map(|level| level.calls))
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), count)
}
