//! One row of the kernel side becomes one process of the snapshot.

use std::sync::Arc;

use malloc_common::abi::{
    ALL_ORIGINS, BORN_EXEC, Counter, Histogram, Origin, SLOT_EXITED, SLOT_OOM_KILLED, SLOT_REPLACED, SYSCALLS, Series,
    Slot, Syscall,
};
use malloc_common::depth::Depth;
use malloc_common::function::{self, Function};
use malloc_common::histogram;
use malloc_common::loss::Loss;
use malloc_common::site::{HeapEvent, Role};

use super::chunks;
use super::heap::Heap;
use super::model::{
    Allocator, Bucket, Count, End, Estimate, FunctionCount, Funnel, Hits, LossReason, Prices, Process, ProcessId,
    Sized, SyscallCount, Syscalls, Threshold, ThresholdMode, ThresholdSource,
};
use crate::budget::{Figure, LevelFigures, Row};
use crate::collect::RawImage;

/// What the daemon knows of a process besides its counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Name as `/proc` has it now, if the process lives.
    pub comm: Option<String>,
    /// Path of the executable.
    pub exe: Option<String>,
    /// Control group.
    pub cgroup: Option<String>,
    /// Its allocator.
    pub allocator: Option<Arc<Allocator>>,
    /// How deep it is probed.
    pub depth: Depth,
    /// What was asked for and is not measured, and why.
    pub not_measured: Vec<(Depth, String)>,
    /// Origins that no probe of its allocator tells.
    pub untold: Vec<Origin>,
    /// What the static probes of its allocator tell.
    pub told: Vec<HeapEvent>,
    /// The probes of its allocator had to go while it ran.
    pub cut_short: bool,
    /// Nanoseconds since boot since when the probes of its allocator are attached.
    pub probed_since_ns: u64,
    /// Its heap as the daemon last read it from the process's memory, or why it could not.
    pub heap: Result<Option<Arc<Heap>>, String>,
    /// Page faults of mapped chunks are counted.
    pub faults: bool,
    /// Roles whose probe sits on an instruction that the kernel steps over instead of emulating it.
    pub stepped: Vec<Role>,
    /// CPU time that the image has taken while it was observed, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// What is known of a process whose deep probes are not attached all the time.
    pub deep: Option<DeepFigures>,
    /// They are not now.
    pub over_budget: bool,
}

/// Levels that may be measured in windows.
#[derive(Clone, Debug, PartialEq)]
pub struct DeepFigures {
    /// The public functions.
    pub call: LevelFigures,
    /// `_int_malloc`
    pub arena: LevelFigures,
}

impl Default for Facts {
    /// Nothing known: the system calls alone are measured.
    fn default() -> Self {
        Self {
            comm: None,
            exe: None,
            cgroup: None,
            allocator: None,
            depth: Depth::Syscall,
            not_measured: Vec::new(),
            untold: Vec::new(),
            told: Vec::new(),
            cut_short: false,
            probed_since_ns: 0,
            heap: Ok(None),
            faults: false,
            stepped: Vec::new(),
            cpu_ns: None,
            deep: None,
            over_budget: false,
        }
    }
}

