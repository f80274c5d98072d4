//! From the daemon's idea of a process to the promised one.

use std::borrow::Cow;

use malloc_common::abi::Origin;
use malloc_common::loss;

use super::document as doc;
use super::document::{ByOrigin, Text};
use super::heap;
use super::meaning;
use crate::aggregate::model::{
    Allocator, Bucket, ChunkFaults, Count, Crossings, End, Estimate, FunctionCount, Funnel, Host, LossReason, Process,
    Snapshot, SyscallCount, Syscalls, Threshold, ThresholdMode, ThresholdSource, Window,
};

pub(super) fn host(host: &Host) -> doc::Host<'_> {
    doc::Host { kernel: text(&host.kernel), cpus: host.cpus }
}

pub(super) fn window(window: Window) -> doc::Window {
    doc::Window {
        start_unix_ms: window.start_unix_ms,
        end_unix_ms: window.end_unix_ms,
        duration_ms: window.duration_ms,
    }
}

/// All reasons there are, those that never occurred with a count of zero.
pub(super) fn every_loss(losses: &[(LossReason, u64)]) -> Vec<doc::Loss<'static>> {
    every_reason()
        .map(|reason| {
            let same = losses.iter().filter(|(other, _)| *other == reason);
            loss_of(reason, same.fold(0, |sum: u64, (_, count)| sum.saturating_add(*count)))
        })
        .collect()
}

/// Every reason of the model.
pub(super) fn every_reason() -> impl Iterator<Item = LossReason> {
    loss::ALL.into_iter().map(LossReason::Kernel).chain([
        LossReason::ProgramMissed,
        LossReason::ProcessDropped,
        LossReason::IncidentDropped,
        LossReason::HistoryDropped,
    ])
}

pub(super) fn process<'a>(snapshot: &'a Snapshot, process: &'a Process) -> doc::Process<'a> {
    doc::Process {
        pid: process.id.pid,
        start_time_ticks: process.id.start_ticks,
        image_ns: process.image_ns,
        comm: text(&process.comm),
        exe: maybe(process.exe.as_deref()),
        cgroup: maybe(process.cgroup.as_deref()),
        allocator: process.allocator.as_deref().map(allocator),
        depth: Cow::Borrowed(process.depth.name()),
        not_measured: process
            .not_measured
            .iter()
            .map(|(depth, why)| doc::NotMeasured { depth: Cow::Borrowed(depth.name()), why: text(why) })
            .collect(),
        from_start: process.from_start,
        complete: process.complete,
        losses: process.losses.iter().map(|(reason, count)| loss_of(*reason, *count)).collect(),
        ended: process.ended.map(ended),
        observed_ms: process.observed_ms,
        funnel: funnel(&process.funnel),
        functions: process
            .functions
            .as_ref()
            .map(|functions| functions.iter().map(|counted| function(counted, process.allocator.as_deref())).collect()),
        arena_sizes: process.arena_sizes.as_deref().map(buckets),
        sysmalloc_sizes: process.sysmalloc_sizes.as_deref().map(buckets),
        heap_events: process
            .heap_events
            .as_ref()
            .map(|events| events.iter().map(|(event, count)| (Cow::Borrowed(event.name()), *count)).collect()),
        threshold: process.threshold.as_ref().map(threshold),
        heap: heap::heap(process),
        arenas: heap::arenas(process),
        heap_unread: maybe(
            process.heap_unread.as_deref().or(process.heap.as_ref().and_then(|heap| heap.not_read.as_deref())),
        ),
        crossings: process.crossings.as_ref().map(|counted| crossings(counted, &process.syscalls)),
        syscalls: syscalls(&process.syscalls),
        explanation: meaning::explanation(snapshot, process),
        what_if: meaning::what_if(process),
        cost: process.cost.as_ref().map(super::cost::cost),
    }
}

