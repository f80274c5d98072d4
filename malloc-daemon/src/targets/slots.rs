//! Which symbol the dynamic linker stores in which slot, for branches that go through the linkage table.

use std::collections::BTreeMap;

use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::pod;
use object::read::ReadRef;

use super::decode::Machine;
use super::elf::{Elf, ElfError};
use super::symbols::DynamicNames;

/// The most slots that are kept: the wanted names are some eighty, each with a slot or two.
const KEPT_LIMIT: usize = 1024;
/// The most of one table that is read, and of how many tables: a linker writes two, libc's have 30 KiB.
const TABLE_LIMIT: u64 = 16 << 20;
const TABLES: usize = 4;

/// The slots that hold the address of a symbol whose name is `wanted`, with that name.
///
/// # Errors
/// When a relocation table cannot be read.
pub fn named_slots<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<u64, &'data str>, ElfError> {
    let kinds = match Machine::of(elf.machine()) {
        Some(Machine::X86_64) => [elf::R_X86_64_JUMP_SLOT.0, elf::R_X86_64_GLOB_DAT.0],
        Some(Machine::Aarch64) => [elf::R_AARCH64_JUMP_SLOT.0, elf::R_AARCH64_GLOB_DAT.0],
        None => return Ok(BTreeMap::new()),
    };
    let mut slots = BTreeMap::new();
    let Some(names) = DynamicNames::open(elf)? else { return Ok(slots) };
    for section in elf.sections().iter().filter(|section| section.sh_type.get(LE) == elf::SHT_RELA).take(TABLES) {
        let bytes = elf.bytes_within(section, TABLE_LIMIT)?;
        let (relocations, _) = pod::slice_from_bytes::<Rela64<LE>>(bytes, bytes.len() / size_of::<Rela64<LE>>())
            .map_err(|()| ElfError::Malformed { what: "relocations" })?;
        for relocation in relocations {
            let kind = relocation.r_info.get(LE) & 0xffff_ffff;
            if !kinds.iter().any(|known| u64::from(*known) == kind) {
                continue;
            }
            let symbol = (relocation.r_info.get(LE) >> 32) as u32;
            if let Some(name) = names.get(symbol).filter(|name| wanted(name))
                && slots.len() < KEPT_LIMIT
            {
                slots.insert(relocation.r_offset.get(LE), name);
            }
        }
    }
    Ok(slots)
}