/// The process that a row describes.
pub fn process(row: &RawImage, facts: &Facts, now_ns: u64, tracking_since_ns: u64, prices: Option<&Prices>) -> Process {
    let slot = &row.slot;
    let measured = |depth: Depth| facts.depth >= depth && facts.not_measured.iter().all(|(d, _)| *d != depth);
    let deep = facts.deep.as_ref();
    let deep_call = deep.map(|deep| &deep.call).filter(|level| level.sum.is_some());
    let deep_arena = deep.map(|deep| &deep.arena).filter(|level| level.sum.is_some());
    let functions = measured(Depth::Call).then(|| match deep_call {
        Some(level) => level.rows.iter().enumerate().filter_map(|(index, figure)| function(index, figure)).collect(),
        None => functions(row),
    });
    let told = |o: Origin| told_by_arguments(o) || (measured(Depth::Sysmalloc) && !facts.untold.contains(&o));
    // An image is known whole when its beginning was seen with every probe in place: an exec, or a fork.
    let begun = slot.born == BORN_EXEC || slot.start_ns >= tracking_since_ns;
    let probed_late = facts.depth > Depth::Syscall && facts.probed_since_ns > slot.first_ns;
    let losses = losses(slot);
    let heap = facts.heap.as_ref().ok().cloned().flatten();
    Process {
        id: ProcessId::of(slot),
        image_ns: slot.first_ns,
        // The kernel has the last word of an image that ended: what /proc said may be its successor's name.
        comm: facts.comm.clone().filter(|_| slot.end_ns == 0).unwrap_or_else(|| text(&slot.comm)),
        exe: facts.exe.clone(),
        cgroup: facts.cgroup.clone(),
        allocator: facts.allocator.clone(),
        depth: facts.depth,
        not_measured: facts.not_measured.clone(),
        exec_seen: slot.born == BORN_EXEC,
        from_start: begun && !probed_late,
        // A process found in the middle of its life is counted from then on; one whose beginning was seen but whose
        // probes came later has levels that cover different times.
        complete: losses.is_empty()
            && !(begun && probed_late)
            && !facts.cut_short
            && deep_call.or(deep_arena).is_none(),
        losses,
        ended: match slot.state {
            SLOT_EXITED => Some(End::Exited),
            SLOT_REPLACED => Some(End::Replaced),
            SLOT_OOM_KILLED => Some(End::OomKilled),
            _ => None,
        },
        observed_ms: (if slot.end_ns == 0 { now_ns } else { slot.end_ns }).saturating_sub(slot.first_ns) / 1_000_000,
        funnel: Funnel {
            call: functions.as_deref().map(calls),
            arena: measured(Depth::Arena).then(|| match deep_arena.and_then(|level| level.rows.first()) {
                Some(Figure { row, .. }) => Count { calls: row.calls, bytes: row.bytes },
                None => count(row.histogram(Series::Arena)),
            }),
            call_estimate: deep_call.and_then(|level| level.sum).filter(|_| measured(Depth::Call)),
            arena_estimate: deep_arena.and_then(|level| level.sum).filter(|_| measured(Depth::Arena)),
            sysmalloc: measured(Depth::Sysmalloc).then(|| count(row.histogram(Series::Sysmalloc))),
            brk: told(Origin::BrkGrowth).then(|| origin(slot, Origin::BrkGrowth)),
            mmap: told(Origin::MmapCrossing).then(|| {
                [Origin::MmapCrossing, Origin::MmapFallback, Origin::MmapArenaHeap]
                    .into_iter()
                    .map(|o| origin(slot, o))
                    .fold(Count::default(), |a, b| Count {
                        calls: a.calls + b.calls,
                        bytes: a.bytes.wrapping_add(b.bytes),
                    })
            }),
        },
        arena_sizes: measured(Depth::Arena).then(|| match deep_arena.and_then(|level| level.rows.first()) {
            Some(Figure { row, .. }) => filled(&row.buckets),
            None => buckets(row.histogram(Series::Arena)),
        }),
        sysmalloc_sizes: measured(Depth::Sysmalloc).then(|| buckets(row.histogram(Series::Sysmalloc))),
        heap_events: (measured(Depth::Sysmalloc) && !facts.told.is_empty()).then(|| {
            let count = |event| facts.told.contains(&event).then(|| counter(slot, Counter::Told(event)));
            HeapEvent::ALL.into_iter().map(|event| (event, count(event))).collect()
        }),
        threshold: threshold(slot, heap.as_deref()),
        heap,
        heap_unread: facts.heap.as_ref().err().cloned(),
        crossings: told(Origin::MmapCrossing).then(|| chunks::crossings(row, &told, facts.faults)),
        counted_functions: deep_call.filter(|_| functions.is_some()).map(|level| {
            let counted = level.exact.iter().map(|row| Figure { row: row.clone(), estimate: None, shares_95: None });
            counted.enumerate().filter_map(|(index, figure)| function(index, &figure)).collect()
        }),
        functions,
        syscalls: Syscalls {
            mmap: syscall(row, Syscall::Mmap, &told),
            munmap: syscall(row, Syscall::Munmap, &told),
            mremap: syscall(row, Syscall::Mremap, &told),
            brk: syscall(row, Syscall::Brk, &told),
            brk_grown_bytes: counter(slot, Counter::BrkGrown),
            brk_shrunk_bytes: counter(slot, Counter::BrkShrunk),
        },
        over_budget: facts.over_budget,
        cost: prices.map(|prices| prices.cost(hits(row, &facts.stepped), facts.cpu_ns)),
    }
}

