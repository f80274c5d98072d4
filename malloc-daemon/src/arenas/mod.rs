//! Reads glibc's arenas out of a process's memory: pure, over a trait, with a bound on everything and faith in nothing.
//!
//! The structures and their offsets are those of glibc 2.23 to 2.44 on 64-bit machines.

mod bins;
mod regions;
mod ring;

use malloc_common::site::{ArenaLayout, MP_MMAP_THRESHOLD, MP_TOP_PAD, MP_TRIM_THRESHOLD, MpLayout};

use crate::aggregate::heap::Arena;
use crate::aggregate::model::{Threshold, ThresholdMode, ThresholdSource};

pub use regions::{Region, Regions};

/// Arenas read of one process; glibc makes at most eight to a processor by itself.
pub const ARENAS: usize = 1_024;
/// Free chunks looked at in one reading, tries over again included. 65,536 x about 1 us = 66 ms.
pub const CHUNKS: usize = 65_536;

/// A process's memory.
pub trait Memory {
    /// Fills `into` from `address` on; `false`: not all of it can be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
    /// Bytes of the whole pages between two addresses that hold nothing: never touched, given back, or swapped out.
    /// `None`: not known.
    fn absent(&self, start: u64, end: u64) -> Option<u64>;
}

/// Where the allocator's variables lie in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of `mp_`.
    pub mp: u64,
    /// Its layout.
    pub mp_layout: MpLayout,
    /// Address of `main_arena`; `None`: not known, the arenas are not read.
    pub main_arena: Option<u64>,
    /// The layout of an arena.
    pub arena_layout: ArenaLayout,
    /// How the single links of fastbins are written; `None`: not known.
    pub links: Option<Links>,
    /// An address in the allocator's own file, which holds these variables.
    pub code: u64,
}

/// How a single link is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// As it is: before glibc 2.32.
    Plain,
    /// Mixed with the address it is written at, shifted by 12 bits.
    Protected,
}

impl Links {
    /// Of that version, `2.36`.
    #[must_use]
    pub fn of_version(version: &str) -> Option<Self> {
        let minor: u32 = version.strip_prefix("2.")?.split('.').next()?.parse().ok()?;
        Some(if minor >= 32 { Links::Protected } else { Links::Plain })
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// `mp_`
    pub threshold: Threshold,
    /// `mp_.top_pad`, bytes.
    pub top_pad: u64,
    /// `mp_.max_mmapped_mem`, bytes.
    pub max_mmapped_bytes: u64,
    /// The arenas, the main one first, or why they were not read.
    pub arenas: Result<Vec<Arena>, &'static str>,
    /// The ring was gone round.
    pub every_arena: bool,
}

/// Reads everything.
///
/// # Errors
/// Why nothing can be told.
pub fn read(memory: &dyn Memory, place: &Place, regions: &Regions) -> Result<Reading, &'static str> {
    let offsets = place.mp_layout.offsets().ok_or("the layout of mp_ is not known")?;
    let mut bytes = [0; 128];
    if !regions.holds_variables(place.mp, bytes.len() as u64) || !memory.read(place.mp, &mut bytes) {
        return Err("the memory of mp_ cannot be read");
    }
    let mp = Bytes(&bytes);
    let missing = "mp_ is cut short";
    let threshold = Threshold {
        bytes: mp.word(MP_MMAP_THRESHOLD).ok_or(missing)?,
        trim_bytes: mp.word(MP_TRIM_THRESHOLD).ok_or(missing)?,
        mode: match mp.half(offsets.no_dyn_threshold).ok_or(missing)? {
            0 => ThresholdMode::Dynamic,
            _ => ThresholdMode::Pinned,
        },
        source: ThresholdSource::Memory,
        raises: 0,
        mmapped_chunks: mp.half(offsets.n_mmaps).ok_or(missing)?.into(),
        mmapped_bytes: mp.word(offsets.mmapped_mem).ok_or(missing)?,
    };
    let huge_page = place.mp_layout.hp_pagesize().and_then(|at| mp.word(at)).unwrap_or(0);
    let ring = ring::read(memory, place, regions, huge_page);
    let (arenas, every_arena) = match ring {
        Ok((arenas, every)) => (Ok(arenas), every),
        Err(why) => (Err(why), false),
    };
    Ok(Reading {
        threshold,
        top_pad: mp.word(MP_TOP_PAD).ok_or(missing)?,
        max_mmapped_bytes: mp.word(offsets.mmapped_mem + 8).ok_or(missing)?,
        arenas,
        every_arena,
    })
}

/// Fields of a structure that was read.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn word(self, at: u32) -> Option<u64> {
        let at = at as usize;
        self.0.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
    }

    fn half(self, at: u32) -> Option<u32> {
        let at = at as usize;
        self.0.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests;
