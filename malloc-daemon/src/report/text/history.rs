//! `report`: what happened between two times, for people.

use jiff::Zoned;

use super::incidents::frames_of;
use super::{NAME, Style, Tone, heading, push};
use crate::aggregate::model::{End, Stack};
use crate::history::query::{Account, Change, Gap, Range, Told};
use crate::history::record::What;
use crate::history::row::field;
use crate::history::time::shown;
use crate::report::escape::printable;
use crate::report::units::{bytes, count, milliseconds};

/// Lines of the timeline; the rest is in the JSON.
const RAISES: usize = 40;
/// Raises shown with their stacks.
const WITH_STACKS: usize = 8;
/// Stacks of crossings.
const STACKS: usize = 10;
/// Gaps shown.
const GAPS: usize = 20;

/// The account; at most `limit` processes, times as the clock of `now`'s zone shows them.
#[must_use]
pub fn account(account: &Account, range: Range, limit: usize, now: &Zoned, style: Style) -> String {
    let mut out = String::new();
    let at = |unix_ms: u64| shown(unix_ms, now);
    let title = format!("From {} to {}", at(range.from_unix_ms), at(range.to_unix_ms));
    push(&mut out, &style.paint(Tone::Heading, &title));
    let covered = &account.covered;
    match covered.from_unix_ms.zip(covered.to_unix_ms) {
        None => style.sentence(&mut out, 2, Tone::Warning, "nothing was recorded in that time"),
        Some((from, to)) => {
            let text = format!(
                "recorded from {} to {} in {} steps of up to {}",
                at(from),
                at(to),
                count(covered.steps as u64),
                milliseconds(covered.step_ms)
            );
            style.sentence(&mut out, 2, Tone::Quiet, &text);
        }
    }
    processes(&mut out, &account.changes, limit, style);
    raises(&mut out, &account.raises, &at, style);
    crossings(&mut out, account, style);
    missing(&mut out, account, &at, style);
    out
}

fn processes(out: &mut String, changes: &[Change], limit: usize, style: Style) {
    heading(out, "Processes, by what they took from the kernel", style);
    let known = || changes.iter().filter(|change| change.image.is_some());
    if known().next().is_none() {
        push(out, "  none changed");
        return;
    }
    let name = |change: &Change| change.image.as_ref().map_or_else(String::new, |image| printable(&image.comm, NAME));
    let width = known().take(limit).map(|change| name(change).chars().count()).max().unwrap_or(0).max(15);
    let title = format!(
        "{:>8}  {:<width$}{:>11}{:>11}{:>13}{:>11}{:>8}{:>12}  {}",
        "PID", "COMM", "TAKEN", "GROWTH", "CALLS", "CROSSINGS", "RAISES", "THRESHOLD", "ENDED"
    );
    push(out, &style.paint(Tone::Heading, &title));
    for change in known().take(limit) {
        let delta = &change.delta;
        let figure = |place| delta.get(place).map_or_else(|| "-".to_owned(), count);
        let growth = delta.growth_bytes();
        let sign = if growth < 0 { "-" } else { "" };
        let line = format!(
            "{:>8}  {:<width$}{:>11}{:>11}{:>13}{:>11}{:>8}{:>12}  {}",
            change.image.as_ref().map_or(0, |image| image.id.pid),
            name(change),
            bytes(delta.taken_bytes()),
            format!("{sign}{}", bytes(growth.unsigned_abs())),
            figure(field::CALLS),
            figure(field::CROSSINGS),
            figure(field::RAISES),
            change.now.get(field::THRESHOLD_BYTES).map_or_else(|| "-".to_owned(), bytes),
            change.ended.map_or("", ended),
        );
        push(out, &line);
    }
    let rest = known().count().saturating_sub(limit);
    if rest > 0 {
        push(out, &format!("and {} more, in the JSON report", count(rest as u64)));
    }
    if let Some(others) = changes.iter().find(|change| change.image.is_none()) {
        let text = format!("others, not told apart: {} taken", bytes(others.delta.taken_bytes()));
        style.sentence(out, 2, Tone::Quiet, &text);
    }
    push(out, &style.paint(Tone::Quiet, "-  not measured at this depth"));
}

