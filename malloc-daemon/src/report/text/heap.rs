//! What the process's own memory says of its arenas: what they hold, and what of it the program does not use.

use super::{Style, Tone, heading, push};
use crate::aggregate::heap::{Arena, Heap};
use crate::aggregate::model::Process;
use crate::report::escape::printable;
use crate::report::units::{bytes, count, exact_bytes, milliseconds};

/// Arenas shown of one process, the largest first.
const ARENAS: usize = 4;

pub(super) fn render(out: &mut String, process: &Process, style: Style) {
    if let Some(why) = process.heap_unread.as_deref().or(process.heap.as_ref().and_then(|h| h.not_read.as_deref())) {
        heading(out, "Heap", style);
        style.sentence(out, 2, Tone::Warning, &format!("not read: {}", printable(why, 200)));
        return;
    }
    let (Some(heap), Some(age_ms)) = (&process.heap, process.heap_age_ms()) else { return };
    heading(out, &format!("Heap, read from its memory {} before the end", milliseconds(age_ms)), style);
    push(
        out,
        &format!("  {:8}{:>9}{:>12}{:>12}{:>12}{:>14}", "arena", "threads", "system", "top", "free", "most system"),
    );
    let mut arenas: Vec<(usize, &Arena)> = heap.arenas.iter().enumerate().collect();
    arenas.sort_by_key(|(nth, arena)| (std::cmp::Reverse(arena.system_bytes), *nth));
    for (nth, arena) in arenas.iter().take(ARENAS) {
        one(out, *nth, arena);
    }
    if arenas.len() > ARENAS {
        style.sentence(out, 2, Tone::Quiet, &format!("and {} more arenas", count((arenas.len() - ARENAS) as u64)));
    }
    push(out, &format!("  {}", retained(heap)));
    if let Some(resident) = heap.resident_bytes {
        push(out, &format!("  the process has {} resident", bytes(resident)));
    }
    let rest = "what is neither top nor free is live, or waits in a thread's cache";
    style.sentence(out, 2, Tone::Quiet, rest);
}

fn one(out: &mut String, nth: usize, arena: &Arena) {
    let name = if arena.is_main { "main".to_owned() } else { count(nth as u64) };
    let free = match &arena.free {
        None => "not counted".to_owned(),
        Some(free) if free.complete => bytes(free.bytes),
        Some(free) => format!(">= {}", bytes(free.bytes)),
    };
    let [system, top, most] = [arena.system_bytes, arena.top_bytes, arena.max_system_bytes].map(bytes);
    push(out, &format!("  {name:8}{:>9}{system:>12}{top:>12}{free:>12}{most:>14}", count(arena.threads)));
}

fn retained(heap: &Heap) -> String {
    let least = if heap.is_complete() { "" } else { "at least " };
    let resident = heap.retained_resident_bytes().map_or_else(String::new, |b| format!(", resident {}", bytes(b)));
    format!("retained and not used: {least}{}{resident}", exact_bytes(heap.retained_bytes()))
}
