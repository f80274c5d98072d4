//! Reads and strips the eBPF object: its programs, maps and BTF.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind,
    build::elf::{Builder, SectionData},
    elf,
    read::elf::ElfFile64,
};

/// Bytes of one eBPF instruction.
const INSTRUCTION_BYTES: u64 = 8;

/// How far, in percent, another compiler's instruction count of a program may lie from the
/// committed one before it is called a difference. Two compilers a release apart differ by single
/// percents; another source by more, or not in the count at all.
const COUNT_TOLERANCE_PERCENT: u64 = 25;

/// Tiny programs vary by more than their share: this many instructions are always allowed.
const COUNT_SLACK: u64 = 8;

/// What an object promises to the loader, whatever compiler made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Instructions of each program, by name.
    pub programs: BTreeMap<String, u64>,
    /// Names of the maps.
    pub maps: BTreeSet<String>,
    /// Whether type information is there.
    pub btf: bool,
}

impl Shape {
    /// Reads an object's symbols and sections.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let file = ElfFile64::<object::Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
        let mut shape =
            Self { programs: BTreeMap::new(), maps: BTreeSet::new(), btf: file.section_by_name(".BTF").is_some() };
        for symbol in file.symbols() {
            let Some(index) = symbol.section_index() else { continue };
            let section = file.section_by_index(index)?;
            let (section_name, name) = (section.name()?, symbol.name()?);
            match symbol.kind() {
                SymbolKind::Data if matches!(section_name, "maps" | ".maps") => {
                    shape.maps.insert(name.to_owned());
                }
                // What lies in `.text` is called by programs and is none itself.
                SymbolKind::Text if section.kind() == SectionKind::Text && section_name != ".text" => {
                    shape.programs.insert(name.to_owned(), symbol.size() / INSTRUCTION_BYTES);
                }
                _ => {}
            }
        }
        Ok(shape)
    }

    /// How `other` differs in what does not depend on the compiler, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let ours: BTreeSet<_> = self.programs.keys().cloned().collect();
        let theirs: BTreeSet<_> = other.programs.keys().cloned().collect();
        for (what, committed, built) in [("program", &ours, &theirs), ("map", &self.maps, &other.maps)] {
            lines.extend(committed.difference(built).map(|name| format!("  {what} {name}: committed, not built")));
            lines.extend(built.difference(committed).map(|name| format!("  {what} {name}: built, not committed")));
        }
        for (name, &committed) in &self.programs {
            let Some(&built) = other.programs.get(name) else { continue };
            let allowed = (committed * COUNT_TOLERANCE_PERCENT / 100).max(COUNT_SLACK);
            if committed.abs_diff(built) > allowed {
                lines.push(format!("  program {name}: {committed} instructions committed, {built} built"));
            }
        }
        if self.btf != other.btf {
            lines.push(format!("  BTF: {} committed, {} built", presence(self.btf), presence(other.btf)));
        }
        lines
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs: Vec<_> = self.programs.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        let maps: Vec<_> = self.maps.iter().map(String::as_str).collect();
        writeln!(f, "programs (instructions): {}", programs.join(", "))?;
        writeln!(f, "maps: {}", maps.join(", "))?;
        write!(f, "BTF: {}", presence(self.btf))
    }
}

fn presence(there: bool) -> &'static str {
    if there { "present" } else { "absent" }
}

/// The same object without DWARF and without BTF's line information, half of its size. BTF itself stays: the kernel
/// and the loader read it.
pub fn strip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("not an ELF object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let debug = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
        section.delete |= debug || matches!(name, b".BTF.ext" | b".rel.BTF.ext");
    }
    builder.delete_orphans();
    // LLVM keeps section and symbol names in one section; the writer wants one for each.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot lay out the stripped object")?;
    let (before, after) = (Shape::of(bytes)?, Shape::of(&stripped)?);
    if before != after {
        bail!("stripping changed what the object holds:\n{before}\n{after}");
    }
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(programs: &[(&str, u64)], maps: &[&str]) -> Shape {
        Shape {
            programs: programs.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
            maps: maps.iter().map(|&name| name.to_owned()).collect(),
            btf: true,
        }
    }

    #[test]
    fn a_few_instructions_more_are_no_difference() {
        assert!(shape(&[("malloc", 100)], &[]).differences(&shape(&[("malloc", 120)], &[])).is_empty());
        assert!(shape(&[("free", 10)], &[]).differences(&shape(&[("free", 16)], &[])).is_empty());
    }

    #[test]
    fn a_program_half_as_long_again_is_a_difference() {
        let lines = shape(&[("malloc", 100)], &[]).differences(&shape(&[("malloc", 150)], &[]));
        assert_eq!(lines, ["  program malloc: 100 instructions committed, 150 built"]);
    }

    #[test]
    fn a_missing_program_and_a_new_map_are_named() {
        let lines = shape(&[("malloc", 1), ("free", 1)], &[]).differences(&shape(&[("malloc", 1)], &["LOST"]));
        assert_eq!(lines, ["  program free: committed, not built", "  map LOST: built, not committed"]);
    }

    #[test]
    fn bytes_that_are_no_object_are_refused() {
        assert!(Shape::of(b"no object").is_err());
        assert!(strip(b"\x7fELF").is_err());
    }
}