fn text(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or(comm)).into_owned()
}

/// How often the probes were hit for this image, by what a hit costs.
fn hits(row: &RawImage, stepped: &[Role]) -> Hits {
    let slot = &row.slot;
    let mut hits = Hits::default();
    for function in function::ALL {
        let (entries, transfers) = match function {
            Function::Free => (counter(slot, Counter::Free), counter(slot, Counter::FreeTransfer)),
            sized => (
                count(row.histogram(Series::Call(sized))).calls + counter(slot, Counter::Failed(sized)),
                count(row.histogram(Series::Transfer(sized))).calls + counter(slot, Counter::FailedTransfer(sized)),
            ),
        };
        let entries = entries + if function == Function::Free { counter(slot, Counter::IdleHits) } else { 0 };
        hits.call += entries + transfers;
        hits.call_stepped += if stepped.contains(&Role::Call(function)) { entries } else { 0 };
    }
    hits.arena = count(row.histogram(Series::Arena)).calls;
    hits.arena_stepped = if stepped.contains(&Role::Arena) { hits.arena } else { 0 };
    hits.slow = counter(slot, Counter::SlowHits);
    // Which function of the slow path was hit is not counted: one that is stepped makes all of them dear.
    let slow = [Role::Sysmalloc, Role::MunmapChunk, Role::Systrim, Role::NewHeap];
    hits.slow_stepped = if slow.iter().any(|role| stepped.contains(role)) { hits.slow } else { 0 };
    hits.branch = counter(slot, Counter::BranchHits);
    let calls = |syscall| count(row.histogram(Series::Latency(syscall))).calls;
    hits.syscall = SYSCALLS.into_iter().map(calls).sum();
    hits
}

pub(super) fn counter(slot: &Slot, counter: Counter) -> u64 {
    slot.counters.get(counter.index()).copied().unwrap_or(0)
}

fn origin(slot: &Slot, origin: Origin) -> Count {
    Count { calls: counter(slot, Counter::OriginCalls(origin)), bytes: counter(slot, Counter::OriginBytes(origin)) }
}

fn losses(slot: &Slot) -> Vec<(LossReason, u64)> {
    let held = [
        (Counter::Uncounted, Loss::HistogramPoolFull),
        (Counter::Unattributed, Loss::ThreadTableFull),
        (Counter::ChunksUntracked, Loss::ChunkTableFull),
    ];
    held.into_iter()
        .map(|(held, loss)| (LossReason::Kernel(loss), counter(slot, held)))
        .filter(|(_, count)| *count != 0)
        .collect()
}

/// The program's own calls of a function: its entries without those that the allocator made.
fn outermost(row: &RawImage, function: Function) -> Histogram {
    let mut own = row.histogram(Series::Call(function)).copied().unwrap_or(Histogram::EMPTY);
    if let Some(transfers) = row.histogram(Series::Transfer(function)) {
        // A transfer is counted just before the entry it announces: read in between, it is one ahead.
        own.sum = own.sum.wrapping_sub(transfers.sum);
        for (bucket, transfers) in own.buckets.iter_mut().zip(transfers.buckets) {
            *bucket = bucket.saturating_sub(transfers);
        }
    }
    own
}

fn functions(row: &RawImage) -> Vec<FunctionCount> {
    let slot = &row.slot;
    let sized = function::ALL.into_iter().filter(|f| *f != Function::Free).map(|function| {
        let own = sized(Some(&outermost(row, function)));
        let failed =
            counter(slot, Counter::Failed(function)).saturating_sub(counter(slot, Counter::FailedTransfer(function)));
        FunctionCount {
            function,
            calls: own.count.calls,
            bytes: Some(own.count.bytes),
            failed: Some(failed),
            sizes: Some(own.sizes),
            estimate: None,
            shares_95: None,
        }
    });
    let free = FunctionCount {
        function: Function::Free,
        calls: counter(slot, Counter::Free).saturating_sub(counter(slot, Counter::FreeTransfer)),
        bytes: None,
        failed: None,
        sizes: None,
        estimate: None,
        shares_95: None,
    };
    sized.chain([free]).filter(|f| f.calls != 0 || f.failed.unwrap_or(0) != 0).collect()
}

