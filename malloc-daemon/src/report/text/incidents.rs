//! Who raised the threshold, and who had chunks mapped, below the threshold's own lines.

use std::sync::Arc;

use super::{Style, Tone, heading, push};
use crate::aggregate::model::{CrossingStacks, Frame, Process, Raise, Snapshot, Stack};
use crate::report::escape::printable;
use crate::report::units::{bytes, count};
use crate::report::words;

/// Raises shown of one process; the rest is in the JSON answers.
const RAISES: usize = 5;
/// Stacks of mapped chunks shown of one process.
const STACKS: usize = 3;
/// Frames shown of one stack.
const FRAMES: usize = 8;

pub(super) fn render(out: &mut String, snapshot: &Snapshot, process: &Process, style: Style) {
    let ends = process.image_ns.saturating_add(process.observed_ms.saturating_add(1).saturating_mul(1_000_000));
    let own = |id, ns: u64| id == process.id && ns >= process.image_ns && ns <= ends;
    let raises: Vec<&Arc<Raise>> = snapshot.raises.iter().filter(|raise| own(raise.id, raise.ns)).collect();
    if !raises.is_empty() {
        heading(out, "Raises of the threshold", style);
        for raise in raises.iter().take(RAISES) {
            one_raise(out, raise, process, style);
        }
        if raises.len() > RAISES {
            style.sentence(out, 2, Tone::Quiet, &format!("and {} more", count((raises.len() - RAISES) as u64)));
        }
    }
    let told = snapshot.stacks.iter().find(|told| told.id == process.id && told.image_ns == process.image_ns);
    if let Some(told) = told {
        by_stack(out, told, process, style);
    }
}

fn one_raise(out: &mut String, raise: &Raise, process: &Process, style: Style) {
    let from = if raise.from_bytes == 0 { "not known".to_owned() } else { bytes(raise.from_bytes) };
    push(out, &format!("  {from} -> {}, thread {}", bytes(raise.to_bytes), raise.tid));
    match (raise.chunk_bytes, &raise.stack) {
        (None, _) => style.sentence(out, 4, Tone::Quiet, "seen only later: who raised it is not known"),
        (Some(_), None) => style.sentence(out, 4, Tone::Quiet, "by a free whose stack was not named"),
        (Some(chunk), Some(stack)) => {
            push(out, &format!("    by the free of a mapped chunk of {} in", bytes(chunk)));
            frames(out, stack, process, style);
        }
    }
    if let Some(stack) = &raise.mapped_by {
        push(out, "    a chunk of that size was last mapped in");
        frames(out, stack, process, style);
    }
}

/// The stacks that had most bytes mapped; a sampled stack stands for its weight.
fn by_stack(out: &mut String, told: &CrossingStacks, process: &Process, style: Style) {
    let Some(all) = process.crossings.as_ref().map(|crossings| crossings.count.calls) else { return };
    if told.stacks.is_empty() {
        return;
    }
    heading(out, "Mapped chunks by stack", style);
    for share in told.stacks.iter().take(STACKS) {
        let about = if told.samples < all { "about " } else { "" };
        push(out, &format!("  {about}{} crossings, {}", count(share.calls), bytes(share.bytes)));
        frames(out, &share.stack, process, style);
    }
    let shown = told.stacks.iter().take(STACKS).fold(0u64, |sum, share| sum.saturating_add(share.calls));
    let rest = all.saturating_sub(shown);
    if rest > 0 {
        let more = told.stacks.len().saturating_sub(STACKS);
        let text = match more {
            0 => format!("and {} crossings whose stack is not known", count(rest)),
            more => format!("and {} crossings of {} more stacks, or not known", count(rest), count(more as u64)),
        };
        style.sentence(out, 2, Tone::Quiet, &text);
    }
}

fn frames(out: &mut String, stack: &Stack, process: &Process, style: Style) {
    // The allocator's own frames are the same in every stack: the reader wants to know who called it.
    frames_of(out, stack, process.allocator.as_ref().map(|allocator| allocator.path.as_str()), style);
}

/// The frames of a stack without those of `libc` that come first.
pub(super) fn frames_of(out: &mut String, stack: &Stack, libc: Option<&str>, style: Style) {
    let own = stack.frames.iter().take_while(|frame| words::is_of(frame, libc)).count();
    let callers = stack.frames.get(own..).filter(|callers| !callers.is_empty()).unwrap_or(&stack.frames);
    for frame in callers.iter().take(FRAMES) {
        push(out, &format!("      {}", one_frame(frame)));
    }
    if callers.len() > FRAMES {
        style.sentence(out, 6, Tone::Quiet, &format!("and {} frames more", count((callers.len() - FRAMES) as u64)));
    }
    if let Some(why) = &stack.cut {
        style.sentence(out, 6, Tone::Quiet, &format!("the stack ends here: {}", printable(why, 120)));
    }
}

fn one_frame(frame: &Frame) -> String {
    let module = frame.module.as_deref().map(|module| module.rsplit('/').next().unwrap_or(module));
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("  {}:{line}", printable(file, 120)),
        (Some(file), None) => format!("  {}", printable(file, 120)),
        (None, _) => String::new(),
    };
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    match (&frame.function, module, frame.offset) {
        (Some(function), _, _) => format!("{}{inlined}{place}", printable(function, 160)),
        (None, Some(module), Some(offset)) => format!("{}+{offset:#x}{place}", printable(module, 120)),
        (None, Some(module), None) => printable(module, 120),
        (None, None, _) => "?".to_owned(),
    }
}