fn ended(end: End) -> &'static str {
    match end {
        End::Exited => "exited",
        End::Replaced => "replaced",
        End::OomKilled => "out of memory",
    }
}

fn raises(out: &mut String, raises: &[Told], at: &dyn Fn(u64) -> String, style: Style) {
    if raises.is_empty() {
        return;
    }
    heading(out, "Raises of the threshold", style);
    for (place, told) in raises.iter().take(RAISES).enumerate() {
        let What::Raise { from_bytes, to_bytes, chunk_bytes } = told.incident.what else { continue };
        let comm = told.comm.as_deref().map_or_else(|| "?".to_owned(), |comm| printable(comm, NAME));
        let line = format!(
            "  {}  {comm}[{}]  {} -> {}",
            at(told.incident.unix_ms),
            told.incident.id.pid,
            bytes(from_bytes),
            bytes(to_bytes)
        );
        push(out, &line);
        if place >= WITH_STACKS {
            continue;
        }
        match (chunk_bytes, &told.stack) {
            (None, _) => style.sentence(out, 6, Tone::Quiet, "seen only later: who raised it is not known"),
            (Some(_), None) => style.sentence(out, 6, Tone::Quiet, "by a free whose stack was not named"),
            (Some(chunk), Some(stack)) => {
                push(out, &format!("      by the free of a mapped chunk of {} in", bytes(chunk)));
                callers(out, stack, style);
            }
        }
        if let Some(stack) = &told.mapped_by {
            push(out, "      a chunk of that size was last mapped in");
            callers(out, stack, style);
        }
    }
    if raises.len() > RAISES {
        push(out, &format!("  and {} more, in the JSON report", count((raises.len() - RAISES) as u64)));
    }
}

fn crossings(out: &mut String, account: &Account, style: Style) {
    if account.crossings.is_empty() {
        return;
    }
    heading(out, "Mapped chunks by stack", style);
    for crossers in account.crossings.iter().take(STACKS) {
        let names: Vec<_> = crossers.comms.iter().map(|comm| printable(comm, NAME)).collect();
        push(out, &format!("  {} crossings, {}  {}", count(crossers.calls), bytes(crossers.bytes), names.join(", ")));
        match &crossers.stack {
            Some(stack) => callers(out, stack, style),
            None => style.sentence(out, 6, Tone::Quiet, "their stacks were not named"),
        }
    }
    if account.crossings.len() > STACKS {
        let rest = (account.crossings.len() - STACKS) as u64;
        push(out, &format!("  and {} more stacks, in the JSON report", count(rest)));
    }
}

/// Frames of the C library are left out at the top: the reader wants to know who called it.
fn callers(out: &mut String, stack: &Stack, style: Style) {
    let libc = stack.frames.first().and_then(|frame| frame.module.as_deref());
    frames_of(out, stack, libc, style);
}

fn missing(out: &mut String, account: &Account, at: &dyn Fn(u64) -> String, style: Style) {
    let covered = &account.covered;
    let incomplete = account.changes.iter().filter(|change| !change.complete).count() as u64;
    if covered.gaps.is_empty() && covered.losses == 0 && incomplete == 0 && covered.folded == 0 {
        return;
    }
    heading(out, "Missing", style);
    for gap in covered.gaps.iter().take(GAPS) {
        style.sentence(out, 2, Tone::Warning, &one_gap(gap, at));
    }
    if covered.gaps.len() > GAPS {
        push(out, &format!("  and {} more gaps", count((covered.gaps.len() - GAPS) as u64)));
    }
    if covered.losses > 0 {
        style.sentence(
            out,
            2,
            Tone::Warning,
            &format!("{} losses that cannot be laid to one process", count(covered.losses)),
        );
    }
    if incomplete > 0 {
        style.sentence(
            out,
            2,
            Tone::Warning,
            &format!("{} of these processes have losses of their own", count(incomplete)),
        );
    }
    if covered.folded > 0 {
        let text = format!("{} times an image was put together with others", count(covered.folded));
        style.sentence(out, 2, Tone::Quiet, &text);
    }
}

