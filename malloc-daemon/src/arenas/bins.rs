//! The free chunks of one arena: its bins and fastbins, walked by their links while the process may change them.

use malloc_common::histogram;
use malloc_common::site::ArenaOffsets;

use super::{Bytes, Links, Memory, Regions};
use crate::aggregate::heap::{Free, FreeSizes};

/// `NBINS`: 1 is unsorted, 2 to 63 hold one size each, the rest hold ranges.
const BINS: u32 = 128;
/// Bins of one size.
const SMALL: u32 = 64;
/// `NFASTBINS`
const FASTBINS: u32 = 10;
/// Smallest chunk, bytes.
const LEAST: u64 = 32;
/// Free chunks from this size on are asked for pages that hold nothing.
const ASKED_FOR_PAGES: u64 = 64 << 10;
/// Such chunks asked for in one walk.
const ASKED: usize = 512;

/// What a walk needs.
pub(super) struct Chunks<'a> {
    pub memory: &'a dyn Memory,
    pub regions: &'a Regions,
    pub offsets: &'a ArenaOffsets,
    pub links: Option<Links>,
    pub arena: u64,
    pub system_bytes: u64,
    /// Whether a chunk lies in a heap of this arena.
    pub is_of_heap: &'a dyn Fn(u64) -> bool,
}

/// One header: size and links.
struct Header {
    size: u64,
    fd: u64,
    bk: u64,
}

/// All free chunks that `arena`'s fields lead to; each costs one of `left`.
pub(super) fn walk(chunks: &Chunks<'_>, arena: Bytes<'_>, left: &mut usize) -> Free {
    let mut found = Found { free: Free { complete: true, ..Free::default() }, by_size: Vec::new(), asked: 0 };
    for bin in 1..BINS {
        // An unfinished bin leaves what was found in it: "at least" is the sum.
        if bin_of(chunks, arena, bin, left, &mut found).is_none() {
            found.free.complete = false;
        }
    }
    if let Some(first) = chunks.offsets.fastbins {
        for index in 0..FASTBINS {
            if fastbin(chunks, arena.word(first + 8 * index), index, left, &mut found).is_none() {
                found.free.complete = false;
            }
        }
    }
    found.by_size.sort_by_key(|sizes| sizes.lo);
    Free { sizes: found.by_size, ..found.free }
}

/// Whether bins, top and size are the same in two readings of an arena.
pub(super) fn same(offsets: &ArenaOffsets, one: &[u8], other: &[u8]) -> bool {
    let part = |fields: &[u8]| {
        let from = offsets.fastbins.unwrap_or(offsets.top) as usize;
        let system = offsets.system_mem as usize;
        Some((fields.get(from..offsets.next as usize)?.to_vec(), fields.get(system..system + 8)?.to_vec()))
    };
    part(one).is_some_and(|one| part(other) == Some(one))
}

struct Found {
    free: Free,
    by_size: Vec<FreeSizes>,
    asked: usize,
}

fn bin_of(chunks: &Chunks<'_>, arena: Bytes<'_>, bin: u32, left: &mut usize, found: &mut Found) -> Option<()> {
    let place = chunks.offsets.bins + (bin - 1) * 16;
    let (first, last) = (arena.word(place)?, arena.word(place + 8)?);
    // The links of a bin lie where those of a chunk 16 bytes before would.
    let head = chunks.arena.checked_add(u64::from(place))?.checked_sub(16)?;
    // An arena that never served.
    if first == 0 && last == 0 {
        return Some(());
    }
    let (mut previous, mut at) = (head, first);
    while at != head {
        *left = left.checked_sub(1)?;
        let header = chunks.header(at)?;
        let right_bin = match bin {
            1 => true,
            _ if bin < SMALL => header.size == u64::from(bin) * 16,
            _ => header.size >= u64::from(SMALL) * 16,
        };
        if header.bk != previous || !right_bin {
            return None;
        }
        found.add(chunks, at, header.size);
        (previous, at) = (at, header.fd);
    }
    (last == previous).then_some(())
}

fn fastbin(chunks: &Chunks<'_>, first: Option<u64>, index: u32, left: &mut usize, found: &mut Found) -> Option<()> {
    let mut at = first?;
    while at != 0 {
        let links = chunks.links?;
        *left = left.checked_sub(1)?;
        let header = chunks.header(at)?;
        if header.size != u64::from(index + 2) * 16 {
            return None;
        }
        found.add(chunks, at, header.size);
        at = match links {
            Links::Plain => header.fd,
            Links::Protected => header.fd ^ (at.checked_add(16)? >> 12),
        };
    }
    Some(())
}

impl Chunks<'_> {
    /// The header of what must be a chunk of this arena.
    fn header(&self, at: u64) -> Option<Header> {
        if !at.is_multiple_of(16) || !self.regions.holds_heap(at, LEAST) || !(self.is_of_heap)(at) {
            return None;
        }
        let mut bytes = [0; 32];
        if !self.memory.read(at, &mut bytes) {
            return None;
        }
        let header = Bytes(&bytes);
        let word = header.word(8)?;
        let size = word & !7;
        let is_mapped_alone = word & 2 != 0;
        let fits = size >= LEAST
            && size.is_multiple_of(16)
            && size <= self.system_bytes
            && self.regions.holds_heap(at, size)
            && !is_mapped_alone;
        fits.then_some(Header { size, fd: header.word(16)?, bk: header.word(24)? })
    }
}

impl Found {
    fn add(&mut self, chunks: &Chunks<'_>, at: u64, size: u64) {
        self.free.chunks += 1;
        self.free.bytes = self.free.bytes.saturating_add(size);
        let mut absent = 0;
        if size >= ASKED_FOR_PAGES && self.asked < ASKED {
            self.asked += 1;
            absent = chunks.memory.absent(at, at.saturating_add(size)).unwrap_or(0);
        }
        // Some 190 classes exist: a search through the few that are used is short.
        let (lo, hi) = histogram::bounds(histogram::bucket(size) as usize);
        match self.by_size.iter_mut().find(|sizes| sizes.lo == lo) {
            Some(sizes) => {
                sizes.chunks += 1;
                sizes.bytes = sizes.bytes.saturating_add(size);
                sizes.absent_bytes += absent;
            }
            None => self.by_size.push(FreeSizes { lo, hi, chunks: 1, bytes: size, absent_bytes: absent }),
        }
    }
}
