//! Mapped chunks: what is remembered of each between its `mmap` and its `munmap`.

/// A chunk that is unmapped sooner than this after it was mapped is churn, nanoseconds: 1 s.
pub const CHURN_NS: u64 = 1_000_000_000;

/// Which chunk: addresses are those of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkKey {
    /// Process id in the initial namespace.
    pub tgid: u64,
    /// Start of the mapping.
    pub address: u64,
}

/// A chunk that `malloc` mapped and that is not unmapped yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// When its `mmap` returned, nanoseconds since boot; 0: not known.
    pub born_ns: u64,
    /// [`Slot::first_ns`](crate::abi::Slot::first_ns) of the image that mapped it: one that replaced it, or another
    /// process that has its number now, knows nothing of the chunk.
    pub image_ns: u64,
    /// Length of the mapping, bytes.
    pub bytes: u64,
    /// 1 + the index of its [`Watch`]; 0: its page faults are not counted.
    pub watch: u64,
}

/// How long a chunk keeps its place where another one wants it, nanoseconds: 100 ms. A program that keeps every chunk
/// it maps has 40 a second watched; a hundred thousand pages are touched in that time.
pub const WATCH_NS: u64 = 100_000_000;

/// Chunks of one image whose page faults are counted at the same time: of four threads that map, use and unmap one
/// chunk after the other, every one is watched. Each fault is compared with as many ranges.
pub const WATCHES: usize = 4;

/// [`Watch::state`]: nobody's.
pub const WATCH_FREE: u32 = 0;
/// [`Watch::state`]: faults are counted.
pub const WATCH_SET: u32 = 1;
/// [`Watch::state`]: one thread is changing it.
pub const WATCH_CHANGES: u32 = 2;

/// The memory of one mapped chunk, and the page faults that it took.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// One of the `WATCH_` constants.
    pub state: u32,
    /// Explicit padding.
    pub pad: u32,
    /// Start of the mapping; 0: no fault is counted.
    pub start: u64,
    /// Its end.
    pub end: u64,
    /// Page faults since it was mapped.
    pub faults: u64,
    /// When it was mapped, nanoseconds since boot.
    pub born_ns: u64,
}

/// 64-bit words of a [`ChunkKey`].
pub const CHUNK_KEY_WORDS: usize = size_of::<ChunkKey>() / 8;
/// 64-bit words of a [`Chunk`].
pub const CHUNK_WORDS: usize = size_of::<Chunk>() / 8;

impl Watch {
    /// A place that nobody has.
    pub const FREE: Self = Self { state: WATCH_FREE, pad: 0, start: 0, end: 0, faults: 0, born_ns: 0 };
}

impl ChunkKey {
    /// The key in these words of a map.
    #[must_use]
    pub const fn from_words([tgid, address]: [u64; CHUNK_KEY_WORDS]) -> Self {
        Self { tgid, address }
    }
}

impl Chunk {
    /// A chunk whose birth was not seen.
    pub const UNKNOWN: Self = Self { born_ns: 0, image_ns: 0, bytes: 0, watch: 0 };

    /// The chunk in these words of a map.
    #[must_use]
    pub const fn from_words([born_ns, image_ns, bytes, watch]: [u64; CHUNK_WORDS]) -> Self {
        Self { born_ns, image_ns, bytes, watch }
    }
}

const _: () = {
    assert!(size_of::<ChunkKey>() == 8 * CHUNK_KEY_WORDS);
    assert!(size_of::<Chunk>() == 8 * CHUNK_WORDS);
    assert!(size_of::<Watch>() == 40);
};