pub(super) fn listed(process: &Process) -> doc::ListedProcess<'_> {
    let calls = &process.syscalls;
    doc::ListedProcess {
        pid: process.id.pid,
        start_time_ticks: process.id.start_ticks,
        image_ns: process.image_ns,
        comm: text(&process.comm),
        exe: maybe(process.exe.as_deref()),
        cgroup: maybe(process.cgroup.as_deref()),
        allocator: process.allocator.as_ref().map(|allocator| doc::ListedAllocator {
            kind: text(&allocator.kind),
            version: maybe(allocator.version.as_deref()),
        }),
        depth: Cow::Borrowed(process.depth.name()),
        complete: process.complete,
        ended: process.ended.map(ended),
        observed_ms: process.observed_ms,
        funnel: funnel(&process.funnel),
        threshold: process.threshold.as_ref().map(threshold),
        heap: heap::listed(process),
        crossings: process.crossings.as_ref().map(|sized| count(sized.count)),
        syscalls: doc::ListedSyscalls {
            mmap: listed_syscall(&calls.mmap),
            munmap: listed_syscall(&calls.munmap),
            mremap: listed_syscall(&calls.mremap),
            brk: listed_syscall(&calls.brk),
        },
        cost: process.cost.as_ref().map(super::cost::cost),
    }
}

fn allocator(allocator: &Allocator) -> doc::Allocator<'_> {
    doc::Allocator {
        kind: text(&allocator.kind),
        version: maybe(allocator.version.as_deref()),
        build_id: maybe(allocator.build_id.as_deref()),
        path: text(&allocator.path),
        located_by: text(&allocator.located_by),
        not_counted: allocator.not_counted.iter().map(|one| text(one)).collect(),
        also_mapped: allocator.also_mapped.iter().map(|path| text(path)).collect(),
    }
}

fn ended(end: End) -> Text<'static> {
    Cow::Borrowed(match end {
        End::Exited => "exited",
        End::Replaced => "replaced",
        End::OomKilled => "oom_killed",
    })
}

fn loss_of(reason: LossReason, count: u64) -> doc::Loss<'static> {
    doc::Loss { reason: Cow::Borrowed(reason.name()), count }
}

fn count(count: Count) -> doc::Count {
    doc::Count { calls: count.calls, bytes: count.bytes }
}

fn level(count: Count, estimated: Option<Estimate>) -> doc::Level {
    doc::Level { calls: count.calls, bytes: count.bytes, estimate: estimated.map(estimate) }
}

fn estimate(estimate: Estimate) -> doc::Estimate {
    let pair = |(low, high)| [low, high];
    doc::Estimate {
        estimated: true,
        coverage: f64::from(estimate.coverage_ppm) / 1e6,
        interval_95: estimate.calls_95.map(pair),
        bytes_interval_95: estimate.bytes_95.map(pair),
    }
}

fn funnel(funnel: &Funnel) -> doc::Funnel {
    doc::Funnel {
        call: funnel.call.map(|count| level(count, funnel.call_estimate)),
        arena: funnel.arena.map(|count| level(count, funnel.arena_estimate)),
        sysmalloc: funnel.sysmalloc.map(count),
        brk: funnel.brk.map(count),
        mmap: funnel.mmap.map(count),
    }
}

fn buckets(buckets: &[Bucket]) -> Vec<doc::Bucket> {
    buckets
        .iter()
        .map(|bucket| doc::Bucket {
            lo: bucket.lo,
            hi: (bucket.hi != u64::MAX).then_some(bucket.hi),
            calls: bucket.calls,
            share_interval_95: None,
        })
        .collect()
}

fn sizes(counted: &FunctionCount) -> Option<Vec<doc::Bucket>> {
    let mut sizes = counted.sizes.as_deref().map(buckets)?;
    for (bucket, (low, high)) in sizes.iter_mut().zip(counted.shares_95.iter().flatten()) {
        bucket.share_interval_95 = Some([f64::from(*low) / 1e6, f64::from(*high) / 1e6]);
    }
    Some(sizes)
}

fn function<'a>(counted: &'a FunctionCount, allocator: Option<&'a Allocator>) -> doc::Function<'a> {
    let name = counted.function.name();
    let aliases = allocator.into_iter().flat_map(|allocator| &allocator.aliases).filter(|(of, _)| of == name);
    doc::Function {
        name: Cow::Borrowed(name),
        aliases: aliases.flat_map(|(_, names)| names).map(|alias| text(alias)).collect(),
        calls: counted.calls,
        failed: counted.failed,
        bytes: counted.bytes,
        sizes: sizes(counted),
        estimate: counted.estimate.map(estimate),
    }
}

