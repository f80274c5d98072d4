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
}

/// 64-bit words of a [`ChunkKey`].
pub const CHUNK_KEY_WORDS: usize = size_of::<ChunkKey>() / 8;
/// 64-bit words of a [`Chunk`].
pub const CHUNK_WORDS: usize = size_of::<Chunk>() / 8;

impl ChunkKey {
    /// The key in these words of a map.
    #[must_use]
    pub const fn from_words([tgid, address]: [u64; CHUNK_KEY_WORDS]) -> Self {
        Self { tgid, address }
    }
}

impl Chunk {
    /// A chunk whose birth was not seen.
    pub const UNKNOWN: Self = Self { born_ns: 0, image_ns: 0, bytes: 0 };

    /// The chunk in these words of a map.
    #[must_use]
    pub const fn from_words([born_ns, image_ns, bytes]: [u64; CHUNK_WORDS]) -> Self {
        Self { born_ns, image_ns, bytes }
    }
}

const _: () = {
    assert!(size_of::<ChunkKey>() == 8 * CHUNK_KEY_WORDS);
    assert!(size_of::<Chunk>() == 8 * CHUNK_WORDS);
};
