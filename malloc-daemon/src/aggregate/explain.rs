//! What a process's numbers mean: findings with their figures; the words are the report's.

use std::sync::Arc;

use super::model::{Process, Raise, Snapshot, ThresholdMode};
use super::what_if::{self, DEFAULT_THRESHOLD};

/// Retained bytes worth a word: 1 MiB, and a tenth of what the arenas hold.
const RETAINED: u64 = 1 << 20;

/// One thing worth knowing.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// The dynamic threshold stands above where it began.
    ThresholdRaised {
        /// Where it began, as far as it was seen, bytes.
        from_bytes: u64,
        /// Where it stands, bytes.
        to_bytes: u64,
        /// The top of the heap is given back from here on, bytes.
        trim_bytes: u64,
        /// Times it was seen to rise.
        raises: u64,
        /// Requests of sizes between the two; `None`: calls are not measured.
        requests: Option<u64>,
        /// They were counted in windows, and are an estimate.
        requests_estimated: bool,
        /// The last raise that was seen.
        last: Option<Arc<Raise>>,
        /// Nanoseconds between that and the end of what the counts cover.
        last_ago_ns: Option<u64>,
    },
    /// The threshold is set and does not move.
    ThresholdPinned {
        /// Where, bytes.
        bytes: u64,
    },
    /// The arenas hold memory that the program does not use.
    Retained {
        /// At least these bytes.
        bytes: u64,
        /// It is all of them.
        complete: bool,
        /// Of these, resident.
        resident_bytes: Option<u64>,
        /// In the chunks at the tops.
        top_bytes: u64,
        /// In free chunks below live ones.
        free_bytes: u64,
        /// What the arenas have of the kernel.
        system_bytes: u64,
        /// The top is given back from here on.
        trim_bytes: u64,
    },
    /// Chunks are mapped and unmapped again and again.
    Churn {
        /// Mapped and unmapped again.
        chunks: u64,
        /// That a second.
        per_second: u64,
        /// Their bytes.
        bytes: u64,
        /// Nanoseconds in `mmap` and `munmap` for all mapped chunks.
        kernel_ns: u64,
        /// Page faults of all mapped chunks, from those that were watched; `None`: not counted.
        page_faults: Option<u64>,
        /// The threshold they are above.
        threshold_bytes: Option<u64>,
    },
    /// The heap was not read, so nothing is said of what is retained.
    HeapNotRead {
        /// Why, if it was tried.
        why: Option<String>,
    },
    /// None of these.
    NothingNotable,
}

impl Finding {
    /// The name in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Finding::ThresholdRaised { .. } => "threshold_raised",
            Finding::ThresholdPinned { .. } => "threshold_pinned",
            Finding::Retained { .. } => "retained",
            Finding::Churn { .. } => "churn",
            Finding::HeapNotRead { .. } => "heap_not_read",
            Finding::NothingNotable => "nothing_notable",
        }
    }
}

/// What is worth knowing of a process, the most important first; empty when its allocator is not glibc.
#[must_use]
pub fn explain(snapshot: &Snapshot, process: &Process) -> Vec<Finding> {
    if process.allocator.as_ref().is_none_or(|allocator| allocator.kind != "glibc") {
        return Vec::new();
    }
    let mut findings: Vec<Finding> =
        [retained(process), churn(process), threshold(snapshot, process)].into_iter().flatten().collect();
    if !findings.iter().any(|finding| !matches!(finding, Finding::ThresholdPinned { .. })) {
        findings.push(Finding::NothingNotable);
    }
    if process.heap.as_ref().is_none_or(|heap| heap.not_read.is_some()) {
        let why = process.heap.as_ref().and_then(|heap| heap.not_read.clone());
        findings.push(Finding::HeapNotRead { why: process.heap_unread.clone().or(why) });
    }
    findings
}

