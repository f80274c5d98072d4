//! What the numbers mean, and what another threshold would have done, for programs: `explanation` and `what_if`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::Text;
use crate::aggregate::explain::{self, Finding};
use crate::aggregate::model::{Process, Snapshot};
use crate::aggregate::what_if::{self, Change};
use crate::report::words;

/// One thing worth knowing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation<'a> {
    /// Which; stays as it is.
    pub kind: Text<'a>,
    /// The same in words; may change.
    pub text: String,
    /// Its figures, by names that docs/api.md gives; what is not known is left out.
    #[serde(flatten)]
    pub numbers: BTreeMap<String, u64>,
}

/// A setting, and what it would have changed in the time observed: an estimate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhatIf<'a> {
    /// The value of `GLIBC_TUNABLES`.
    pub setting: String,
    /// Its `glibc.malloc.mmap_threshold`.
    pub mmap_threshold_bytes: u64,
    /// Its `glibc.malloc.trim_threshold`; `null`: left alone.
    pub trim_threshold_bytes: Option<u64>,
    /// Always true.
    pub estimated: bool,
    /// What was replayed: `call`, `arena`, `sysmalloc` or `crossings`.
    pub basis: Text<'a>,
    /// Milliseconds in which all this happened.
    pub observed_ms: u64,
    /// Chunks that were mapped.
    pub mmap_calls_now: u64,
    /// Chunks that would have been.
    pub mmap_calls: AtLeast,
    /// Page faults more; below zero: fewer.
    pub page_faults_change: Difference,
    /// Retained bytes more; `null`: the heap was not read.
    pub retained_bytes_change: Option<Difference>,
    /// Of these, resident.
    pub resident_bytes_change: Option<Difference>,
    /// What it rests on, in words.
    pub assumptions: Vec<String>,
    /// All of it in a sentence.
    pub text: String,
}

/// A count within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtLeast {
    /// At least.
    pub low: u64,
    /// At most; `null`: not known.
    pub high: Option<u64>,
}

/// A difference within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// At least.
    pub low: i64,
    /// Most likely.
    pub about: i64,
    /// At most.
    pub high: i64,
}

pub(super) fn explanation(snapshot: &Snapshot, process: &Process) -> Vec<Explanation<'static>> {
    let libc = process.allocator.as_ref().map(|allocator| allocator.path.as_str());
    let findings = explain::explain(snapshot, process);
    findings
        .iter()
        .map(|finding| Explanation {
            kind: Cow::Borrowed(finding.kind()),
            text: words::finding(finding, libc),
            numbers: numbers(finding),
        })
        .collect()
}

pub(super) fn what_if(process: &Process) -> Vec<WhatIf<'static>> {
    what_if::what_if(process)
        .iter()
        .map(|estimate| WhatIf {
            setting: words::setting(estimate),
            mmap_threshold_bytes: estimate.mmap_threshold,
            trim_threshold_bytes: estimate.trim_threshold,
            estimated: true,
            basis: Cow::Borrowed(estimate.basis.name()),
            observed_ms: estimate.observed_ms,
            mmap_calls_now: estimate.mmaps_now,
            mmap_calls: AtLeast { low: estimate.mmaps.0, high: estimate.mmaps.1 },
            page_faults_change: difference(estimate.faults),
            retained_bytes_change: estimate.retained.map(difference),
            resident_bytes_change: estimate.resident.map(difference),
            assumptions: estimate.assumptions.iter().map(|assumption| words::assumption(*assumption)).collect(),
            text: words::estimate(estimate),
        })
        .collect()
}

fn difference(change: Change) -> Difference {
    Difference { low: change.low, about: change.about, high: change.high }
}

fn numbers(finding: &Finding) -> BTreeMap<String, u64> {
    let all: Vec<(&str, Option<u64>)> = match finding {
        Finding::ThresholdRaised { from_bytes, to_bytes, trim_bytes, raises, requests, last, .. } => vec![
            ("from_bytes", Some(*from_bytes)),
            ("to_bytes", Some(*to_bytes)),
            ("trim_bytes", Some(*trim_bytes)),
            ("raises", Some(*raises)),
            ("requests", *requests),
            ("last_raise_unix_ms", last.as_ref().map(|last| last.unix_ms)),
        ],
        Finding::ThresholdPinned { bytes } => vec![("bytes", Some(*bytes))],
        Finding::Retained { bytes, resident_bytes, top_bytes, free_bytes, system_bytes, trim_bytes, .. } => vec![
            ("bytes", Some(*bytes)),
            ("resident_bytes", *resident_bytes),
            ("top_bytes", Some(*top_bytes)),
            ("free_bytes", Some(*free_bytes)),
            ("system_bytes", Some(*system_bytes)),
            ("trim_bytes", Some(*trim_bytes)),
        ],
        Finding::Churn { chunks, per_second, bytes, kernel_ns, page_faults, threshold_bytes } => vec![
            ("chunks", Some(*chunks)),
            ("per_second", Some(*per_second)),
            ("bytes", Some(*bytes)),
            ("kernel_ns", Some(*kernel_ns)),
            ("page_faults", *page_faults),
            ("threshold_bytes", *threshold_bytes),
        ],
        Finding::HeapNotRead { .. } | Finding::NothingNotable => Vec::new(),
    };
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
