//! Finds `mp_` and `main_arena` by the values they are compiled with.

use std::collections::{BTreeMap, BTreeSet};

use malloc_common::site::{ArenaLayout, MpLayout};
use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::pod;
use object::read::ReadRef;

use crate::targets::decode::Machine;
use crate::targets::elf::{Elf, ElfError};
use crate::targets::locate::glibc;

/// The most of `.data` that is searched; libc has 7 KiB.
const DATA_LIMIT: u64 = 16 << 20;
/// The most of one relocation table that is read, and of how many tables; libc's have 30 KiB.
const TABLE_LIMIT: u64 = 16 << 20;
const TABLES: usize = 4;
/// The largest `struct malloc_par`, of glibc 2.43.
const MP_BYTES: u64 = 144;

/// What a search by signature found: how many places fit, and the one place if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search<T> {
    /// No place fits.
    None,
    /// Exactly one does.
    One(T),
    /// So many do.
    Many(usize),
}

impl<T> Search<T> {
    /// Of all places that fit.
    pub fn of(mut places: Vec<T>) -> Self {
        match places.len() {
            1 => places.pop().map_or(Search::None, Search::One),
            0 => Search::None,
            count => Search::Many(count),
        }
    }

    /// The one place, or why there is none: a clause.
    pub fn one(self) -> Result<T, String> {
        match self {
            Search::One(place) => Ok(place),
            Search::None => Err("no place fits its signature".to_owned()),
            Search::Many(count) => Err(format!("{count} places fit its signature")),
        }
    }
}

/// The layout of the `mp_` at `vaddr`, told by its compiled values.
pub fn mp_layout<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, vaddr: u64) -> MpLayout {
    elf.bytes_at(vaddr, MP_BYTES).map_or(MpLayout::Unknown, glibc::mp_layout)
}

/// `mp_`: thresholds and padding of 128 KiB, an arena test of 8, no arena maximum.
pub fn mp<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Search<(u64, MpLayout)> {
    let Some(section) = elf.section(b".data") else { return Search::None };
    let Ok(data) = elf.bytes_within(section, DATA_LIMIT) else { return Search::None };
    let start = section.sh_addr.get(LE);
    let places = memchr::memmem::find_iter(data, &glibc::MP_HEAD)
        .filter(|at| at % 8 == 0)
        .filter_map(|at| {
            let layout = glibc::mp_layout(data.get(at..)?);
            (layout != MpLayout::Unknown).then_some((start.checked_add(at as u64)?, layout))
        })
        .collect();
    Search::of(places)
}

/// `main_arena`: an arena whose `next` leads to itself, which the dynamic linker sees to.
///
/// # Errors
/// When a relocation table cannot be read.
pub fn main_arena<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
) -> Result<Search<(u64, ArenaLayout)>, ElfError> {
    let mut places = Vec::new();
    relative(elf, machine, |slot, value| {
        for layout in ArenaLayout::KNOWN {
            let next = layout.offsets().map(|at| u64::from(at.next));
            if slot.checked_sub(value) == next && next.is_some() && is_arena(elf, value, layout) {
                places.push((value, layout));
            }
        }
    })?;
    places.dedup();
    if places.is_empty() {
        // A program that is always loaded at one place needs no relocation: the pointer is there.
        places = pointing_to_itself(elf)?;
    }
    Ok(Search::of(places))
}

fn pointing_to_itself<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Vec<(u64, ArenaLayout)>, ElfError> {
    let Some(section) = elf.section(b".data") else { return Ok(Vec::new()) };
    let start = section.sh_addr.get(LE);
    let (words, _) = elf.bytes_within(section, DATA_LIMIT)?.as_chunks::<8>();
    let mut places = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let (slot, value) = (start.wrapping_add(8 * at as u64), u64::from_le_bytes(*word));
        for layout in ArenaLayout::KNOWN {
            let next = layout.offsets().map(|at| u64::from(at.next));
            if slot.checked_sub(value) == next && next.is_some() && is_arena(elf, value, layout) {
                places.push((value, layout));
            }
        }
    }
    Ok(places)
}

