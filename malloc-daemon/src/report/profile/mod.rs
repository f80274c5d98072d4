//! Stacks of crossings and raises for other programs' readers: folded lines for flame graphs, and pprof's format.
//!
//! What stacks stand for is an estimate where not every crossing was sampled; the sums are exact, since what no stack
//! stands for is told beside them.

mod collapsed;
mod message;
mod pprof;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::aggregate::model::{Process, ProcessId, Raise, Snapshot, Stack, StackShare};
use crate::report::printable;

pub use self::collapsed::collapsed;
pub use self::pprof::pprof;

/// Characters of a name that is written.
const NAME: usize = 256;

/// What a folded line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Chunks that were mapped.
    Calls,
    /// Their bytes.
    Bytes,
}

/// What of one image is in a profile.
struct Told<'a> {
    process: &'a Process,
    /// All its crossings: exact.
    calls: u64,
    /// Crossings that were sampled.
    samples: u64,
    stacks: &'a [StackShare],
    /// Crossings and bytes that no stack stands for.
    rest: (u64, u64),
}

/// The images of which crossings are measured; none: nothing can be told.
fn told(snapshot: &Snapshot) -> Vec<Told<'_>> {
    let measured = snapshot.processes.iter().filter_map(|process| Some((process, process.crossings.as_ref()?.count)));
    let told = measured.map(|(process, all)| {
        let own = |stacks: &&Arc<crate::aggregate::model::CrossingStacks>| {
            stacks.id == process.id && stacks.image_ns == process.image_ns
        };
        let sampled = snapshot.stacks.iter().find(own);
        let stacks = sampled.map_or(&[][..], |sampled| &sampled.stacks);
        let sum = |of: fn(&StackShare) -> u64| stacks.iter().map(of).fold(0, u64::saturating_add);
        let rest =
            (all.calls.saturating_sub(sum(|share| share.calls)), all.bytes.saturating_sub(sum(|share| share.bytes)));
        let samples = sampled.map_or(0, |sampled| sampled.samples);
        Told { process, calls: all.calls, samples, stacks, rest }
    });
    told.collect()
}

/// Of each process the raises that are told with their stacks, and how many more there were.
fn raises(snapshot: &Snapshot) -> BTreeMap<ProcessId, (Vec<&Raise>, u64)> {
    let mut by_process: BTreeMap<ProcessId, (Vec<&Raise>, u64)> = BTreeMap::new();
    for process in &snapshot.processes {
        let seen = process.threshold.as_ref().map_or(0, |threshold| threshold.raises);
        let (_, more) = by_process.entry(process.id).or_default();
        *more = more.saturating_add(seen);
    }
    for raise in &snapshot.raises {
        by_process.entry(raise.id).or_default().0.push(raise);
    }
    for (told, more) in by_process.values_mut() {
        *more = more.saturating_sub(told.len() as u64);
    }
    by_process
}

/// What a reader of a profile must know, one sentence each; empty: every figure in it is exact and whole.
#[must_use]
pub fn caveats(snapshot: &Snapshot) -> Vec<String> {
    let told = told(snapshot);
    let mut caveats = Vec::new();
    if told.is_empty() {
        caveats.push("no crossing was measured, which is not the same as none: the profile is empty".to_owned());
    }
    let guessed: Vec<&Told<'_>> = told.iter().filter(|told| told.samples < told.calls).collect();
    /// Processes that are named.
    const NAMED: usize = 20;
    for told in guessed.iter().take(NAMED) {
        caveats.push(format!(
            "{} ({}): {} of {} crossings were sampled, so what a stack stands for is an estimate; the sum is exact",
            printable(&told.process.comm, 32),
            told.process.id.pid,
            told.samples,
            told.calls
        ));
    }
    if let Some(more @ 1..) = guessed.len().checked_sub(NAMED) {
        caveats.push(format!("of {more} more processes not every crossing was sampled either"));
    }
    let unmeasured = snapshot.processes.len().saturating_sub(told.len());
    if unmeasured > 0 && !told.is_empty() {
        caveats.push(format!("crossings of {unmeasured} other images are not measured, and not in the profile"));
    }
    if !snapshot.complete {
        caveats.push("the recording is incomplete: --format text or json says what is missing".to_owned());
    }
    caveats
}

/// A frame as people read it: the function, or else where in which file it is.
fn name_of(frame: &crate::aggregate::model::Frame) -> String {
    match (&frame.function, &frame.module, frame.offset) {
        (Some(function), ..) => printable(function, NAME),
        (None, Some(module), Some(offset)) => format!("[{}+{offset:#x}]", printable(last_part(module), NAME)),
        (None, Some(module), None) => format!("[{}]", printable(last_part(module), NAME)),
        (None, None, _) => "[unknown]".to_owned(),
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().filter(|part| !part.is_empty()).unwrap_or(path)
}

/// Why a stack ends before the thread's start, as a frame.
fn cut_of(stack: &Stack) -> Option<String> {
    stack.cut.as_ref().map(|why| format!("[{}]", printable(why, NAME)))
}

#[cfg(test)]
mod tests;
