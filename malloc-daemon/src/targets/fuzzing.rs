//! The readers of ELF files and machine code, for the fuzzer.

use super::decode::Machine;
use super::elf::{self, Elf};
use super::fixture::{File, Symtab, libc};
use super::locate::infer::frames::Frames;
use super::locate::{analyse, analyse_knowing, debug_data, evidence};
use super::slots::named_slots;
use super::symbols::{self, Source, Table};
use super::usdt;

/// Headers, segments, sections and the notes of the linker.
pub fn elf(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(bytes) else { return };
    let _ = (elf.build_id(), elf.debug_link(), elf.interpreter());
    for section in elf.sections() {
        let _ = elf.bytes_of(section);
    }
    for word in bytes.chunks_exact(8).take(64) {
        let vaddr = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let _ = (elf.is_code(vaddr), elf.file_offset(vaddr), elf.bytes_at(vaddr, 64));
    }
    let _ = elf::build_id(bytes);
}

/// Symbol tables, versions, and the slots of the linkage table.
pub fn symbol_tables(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(bytes) else { return };
    for table in [Table::Exported, Table::Full] {
        let _ = symbols::read(&elf, table, Source::Symtab, |_| true);
    }
    let _ = named_slots(&elf, |_| true);
}

/// An xz stream, and the ELF file in it.
pub fn debug_data(bytes: &[u8]) {
    const LIMIT: u64 = 1 << 20;
    if let Ok(inner) = debug_data::decompress(bytes, LIMIT) {
        assert!(inner.len() as u64 <= LIMIT);
        symbol_tables(&inner);
    }
}

/// Notes of static probes with their arguments, in a file that is otherwise whole.
pub fn notes(bytes: &[u8]) {
    let file = with_section(".note.stapsdt", object::elf::SHT_NOTE, bytes);
    let _ = usdt::probes(&*file);
    let _ = elf::build_id(&*file);
}

/// The table for unwinding as it tells where functions begin.
pub fn eh_frame(bytes: &[u8]) {
    let file = with_section(".eh_frame", object::elf::SHT_PROGBITS, bytes);
    if let Ok(elf) = Elf::parse(&*file) {
        let _ = Frames::read(&elf);
    }
}

/// Instructions of both machines.
pub fn code(bytes: &[u8]) {
    const VADDR: u64 = u64::MAX - 64;
    for machine in [Machine::X86_64, Machine::Aarch64] {
        for vaddr in [0x1000, VADDR] {
            let _ = (machine.decode(bytes, vaddr), machine.steps(bytes, vaddr));
            let _ = (machine.mnemonic(bytes), machine.text(bytes, vaddr));
        }
    }
}

/// The whole search, what is inferred, and the evidence for it.
pub fn locate(bytes: &[u8]) {
    let nothing = None::<&[u8]>;
    let _ = (super::locate::defines_malloc(bytes), super::locate::is_known_allocator(bytes));
    let Ok((located, made)) = analyse_knowing(bytes, nothing, None) else { return };
    let _ = evidence(bytes, &located);
    if let Ok(elf) = Elf::parse(bytes) {
        // What is handed to the kernel lies in code that the file holds.
        for hook in &located.hooks {
            assert!(elf.is_code(hook.vaddr), "{hook:?}");
            assert_eq!(elf.file_offset(hook.vaddr), Some(hook.file_offset), "{hook:?}");
            assert!(hook.file_offset < bytes.len() as u64, "{hook:?}");
        }
    }
    if let Some(made) = made {
        let again = analyse_knowing(bytes, nothing, Some(&made));
        assert_eq!(again.map(|(located, _)| located).as_ref(), Ok(&located), "an inference changes nothing");
    }
    let _ = analyse(bytes, Some(bytes));
}

fn with_section(name: &'static str, kind: object::elf::SectionType, bytes: &[u8]) -> Vec<u8> {
    File { extra: vec![(name, kind, bytes.to_vec())], ..libc() }.bytes(Symtab::Stripped)
}
