//! What is known of mapped chunks.

use std::sync::Arc;

use super::{Bucket, Count, ProcessId, Stack};

/// Chunks that `malloc` mapped, and what that cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crossings {
    /// How many, and the bytes mapped.
    pub count: Count,
    /// Distribution of the lengths.
    pub sizes: Vec<Bucket>,
    /// Nanoseconds in their `mmap`s.
    pub mmap_ns: u64,
    /// What became of them; `None`: no probe of the allocator tells.
    pub ends: Option<ChunkEnds>,
    /// Page faults that their memory took; `None`: not counted.
    pub faults: Option<ChunkFaults>,
}

/// What became of mapped chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkEnds {
    /// Those that were mapped and unmapped while observed: nanoseconds from the return of `mmap` to the entry of
    /// `munmap`. Calls that resize a chunk are part of its life.
    pub lifetime_ns: Vec<Bucket>,
    /// Sum of these.
    pub lifetime_sum_ns: u64,
    /// Unmapped within a second (`malloc_common::chunk::CHURN_NS`): how many, and the bytes unmapped.
    pub churned: Count,
    /// Unmapped, but mapped before the process was observed, by the process it was forked from, in place of a heap that
    /// could not grow, or while the table was full.
    pub birth_unknown: u64,
    /// Nanoseconds in their `munmap`s.
    pub munmap_ns: u64,
    /// Nanoseconds in their `mremap`s.
    pub mremap_ns: u64,
}

impl ChunkEnds {
    /// How many were mapped and unmapped while observed.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.lifetime_ns.iter().fold(0, |sum, bucket| sum.saturating_add(bucket.calls))
    }
}

/// Page faults of mapped chunks. Those of watched chunks are counted one by one; a chunk is watched to its end, or for
/// its first 100 ms (`malloc_common::chunk::WATCH_NS`) when others wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkFaults {
    /// Chunks that were or are watched, and their bytes.
    pub watched: Count,
    /// Page faults that these took.
    pub taken: u64,
    /// Those of them that were watched to their end and unmapped within a second.
    pub churned: u64,
    /// Page faults that these took.
    pub churned_taken: u64,
    /// Distribution of the faults of a chunk, of those that are watched no more.
    pub per_chunk: Vec<Bucket>,
    /// Page faults of all mapped chunks; `None`: there were chunks and none was watched.
    pub total: Option<FaultsTotal>,
}

/// Page faults of all mapped chunks, from those that were watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultsTotal {
    /// How many; exact when every chunk was watched.
    pub faults: u64,
    /// Part of the mapped chunks that were watched, millionths.
    pub coverage_ppm: u32,
    /// Between these two lies the true number, 95 times in 100, if chunks are watched by chance; both are
    /// `faults` when every chunk was.
    pub interval_95: (u64, u64),
}

/// Who had the chunks of one image mapped, as far as stacks were sampled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrossingStacks {
    /// Which process.
    pub id: ProcessId,
    /// Which image of it.
    pub image_ns: u64,
    /// Crossings whose stacks were sampled.
    pub samples: u64,
    /// Those that are named, most bytes first. Crossings that are in none of them have a stack that is not named, came
    /// after the last that was sampled, or belong to stacks beyond the ceiling.
    pub stacks: Vec<StackShare>,
}

/// What one stack stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackShare {
    /// Crossings: the sampled ones and, for each, those since the one sampled before it.
    pub calls: u64,
    /// Their bytes, if each is as long as the sampled one that stands for it.
    pub bytes: u64,
    /// Sampled ones.
    pub samples: u64,
    /// Who asked.
    pub stack: Arc<Stack>,
}
