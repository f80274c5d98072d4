//! Mapped chunks in the documents.

use serde::{Deserialize, Serialize};

use super::{Bucket, Count};

/// Chunks that `malloc` mapped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crossings {
    /// How many.
    pub calls: u64,
    /// Bytes mapped.
    pub bytes: u64,
    /// Mappings because the heap could not grow; not among `calls`.
    pub fallback_calls: Option<u64>,
    /// Distribution of the lengths.
    pub sizes: Vec<Bucket>,
    /// Those that were unmapped: nanoseconds from the return of `mmap` to the entry of `munmap`.
    pub lifetime_ns: Option<Vec<Bucket>>,
    /// Those of them that were unmapped within a second, with the bytes unmapped.
    pub churned: Option<Count>,
    /// Chunks that were unmapped and whose `mmap` was not seen.
    pub birth_unknown: Option<u64>,
    /// Nanoseconds in the `mmap`s of crossings.
    pub mmap_ns: u64,
    /// Nanoseconds in the `munmap`s of mapped chunks.
    pub munmap_ns: Option<u64>,
    /// Nanoseconds in the `mremap`s of mapped chunks.
    pub mremap_ns: Option<u64>,
    /// Page faults that mapped chunks took.
    pub faults: Option<ChunkFaults>,
}

/// Page faults of mapped chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkFaults {
    /// Chunks whose faults are counted one by one, and their bytes.
    pub watched: Count,
    /// Faults of these.
    pub taken: u64,
    /// Those of them that were watched to their end and unmapped within a second.
    pub churned: u64,
    /// Faults of these.
    pub churned_taken: u64,
    /// Distribution of the faults of a chunk, of those that are watched no more.
    pub per_chunk: Vec<Bucket>,
    /// Faults of all mapped chunks.
    pub total: Option<u64>,
    /// Not every chunk was watched: `total` is an estimate.
    pub estimated: bool,
    /// Part of the mapped chunks that were watched, 0 to 1.
    pub coverage: f64,
    /// Between these two `total` lies 95 times in 100.
    pub interval_95: Option<[u64; 2]>,
}
