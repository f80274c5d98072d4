//! What a process's own memory says of its heaps: numbers as glibc keeps them, read without stopping it.

use super::model::Threshold;

/// One reading. The process runs meanwhile: each number is right for some moment of the reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heap {
    /// When, nanoseconds since boot.
    pub read_ns: u64,
    /// What reading took, microseconds.
    pub took_us: u64,
    /// `mp_`: the threshold and the chunks mapped one by one.
    pub threshold: Threshold,
    /// `mp_.top_pad`: what each growth of a heap asks for beyond the need, bytes.
    pub top_pad: u64,
    /// `mp_.max_mmapped_mem`: the most that chunks mapped one by one took at a time, bytes.
    pub max_mmapped_bytes: u64,
    /// The arenas in the order of their ring, the main one first.
    pub arenas: Vec<Arena>,
    /// Every arena is among them.
    pub every_arena: bool,
    /// Why there are none.
    pub not_read: Option<String>,
    /// Size of a page, bytes.
    pub page_bytes: u64,
    /// Resident memory of the whole process, bytes; `None`: not read.
    pub resident_bytes: Option<u64>,
    /// Page faults of the process that needed no reading from a disk, since its start; `None`: not read.
    pub minor_faults: Option<u64>,
}

/// One arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// It is `main_arena`, whose heap grows by `brk`.
    pub is_main: bool,
    /// Bytes it has of the kernel.
    pub system_bytes: u64,
    /// The most it had.
    pub max_system_bytes: u64,
    /// Size of the chunk at the top, bytes: free, and the only part that can be given back.
    pub top_bytes: u64,
    /// Of these, resident; `None`: not read.
    pub top_resident_bytes: Option<u64>,
    /// Threads attached to it.
    pub threads: u64,
    /// Free chunks below the top; `None`: not counted.
    pub free: Option<Free>,
}

/// The free chunks of an arena's bins. What the caches of threads hold is not free to the arena, and is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Free {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All of them; otherwise there are at least these: the walk ended early or met a change.
    pub complete: bool,
    /// By size, ascending, those that hold a chunk.
    pub sizes: Vec<FreeSizes>,
}

/// Free chunks of like size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSizes {
    /// Smallest size, bytes.
    pub lo: u64,
    /// Largest size, bytes.
    pub hi: u64,
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, whole pages that hold nothing; looked up in chunks of 64 KiB and more only.
    pub absent_bytes: u64,
}

impl Heap {
    /// Bytes that the arenas have of the kernel.
    #[must_use]
    pub fn system_bytes(&self) -> u64 {
        self.sum(|arena| arena.system_bytes)
    }

    /// Bytes in the top chunks.
    #[must_use]
    pub fn top_bytes(&self) -> u64 {
        self.sum(|arena| arena.top_bytes)
    }

    /// Bytes in free chunks below the tops; `None`: of some arena nothing is known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.arenas.iter().try_fold(0, |sum: u64, arena| Some(sum.saturating_add(arena.free.as_ref()?.bytes)))
    }

    /// Free chunks of all arenas by size.
    pub fn free_sizes(&self) -> impl Iterator<Item = &FreeSizes> {
        self.arenas.iter().filter_map(|arena| arena.free.as_ref()).flat_map(|free| &free.sizes)
    }

    /// Every arena and every free chunk was counted.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.every_arena && self.arenas.iter().all(|arena| arena.free.as_ref().is_some_and(|free| free.complete))
    }

    /// Bytes that the arenas hold and the program does not use: tops and free chunks; at least these, when the reading
    /// is not complete.
    #[must_use]
    pub fn retained_bytes(&self) -> u64 {
        self.top_bytes().saturating_add(self.sum(|arena| arena.free.as_ref().map_or(0, |free| free.bytes)))
    }

    /// The part of the retained bytes that is resident; `None`: not read for some arena.
    #[must_use]
    pub fn retained_resident_bytes(&self) -> Option<u64> {
        self.arenas.iter().try_fold(0, |sum: u64, arena| {
            let absent = |free: &Free| free.sizes.iter().map(|sizes| sizes.absent_bytes).sum::<u64>();
            let free = arena.free.as_ref().map_or(0, |free| free.bytes.saturating_sub(absent(free)));
            Some(sum.saturating_add(arena.top_resident_bytes?).saturating_add(free))
        })
    }

    fn sum(&self, of: impl Fn(&Arena) -> u64) -> u64 {
        self.arenas.iter().fold(0, |sum, arena| sum.saturating_add(of(arena)))
    }
}
