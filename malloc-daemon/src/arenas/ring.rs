//! The ring of arenas, from `main_arena` by `next` back to it.

use malloc_common::site::{ArenaOffsets, largest_heap};

use super::bins::{self, Chunks};
use super::{ARENAS, Bytes, CHUNKS, Memory, Place, Regions};
use crate::aggregate::heap::Arena;

/// Bytes of an arena up to the last field that is read; the largest layout has 2,200.
pub(super) const ARENA_BYTES: usize = 2_200;
/// An arena that changes while its bins are walked is walked again, so often in all.
const TRIES: usize = 4;

/// The arenas, and whether these are all.
pub(super) fn read(
    memory: &dyn Memory,
    place: &Place,
    regions: &Regions,
    huge_page: u64,
) -> Result<(Vec<Arena>, bool), &'static str> {
    let main = place.main_arena.ok_or("main_arena was not found")?;
    let offsets = place.arena_layout.offsets().ok_or("the layout of an arena is not known")?;
    // A heap begins at a multiple of its greatest size.
    let heap_bytes = largest_heap(if huge_page.is_power_of_two() { huge_page } else { 0 });
    let ring = Ring { memory, regions, offsets, main, heap_bytes, place };
    let mut arenas = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut left = CHUNKS;
    let mut at = main;
    while seen.insert(at) {
        if arenas.len() >= ARENAS {
            return Ok((arenas, false));
        }
        let Some((arena, next)) = ring.arena(at, &mut left) else {
            return if at == main { Err("main_arena does not look like one") } else { Ok((arenas, false)) };
        };
        arenas.push(arena);
        at = next;
    }
    // A ring that runs into itself elsewhere is none.
    Ok((arenas, at == main))
}

struct Ring<'a> {
    memory: &'a dyn Memory,
    regions: &'a Regions,
    offsets: ArenaOffsets,
    main: u64,
    heap_bytes: u64,
    place: &'a Place,
}

impl Ring<'_> {
    /// One arena and the address of the next.
    fn arena(&self, at: u64, left: &mut usize) -> Option<(Arena, u64)> {
        let length = self.offsets.max_system_mem as usize + 8;
        let is_main = at == self.main;
        let readable = if is_main {
            self.regions.holds_variables(at, length as u64)
        } else {
            self.regions.holds_heap(at, length as u64) && self.is_of_heap(at, at)
        };
        if !readable || !at.is_multiple_of(8) {
            return None;
        }
        let mut held = [0; ARENA_BYTES];
        let fields = held.get_mut(..length)?;
        for attempt in 1..=TRIES {
            if !self.memory.read(at, fields) {
                return None;
            }
            let before = Bytes(fields);
            let word = |offset| before.word(offset);
            let (system_bytes, max_system_bytes) = (word(self.offsets.system_mem)?, word(self.offsets.max_system_mem)?);
            let top = self.top(at, word(self.offsets.top)?, system_bytes)?;
            let chunks = Chunks {
                memory: self.memory,
                regions: self.regions,
                offsets: &self.offsets,
                links: self.place.links,
                arena: at,
                system_bytes,
                is_of_heap: &|chunk| is_main || self.is_of_heap(chunk, at),
            };
            let mut free = bins::walk(&chunks, before, left);
            // What did not change meanwhile was walked as it stood.
            let mut again = [0; ARENA_BYTES];
            let again = again.get_mut(..length)?;
            let same = self.memory.read(at, again) && bins::same(&self.offsets, fields, again);
            free.complete &= same;
            if free.complete || attempt == TRIES || *left == 0 {
                let (top_bytes, top_resident_bytes) = top;
                let arena = Arena {
                    is_main,
                    system_bytes,
                    max_system_bytes,
                    top_bytes,
                    top_resident_bytes,
                    threads: word(self.offsets.attached_threads)?,
                    free: Some(free),
                };
                return Some((arena, word(self.offsets.next)?));
            }
        }
        None
    }

    /// Size of the top chunk, and what of it is resident.
    fn top(&self, arena: u64, top: u64, system_bytes: u64) -> Option<(u64, Option<u64>)> {
        // An arena that never served has no top, or the head of its first bin in the place of one.
        let head_of_bins = arena.checked_add(u64::from(self.offsets.bins))?.checked_sub(16)?;
        if top == 0 || top == head_of_bins {
            return Some((0, Some(0)));
        }
        let mut header = [0; 16];
        let is_here = top.is_multiple_of(16) && self.regions.holds_heap(top, 16);
        if !is_here || (arena != self.main && !self.is_of_heap(top, arena)) || !self.memory.read(top, &mut header) {
            return None;
        }
        let bytes = Bytes(&header).word(8)? & !7;
        // Read a moment after the rest: it may have grown with a heap that was not mapped then.
        let bytes = bytes.min(system_bytes);
        let end = top.saturating_add(bytes);
        Some((bytes, self.memory.absent(top, end).map(|absent| bytes.saturating_sub(absent))))
    }

    /// Whether the heap around `address` says that it belongs to `arena`: its `heap_info` begins with that pointer.
    fn is_of_heap(&self, address: u64, arena: u64) -> bool {
        let heap = address & !(self.heap_bytes - 1);
        let mut pointer = [0; 8];
        self.regions.holds_heap(heap, 8) && self.memory.read(heap, &mut pointer) && u64::from_ne_bytes(pointer) == arena
    }
}