fn one_gap(gap: &Gap, at: &dyn Fn(u64) -> String) -> String {
    let (from, to) = (at(gap.from_unix_ms), at(gap.to_unix_ms));
    match (gap.clock_changed, gap.restarted) {
        (true, true) => format!("the daemon did not run for a while; the clock went from {from} to {to}"),
        (true, false) => format!("the clock was set from {from} to {to}"),
        (false, true) => format!("the daemon did not run from {from} to {to}"),
        (false, false) => format!("nothing was recorded from {from} to {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::model::{Frame, ProcessId};
    use crate::history::query::{Covered, Crossers};
    use crate::history::record::{Image, Incident};
    use crate::history::row::Figures;

    fn night() -> Account {
        let id = ProcessId { pid: 4242, start_ticks: 9 };
        let image = Image {
            id,
            image_ns: 1,
            run: 1,
            comm: "server\u{1b}[2J".to_owned(),
            exe: Some("/usr/bin/server".to_owned()),
            cgroup: None,
            allocator: Some("glibc 2.36".to_owned()),
        };
        let (mut delta, mut now) = (Figures::NONE, Figures::NONE);
        delta.set(field::MMAP_BYTES, Some(50_000_000));
        delta.set(field::MUNMAP_BYTES, Some(60_000_000));
        delta.set(field::CROSSINGS, Some(12));
        delta.set(field::RAISES, Some(1));
        now.set(field::THRESHOLD_BYTES, Some(1_052_672));
        let frame = |function: &str, module: &str| Frame {
            function: Some(function.to_owned()),
            module: Some(module.to_owned()),
            ..Frame::default()
        };
        let stack =
            Stack { frames: vec![frame("free", "/lib/libc.so.6"), frame("drop_cache", "/usr/bin/server")], cut: None };
        let what = What::Raise { from_bytes: 131_072, to_bytes: 1_052_672, chunk_bytes: Some(1_052_672) };
        let (image_number, unix_ms) = (Some(1), 1_795_651_205_000);
        let incident = Incident {
            what,
            image: image_number,
            id,
            tid: 4243,
            unix_ms,
            sequence: 1,
            stack: Some(1),
            mapped_by: None,
        };
        Account {
            covered: Covered {
                from_unix_ms: Some(1_795_651_200_000),
                to_unix_ms: Some(1_795_651_800_000),
                step_ms: 10_000,
                steps: 60,
                gaps: vec![Gap {
                    from_unix_ms: 1_795_651_300_000,
                    to_unix_ms: 1_795_651_400_000,
                    restarted: true,
                    clock_changed: false,
                }],
                losses: 2,
                folded: 0,
            },
            changes: vec![Change {
                image: Some(image.clone()),
                delta,
                now,
                from_unix_ms: 1_795_651_200_000,
                to_unix_ms: 1_795_651_210_000,
                ended: Some(End::Exited),
                complete: true,
            }],
            raises: vec![Told {
                incident,
                comm: Some(image.comm.clone()),
                stack: Some(stack.clone()),
                mapped_by: None,
            }],
            crossings: vec![Crossers { stack: Some(stack), calls: 12, bytes: 50_000_000, comms: vec![image.comm] }],
        }
    }

    #[test]
    fn a_night_reads_as_a_story() {
        let now: Zoned = "2026-11-26T08:00:00+00:00[+00:00]".parse().unwrap();
        let range = Range { from_unix_ms: 1_795_651_200_000, to_unix_ms: 1_795_651_800_000, step_ms: None };
        let text = account(&night(), range, 10, &now, Style { color: false, width: 100 });
        insta::assert_snapshot!(text);
        assert!(!text.contains('\u{1b}'), "a name cannot move the cursor");
    }

    #[test]
    fn a_time_without_steps_says_so() {
        let now: Zoned = "2026-11-26T08:00:00+00:00[+00:00]".parse().unwrap();
        let range = Range { from_unix_ms: 0, to_unix_ms: 1, step_ms: None };
        let text = account(&Account::default(), range, 10, &now, Style::default());
        assert!(text.contains("nothing was recorded in that time") && text.contains("none changed"), "{text}");
    }
}