fn threshold(snapshot: &Snapshot, process: &Process) -> Option<Finding> {
    let threshold = process.threshold.as_ref()?;
    match threshold.mode {
        ThresholdMode::Pinned => Some(Finding::ThresholdPinned { bytes: threshold.bytes }),
        ThresholdMode::Dynamic if threshold.bytes > DEFAULT_THRESHOLD => {
            let ends_ns = process.image_ns.saturating_add(process.observed_ms.saturating_add(1) * 1_000_000);
            let own =
                |raise: &&Arc<Raise>| raise.id == process.id && raise.ns >= process.image_ns && raise.ns <= ends_ns;
            let last = snapshot.raises.iter().rev().find(own).cloned();
            Some(Finding::ThresholdRaised {
                from_bytes: DEFAULT_THRESHOLD,
                to_bytes: threshold.bytes,
                trim_bytes: threshold.trim_bytes,
                raises: threshold.raises,
                requests: requests_between(process, DEFAULT_THRESHOLD, threshold.bytes),
                requests_estimated: process.funnel.call_estimate.is_some(),
                last_ago_ns: last.as_ref().map(|last| ends_ns.saturating_sub(last.ns)),
                last,
            })
        }
        ThresholdMode::Dynamic | ThresholdMode::Unknown => None,
    }
}

/// Requests in the size classes that lie between two sizes whole.
fn requests_between(process: &Process, from: u64, to: u64) -> Option<u64> {
    let functions = process.functions.as_ref()?;
    let sizes = functions.iter().filter_map(|function| function.sizes.as_deref()).flatten();
    Some(sizes.filter(|bucket| bucket.lo >= from && bucket.hi < to).map(|bucket| bucket.calls).sum())
}

fn retained(process: &Process) -> Option<Finding> {
    let heap = process.heap.as_ref().filter(|heap| heap.not_read.is_none())?;
    let (bytes, system_bytes) = (heap.retained_bytes(), heap.system_bytes());
    (bytes >= RETAINED && bytes >= system_bytes / 10).then(|| Finding::Retained {
        bytes,
        complete: heap.is_complete(),
        resident_bytes: heap.retained_resident_bytes(),
        top_bytes: heap.top_bytes(),
        free_bytes: bytes - heap.top_bytes(),
        system_bytes,
        trim_bytes: heap.threshold.trim_bytes,
    })
}

fn churn(process: &Process) -> Option<Finding> {
    let ((chunks, per_second), crossings) = (what_if::churn(process)?, process.crossings.as_ref()?);
    let ends = crossings.ends.as_ref()?;
    Some(Finding::Churn {
        chunks,
        per_second,
        bytes: ends.churned.bytes,
        page_faults: crossings.faults.as_ref().and_then(|faults| faults.total).map(|total| total.faults),
        kernel_ns: crossings.mmap_ns.saturating_add(ends.munmap_ns),
        threshold_bytes: process.threshold.as_ref().map(|threshold| threshold.bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn kinds(process: Process) -> Vec<&'static str> {
        let snapshot = sample::snapshot(vec![process]);
        explain(&snapshot, &snapshot.processes[0]).iter().map(Finding::kind).collect()
    }

    #[test]
    fn a_process_with_nothing_notable_is_told_so() {
        let mut process = sample::sqlite();
        process.heap = Some(Arc::new(crate::aggregate::heap::Heap { arenas: Vec::new(), ..sample::heap() }));
        assert_eq!(kinds(process.clone()), ["nothing_notable"]);
        process.heap = None;
        assert_eq!(kinds(process), ["nothing_notable", "heap_not_read"]);
    }

    #[test]
    fn what_is_retained_and_a_raised_threshold_are_told() {
        let mut process = sample::sqlite();
        if let Some(threshold) = &mut process.threshold {
            threshold.bytes = 1_052_672;
            threshold.trim_bytes = 2_105_344;
        }
        assert_eq!(kinds(process), ["retained", "threshold_raised"]);
    }

    #[test]
    fn another_allocator_has_no_explanation() {
        let mut process = sample::sqlite();
        if let Some(allocator) = &mut process.allocator {
            Arc::make_mut(allocator).kind = "jemalloc".to_owned();
        }
        assert!(kinds(process).is_empty());
    }
}