fn threshold(threshold: &Threshold) -> doc::Threshold<'static> {
    doc::Threshold {
        bytes: threshold.bytes,
        trim_bytes: threshold.trim_bytes,
        mode: Cow::Borrowed(match threshold.mode {
            ThresholdMode::Dynamic => "dynamic",
            ThresholdMode::Pinned => "pinned",
            ThresholdMode::Unknown => "unknown",
        }),
        source: Cow::Borrowed(match threshold.source {
            ThresholdSource::Memory => "memory",
            ThresholdSource::Event => "event",
        }),
        raises: threshold.raises,
        mmapped_chunks: threshold.mmapped_chunks,
        mmapped_bytes: threshold.mmapped_bytes,
    }
}

fn crossings(counted: &Crossings, syscalls: &Syscalls) -> doc::Crossings {
    let fallback = syscalls.mmap.by_origin.iter().find(|(origin, _)| *origin == Origin::MmapFallback);
    let ends = counted.ends.as_ref();
    doc::Crossings {
        calls: counted.count.calls,
        bytes: counted.count.bytes,
        fallback_calls: fallback.and_then(|(_, count)| *count).map(|count| count.calls),
        sizes: buckets(&counted.sizes),
        lifetime_ns: ends.map(|ends| buckets(&ends.lifetime_ns)),
        churned: ends.map(|ends| count(ends.churned)),
        birth_unknown: ends.map(|ends| ends.birth_unknown),
        mmap_ns: counted.mmap_ns,
        munmap_ns: ends.map(|ends| ends.munmap_ns),
        mremap_ns: ends.map(|ends| ends.mremap_ns),
        faults: counted.faults.as_ref().map(faults),
    }
}

fn faults(faults: &ChunkFaults) -> doc::ChunkFaults {
    let ppm = faults.total.map_or(0, |total| total.coverage_ppm);
    doc::ChunkFaults {
        watched: count(faults.watched),
        taken: faults.taken,
        churned: faults.churned,
        churned_taken: faults.churned_taken,
        per_chunk: buckets(&faults.per_chunk),
        total: faults.total.map(|total| total.faults),
        estimated: ppm < 1_000_000,
        coverage: f64::from(ppm) / 1e6,
        interval_95: faults.total.map(|total| [total.interval_95.0, total.interval_95.1]),
    }
}

fn syscalls(syscalls: &Syscalls) -> doc::Syscalls<'static> {
    let brk = &syscalls.brk;
    doc::Syscalls {
        mmap: syscall(&syscalls.mmap),
        munmap: syscall(&syscalls.munmap),
        mremap: syscall(&syscalls.mremap),
        brk: doc::Brk {
            calls: brk.calls,
            failed: brk.failed,
            grown_bytes: syscalls.brk_grown_bytes,
            shrunk_bytes: syscalls.brk_shrunk_bytes,
            by_origin: by_origin(brk, |count| count.calls),
            bytes_by_origin: by_origin(brk, |count| count.bytes),
            latency_ns: buckets(&brk.latency_ns),
        },
    }
}

fn syscall(counted: &SyscallCount) -> doc::Syscall<'static> {
    doc::Syscall {
        calls: counted.calls,
        failed: counted.failed,
        bytes: counted.bytes,
        by_origin: by_origin(counted, |count| count.calls),
        bytes_by_origin: by_origin(counted, |count| count.bytes),
        sizes: buckets(&counted.sizes),
        latency_ns: buckets(&counted.latency_ns),
    }
}

fn by_origin(counted: &SyscallCount, of: impl Fn(&Count) -> u64) -> ByOrigin<'static> {
    counted.by_origin.iter().map(|(origin, count)| (Cow::Borrowed(origin.name()), count.as_ref().map(&of))).collect()
}

fn listed_syscall(counted: &SyscallCount) -> doc::ListedSyscall {
    doc::ListedSyscall { calls: counted.calls, failed: counted.failed, bytes: counted.bytes }
}

fn text(text: &str) -> Text<'_> {
    Cow::Borrowed(text)
}

fn maybe(text: Option<&str>) -> Option<Text<'_>> {
    text.map(Cow::Borrowed)
}
