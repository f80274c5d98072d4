//! Every way in which the kernel side can fail to count, each with a counter of its own.

/// Why something that happened is missing from the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Loss {
    /// No free slot for a process: none of its calls are counted.
    ProcessTableFull = 0,
    /// No free histogram for a process: the call is missing from counts and sizes.
    HistogramPoolFull = 1,
    /// No room for a thread's state: its system calls are counted without origin and time, or not at all.
    ThreadTableFull = 2,
    /// The event ring was full: an event (not a count) is missing.
    EventRingFull = 3,
    /// A probe carried a cookie this program does not know: a defect of the daemon.
    UnknownProbe = 4,
    /// A system call returned whose entry was not seen (the probes came in between).
    UnpairedReturn = 5,
    /// A system call's entry whose return was never seen before the thread's next one.
    UnpairedEntry = 6,
    /// No room to mark a child of a recorded process: the child is not recorded.
    TargetTableFull = 7,
    /// No room to remember a mapped chunk: how long it lives is not known.
    ChunkTableFull = 8,
}

/// How many reasons there are.
pub const LOSSES: usize = 9;

/// Every reason, in the order of the discriminants.
pub const ALL: [Loss; LOSSES] = [
    Loss::ProcessTableFull,
    Loss::HistogramPoolFull,
    Loss::ThreadTableFull,
    Loss::EventRingFull,
    Loss::UnknownProbe,
    Loss::UnpairedReturn,
    Loss::UnpairedEntry,
    Loss::TargetTableFull,
    Loss::ChunkTableFull,
];

impl Loss {
    /// The name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Loss::ProcessTableFull => "process_table_full",
            Loss::HistogramPoolFull => "histogram_pool_full",
            Loss::ThreadTableFull => "thread_table_full",
            Loss::EventRingFull => "event_ring_full",
            Loss::UnknownProbe => "unknown_probe",
            Loss::UnpairedReturn => "unpaired_return",
            Loss::UnpairedEntry => "unpaired_entry",
            Loss::TargetTableFull => "target_table_full",
            Loss::ChunkTableFull => "chunk_table_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_are_the_indices() {
        for (index, loss) in ALL.iter().enumerate() {
            assert_eq!(*loss as usize, index);
        }
    }
}
