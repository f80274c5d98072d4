//! Whether a file holds an allocator at all, and whether that can be told.

use object::read::ReadRef;

use super::infer::{self, Nameless};
use super::{AllocatorKind, foreign, glibc};
use crate::targets::decode::Machine;
use crate::targets::elf::{Elf, ElfError};
use crate::targets::symbols::{self, Binding, Source, Symbol, Table};

/// Whether the file defines `malloc` and `free`: exports them or, as a static executable does, holds them, be it under
/// the names of an allocator of its own.
#[must_use]
pub fn defines_malloc<'data, R: ReadRef<'data>>(file: R) -> bool {
    let defines = |elf: Elf<'data, R>| {
        let told = defines(&elf)? || foreign::recognise(&elf)?.is_some();
        Ok(told || Machine::of(elf.machine()).is_some_and(|machine| matches!(nameless(&elf, machine), Ok(Ok(_)))))
    };
    Elf::parse(file).and_then(defines).unwrap_or(false)
}

/// Whether the content of a file shows that it is a known allocator's, whatever the file is called.
#[must_use]
pub fn is_known_allocator<'data, R: ReadRef<'data>>(file: R) -> bool {
    let known = |elf: Elf<'data, R>| {
        let is_glibc = || matches!(kind(&elf, &[]), AllocatorKind::Glibc { .. });
        Ok(foreign::recognise(&elf)?.is_some() || (defines(&elf)? && is_glibc()))
    };
    Elf::parse(file).and_then(known).unwrap_or(false)
}

/// Whether a program runs without a dynamic linker and has no symbols: what in it is `malloc` no table tells.
#[must_use]
pub fn hides_its_functions<'data, R: ReadRef<'data>>(file: R) -> bool {
    Elf::parse(file).and_then(|elf| hides(&elf)).unwrap_or(false)
}

fn hides<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<bool, ElfError> {
    let named = elf.interpreter().is_some() || elf.section(b".symtab").is_some();
    Ok(!named && symbols::read(elf, Table::Exported, Source::Exports, |_| true)?.is_none_or(|all| all.is_empty()))
}

/// The public functions of the glibc in a program that names none, or why there are none: a clause.
///
/// # Errors
/// When its symbol tables cannot be read.
pub fn nameless<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
) -> Result<Result<Nameless, String>, ElfError> {
    if is_loader(elf)? {
        return Ok(Err("it is the dynamic loader, whose own malloc gives way to the C library's".to_owned()));
    }
    if !hides(elf)? {
        return Ok(Err("no symbol table of this file defines malloc and free".to_owned()));
    }
    let found = infer::nameless(elf, machine);
    Ok(found.map_err(|why| format!("it is a static program without symbols, and no glibc is found in it: {why}")))
}

/// Whether the file has a `malloc` and a `free` that serve its users.
///
/// # Errors
/// When its symbol tables cannot be read.
pub fn defines<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<bool, ElfError> {
    if is_loader(elf)? {
        return Ok(false);
    }
    for table in [Table::Exported, Table::Full] {
        let named = symbols::read_named(elf, table, Source::Exports, &["malloc", "free"])?;
        let named = named.unwrap_or_default();
        let bindings = |name| named.iter().filter(move |s| s.name == name && elf.is_code(s.vaddr)).map(|s| s.binding);
        // The linker makes malloc local in a static position-independent executable, but not free.
        let open = |name| bindings(name).any(|binding| binding != Binding::Local);
        let any = |name| bindings(name).next().is_some();
        if any("malloc") && any("free") && (open("malloc") || open("free")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the file is glibc's dynamic loader. Up to 2.31 it exports a `malloc` for its own start, which gives way to the
/// C library's; a process that was started as `ld.so PROGRAM` has it as its executable.
///
/// # Errors
/// When its symbol tables cannot be read.
pub fn is_loader<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<bool, ElfError> {
    let own = symbols::read_named(elf, Table::Exported, Source::Exports, &["_dl_allocate_tls"])?;
    Ok(own.unwrap_or_default().iter().any(|symbol| elf.is_code(symbol.vaddr)))
}

/// Whose allocator the file holds, which is none of those known by their functions.
pub fn kind<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, symbols: &[Symbol]) -> AllocatorKind {
    let text = elf.section(b".rodata").and_then(|section| elf.bytes_of(section).ok());
    let version = text.and_then(glibc::version);
    let internals = ["_int_malloc", "main_arena"];
    let by_name = internals.iter().all(|name| symbols.iter().any(|symbol| symbol.name == *name));
    if version.is_some() || by_name { AllocatorKind::Glibc { version } } else { AllocatorKind::Unknown }
}
