//! Which symbol the dynamic linker stores in which slot, for branches that go through the linkage table.

use std::collections::BTreeMap;

use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::pod;
use object::read::ReadRef;

use super::decode::step::{Address, Operand, REGISTERS, Register, Value};
use super::decode::{Flow, Machine};
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

/// The longest stub of a linkage table: a landing pad and four instructions of aarch64.
pub const STUB_BYTES: u64 = 20;

/// The slot that a stub of the linkage table jumps through: `code` begins with the stub, which lies at `vaddr`. Any other
/// code that begins with such a jump is taken for a stub: it leads there just the same.
#[must_use]
pub fn slot_of_stub(machine: Machine, code: &[u8], vaddr: u64) -> Option<u64> {
    match machine {
        Machine::X86_64 => {
            // `endbr64` perhaps, and the jump.
            let stub = machine.decode(code, vaddr).into_iter().take(2);
            match stub.map(|instruction| instruction.flow).find(|flow| *flow != Flow::Next)? {
                Flow::Indirect { slot, call: false } => slot,
                _ => None,
            }
        }
        Machine::Aarch64 => {
            // adrp x16, page; ldr x17, [x16, offset]; add x16, x16, offset; br x17
            let mut pages = [None; REGISTERS];
            let mut slots = [None; REGISTERS];
            for step in machine.steps(code, vaddr) {
                if let (Flow::Indirect { call: false, .. }, Operand::Register(register)) = (step.flow, step.through) {
                    return *slots.get(usize::from(register))?;
                }
                if step.flow != Flow::Next {
                    return None;
                }
                let Some((register, value)) = step.sets else { continue };
                let at = |base: Register, offset: i64| {
                    let page: Option<u64> = pages.get(usize::from(base)).copied().flatten();
                    page.map(|page| page.wrapping_add_signed(offset))
                };
                let (page, slot) = match value {
                    Value::Address(Address::Absolute(page)) => (Some(page), None),
                    Value::Address(Address::Based(base, offset)) => (at(base, offset), None),
                    Value::Loaded(Address::Based(base, offset)) => (None, at(base, offset)),
                    Value::Loaded(Address::Absolute(slot)) => (None, Some(slot)),
                    Value::Copy(_) => (None, None),
                };
                *pages.get_mut(usize::from(register))? = page;
                *slots.get_mut(usize::from(register))? = slot;
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_of_either_machine_names_its_slot() {
        // endbr64; bnd jmp [rip + 0x2f75]
        let stub = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0x75, 0x2f, 0, 0];
        assert_eq!(slot_of_stub(Machine::X86_64, &stub, 0x1000), Some(0x100b + 0x2f75));
        // adrp x16, 0x1f000; ldr x17, [x16, #0xf98]; add x16, x16, #0xf98; br x17
        let words: [u32; 4] = [0xf000_00f0, 0xf947_ce11, 0x913e_6210, 0xd61f_0220];
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(slot_of_stub(Machine::Aarch64, &code, 0x680), Some(0x1f000 + 0xf98));
        // bti c before it
        let guarded = [&0xd503_245f_u32.to_le_bytes()[..], &code].concat();
        assert_eq!(slot_of_stub(Machine::Aarch64, &guarded, 0x67c), Some(0x1f000 + 0xf98));
        // ret; a call
        assert_eq!(slot_of_stub(Machine::Aarch64, &0xd65f_03c0_u32.to_le_bytes(), 0), None);
        assert_eq!(slot_of_stub(Machine::X86_64, &[0xe8, 0, 0, 0, 0], 0), None);
    }
}