/// A function from windows; `None` when none of its calls was seen.
fn function(index: usize, figure: &Figure) -> Option<FunctionCount> {
    let function = Function::from_index(u8::try_from(index).ok()?)?;
    let Row { calls, bytes, failed, .. } = &figure.row;
    let is_free = function == Function::Free;
    (*calls != 0 || *failed != 0).then(|| FunctionCount {
        function,
        calls: *calls,
        bytes: (!is_free).then_some(*bytes),
        failed: (!is_free).then_some(*failed),
        sizes: (!is_free).then(|| filled(&figure.row.buckets)),
        estimate: figure
            .estimate
            .map(|estimate| Estimate { bytes_95: estimate.bytes_95.filter(|_| !is_free), ..estimate }),
        shares_95: figure.shares_95.as_ref().filter(|_| !is_free).map(|shares| {
            let held = shares.iter().zip(figure.row.buckets).filter(|(_, calls)| *calls != 0);
            held.map(|(share, _)| *share).collect()
        }),
    })
}

fn calls(functions: &[FunctionCount]) -> Count {
    functions.iter().filter(|f| f.function != Function::Free).fold(Count::default(), |sum, f| Count {
        calls: sum.calls + f.calls,
        bytes: sum.bytes.wrapping_add(f.bytes.unwrap_or(0)),
    })
}

fn count(histogram: Option<&Histogram>) -> Count {
    histogram.map_or(Count::default(), |h| Count { calls: h.buckets.iter().sum(), bytes: h.sum })
}

pub(super) fn buckets(histogram: Option<&Histogram>) -> Vec<Bucket> {
    histogram.map(|histogram| filled(&histogram.buckets)).unwrap_or_default()
}

fn filled(buckets: &[u64]) -> Vec<Bucket> {
    let held = buckets.iter().enumerate();
    held.filter(|(_, calls)| **calls != 0)
        .map(|(index, calls)| {
            let (lo, hi) = histogram::bounds(index);
            Bucket { lo, hi, calls: *calls }
        })
        .collect()
}

pub(super) fn sized(histogram: Option<&Histogram>) -> Sized {
    Sized { count: count(histogram), sizes: buckets(histogram) }
}

/// What `mp_` said last: to a probe, or to the daemon.
fn threshold(slot: &Slot, heap: Option<&Heap>) -> Option<Threshold> {
    let raises = counter(slot, Counter::Raises);
    let event = Threshold {
        bytes: slot.threshold,
        trim_bytes: slot.trim_threshold,
        mode: if slot.threshold_pinned == 0 { ThresholdMode::Dynamic } else { ThresholdMode::Pinned },
        source: ThresholdSource::Event,
        raises,
        mmapped_chunks: slot.mmapped_chunks,
        mmapped_bytes: slot.mmapped_bytes,
    };
    match heap.filter(|heap| heap.read_ns > slot.threshold_ns) {
        Some(heap) => Some(Threshold { raises, ..heap.threshold }),
        None => (slot.threshold_ns != 0).then_some(event),
    }
}

/// Origins that a system call's own arguments tell.
fn told_by_arguments(origin: Origin) -> bool {
    matches!(origin, Origin::MmapFile | Origin::MmapThreadStack)
}

fn syscall(row: &RawImage, syscall: Syscall, told: &dyn Fn(Origin) -> bool) -> SyscallCount {
    let slot = &row.slot;
    let latency = row.histogram(Series::Latency(syscall));
    let by_origin: Vec<_> = ALL_ORIGINS
        .into_iter()
        .filter(|o| o.syscall() == syscall)
        .map(|o| (o, told(o).then(|| origin(slot, o))))
        .collect();
    let bytes = ALL_ORIGINS.into_iter().filter(|o| o.syscall() == syscall).map(|o| origin(slot, o).bytes);
    SyscallCount {
        calls: count(latency).calls,
        failed: counter(slot, Counter::SyscallFailed(syscall)),
        bytes: bytes.fold(0, u64::wrapping_add),
        by_origin,
        sizes: if syscall == Syscall::Brk { Vec::new() } else { buckets(row.histogram(Series::Sizes(syscall))) },
        latency_ns: buckets(latency),
    }
}