/// What is stored at each of `places` once the program runs: by a relocation, or as it is.
///
/// # Errors
/// When a relocation table cannot be read.
pub fn stored<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    places: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, u64>, ElfError> {
    let mut found: BTreeMap<u64, u64> =
        places.iter().filter_map(|place| Some((*place, word(elf, *place).filter(|word| *word != 0)?))).collect();
    relative(elf, machine, |slot, value| {
        if places.contains(&slot) {
            found.insert(slot, value);
        }
    })?;
    Ok(found)
}

/// The layout of the arena at `vaddr`: the one by which its `next` leads to itself.
///
/// # Errors
/// When a relocation table cannot be read.
pub fn arena_layout<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    vaddr: u64,
) -> Result<ArenaLayout, ElfError> {
    let mut found = Vec::new();
    relative(elf, machine, |slot, value| {
        if value == vaddr {
            let fits = |layout: &ArenaLayout| {
                layout.offsets().is_some_and(|at| slot.checked_sub(vaddr) == Some(u64::from(at.next)))
            };
            found.extend(ArenaLayout::KNOWN.into_iter().filter(fits));
        }
    })?;
    // A program that is always loaded at one place needs no relocation: the pointer is there.
    let stored = ArenaLayout::KNOWN.into_iter().filter(|layout| {
        let next = layout.offsets().and_then(|at| vaddr.checked_add(u64::from(at.next)));
        next.and_then(|next| word(elf, next)) == Some(vaddr)
    });
    found.extend(stored);
    found.dedup();
    Ok(Search::of(found).one().unwrap_or(ArenaLayout::Unknown))
}

/// Besides `next`: no free arena follows, one thread is attached, and mutex and flags are clear.
fn is_arena<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, vaddr: u64, layout: ArenaLayout) -> bool {
    let Some(at) = layout.offsets() else { return false };
    let field = |offset: u32| vaddr.checked_add(u64::from(offset)).and_then(|place| word(elf, place));
    field(at.next_free) == Some(0) && field(at.attached_threads) == Some(1) && field(0) == Some(0)
}

fn word<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, vaddr: u64) -> Option<u64> {
    elf.bytes_at(vaddr, 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Hands over every slot that the dynamic linker fills with an address of this file, and that address.
fn relative<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    mut each: impl FnMut(u64, u64),
) -> Result<(), ElfError> {
    let kind = match machine {
        Machine::X86_64 => elf::R_X86_64_RELATIVE.0,
        Machine::Aarch64 => elf::R_AARCH64_RELATIVE.0,
    };
    let tables = |kind: elf::SectionType| {
        elf.sections().iter().filter(move |section| section.sh_type.get(LE) == kind).take(TABLES)
    };
    for section in tables(elf::SHT_RELA) {
        let bytes = elf.bytes_within(section, TABLE_LIMIT)?;
        let (relocations, _) = pod::slice_from_bytes::<Rela64<LE>>(bytes, bytes.len() / size_of::<Rela64<LE>>())
            .map_err(|()| ElfError::Malformed { what: "relocations" })?;
        for relocation in relocations {
            if relocation.r_info.get(LE) & 0xffff_ffff == u64::from(kind) {
                each(relocation.r_offset.get(LE), relocation.r_addend.get(LE).cast_unsigned());
            }
        }
    }
    for section in tables(elf::SHT_RELR) {
        let bytes = elf.bytes_within(section, TABLE_LIMIT)?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut next = 0u64;
        // An even word is a slot; an odd one tells by its bits which of the 63 slots that follow are filled too.
        for bits in words.iter().map(|bytes| u64::from_le_bytes(*bytes)) {
            let first = if bits & 1 == 0 { bits } else { next };
            let places = if bits & 1 == 0 { 1 } else { bits >> 1 };
            for place in (0..63).filter(|place| places >> place & 1 == 1) {
                let slot = first.wrapping_add(place * 8);
                if let Some(value) = word(elf, slot) {
                    each(slot, value);
                }
            }
            next = first.wrapping_add(if bits & 1 == 0 { 8 } else { 63 * 8 });
        }
    }
    Ok(())
}
