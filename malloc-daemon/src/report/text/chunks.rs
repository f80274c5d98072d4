//! What mapped chunks cost: how long they lived, what the kernel took for them.

use malloc_common::abi::Origin;

use super::histogram::quantile;
use super::{Style, Tone, heading, push};
use crate::aggregate::model::{ChunkEnds, Crossings, Process};
use crate::report::units::{bytes, count, nanoseconds};

/// Writes the section; nothing when no chunk was mapped or unmapped.
pub(super) fn render(out: &mut String, process: &Process, style: Style) {
    let Some(crossings) = &process.crossings else { return };
    let unknown = crossings.ends.as_ref().map_or(0, |ends| ends.birth_unknown);
    if crossings.count.calls == 0 && unknown == 0 {
        return;
    }
    heading(out, "Mapped chunks", style);
    let Some(ends) = &crossings.ends else {
        style.sentence(out, 2, Tone::Quiet, "not measured: how long they lived");
        return;
    };
    if crossings.count.calls > 0 {
        style.sentence(out, 2, Tone::Plain, &churn(crossings, ends));
        lifetimes(out, crossings, ends);
    }
    cost(out, process, crossings, ends, style);
    faults(out, crossings, style);
    if unknown > 0 {
        let text =
            format!("{} more unmapped whose mapping was not seen: how long they lived is not known", count(unknown));
        style.sentence(out, 2, Tone::Quiet, &text);
    }
}

/// `12,000 of 12,400 mapped chunks (12.6 GB) were unmapped again within a second`
fn churn(crossings: &Crossings, ends: &ChunkEnds) -> String {
    let chunks = if crossings.count.calls == 1 { "mapped chunk" } else { "mapped chunks" };
    let were = if ends.churned.calls == 1 { "was" } else { "were" };
    let size = if ends.churned.calls > 0 { format!(" ({})", bytes(ends.churned.bytes)) } else { String::new() };
    let (churned, all) = (count(ends.churned.calls), count(crossings.count.calls));
    format!("{churned} of {all} {chunks}{size} {were} unmapped again within a second")
}

fn lifetimes(out: &mut String, crossings: &Crossings, ends: &ChunkEnds) {
    let age = |permille| quantile(&ends.lifetime_ns, permille).map(nanoseconds);
    if let (Some(median), Some(p99)) = (age(500), age(990)) {
        push(out, &format!("  {} unmapped: median lifetime {median}, p99 {p99}", count(ends.ended())));
    }
    let left = crossings.count.calls.saturating_sub(ends.ended());
    if left > 0 {
        push(out, &format!("  {} not unmapped", count(left)));
    }
}

/// Time in the kernel for a chunk: what its `mmap` and its `munmap` took on average.
fn cost(out: &mut String, process: &Process, crossings: &Crossings, ends: &ChunkEnds, style: Style) {
    let calls = |wanted| {
        let all = [&process.syscalls.mmap, &process.syscalls.munmap, &process.syscalls.mremap];
        let mut held = all.into_iter().flat_map(|syscall| &syscall.by_origin);
        held.find(|(origin, _)| *origin == wanted).and_then(|(_, count)| *count).map_or(0, |count| count.calls)
    };
    let parts: Vec<String> = [
        ("mmap", crossings.mmap_ns, crossings.count.calls),
        ("munmap", ends.munmap_ns, calls(Origin::MunmapChunk)),
        ("mremap", ends.mremap_ns, calls(Origin::MremapChunk)),
    ]
    .into_iter()
    .filter_map(|(name, sum, calls)| Some(format!("{} in {name}", nanoseconds(sum.checked_div(calls)?))))
    .collect();
    if !parts.is_empty() {
        style.sentence(out, 2, Tone::Plain, &format!("each took on average {}", parts.join(", ")));
    }
}

/// Page faults: the mean of the churned chunks that were watched, and how many all took together.
fn faults(out: &mut String, crossings: &Crossings, style: Style) {
    let Some(faults) = &crossings.faults else {
        style.sentence(out, 2, Tone::Quiet, "page faults in them: not measured");
        return;
    };
    let Some(total) = faults.total.filter(|_| crossings.count.calls > 0) else { return };
    let all = if total.coverage_ppm >= 1_000_000 {
        format!("they took {} page faults", count(total.faults))
    } else {
        let (low, high) = total.interval_95;
        let bounds = match high {
            u64::MAX => format!("at least {}", count(low)),
            high => format!("{} to {}", count(low), count(high)),
        };
        let watched = count(faults.watched.calls);
        format!("they took about {} page faults ({bounds}; {watched} of them were watched)", count(total.faults))
    };
    let mean = faults.churned_taken.saturating_mul(10).checked_div(faults.churned);
    let each = mean.map_or_else(String::new, |tenths| {
        format!(", {}.{} for each that was unmapped within a second", count(tenths / 10), tenths % 10)
    });
    style.sentence(out, 2, Tone::Plain, &format!("{all}{each}"));
}
