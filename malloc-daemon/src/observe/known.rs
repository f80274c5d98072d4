//! What the observer's parts know of a process, put together.

use malloc_common::depth::Depth;

use super::census::Census;
use super::cpu::CpuTimes;
use super::files::Files;
use super::heaps::Heaps;
use crate::aggregate::{Facts, Knowledge, Stamp};
use crate::collect::RawImage;

/// The parts that are asked, and how deep all are probed.
pub struct Known<'a> {
    pub census: &'a Census,
    pub files: &'a Files,
    /// [`Files::state`]
    pub state: u64,
    pub heaps: &'a Heaps,
    pub cpu: &'a CpuTimes,
    pub depth: Depth,
    /// Page faults of mapped chunks are counted.
    pub faults: bool,
}

impl Knowledge for Known<'_> {
    fn stamp(&self, row: &RawImage) -> Option<Stamp> {
        // What windows measure moves with the process's CPU time.
        if self.files.windows.as_ref().is_some_and(|windows| windows.knows(row)) {
            return None;
        }
        let [read_ns, named_ns, mapped_ns] = self.census.stamp(row);
        let heap_ns = self.heaps.read_ns(row);
        Some([read_ns, named_ns, mapped_ns, self.state, heap_ns, self.cpu.of(row).unwrap_or(0)])
    }

    fn facts(&self, row: &RawImage) -> Facts {
        Facts {
            heap: self.heaps.of(row),
            cpu_ns: self.cpu.of(row),
            faults: self.faults,
            ..self.census.facts(row, self.files, self.depth)
        }
    }
}
