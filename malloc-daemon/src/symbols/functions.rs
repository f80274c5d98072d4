//! The functions of one file by address, from its symbol tables.

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::pod;
use object::read::ReadRef;
use object::read::elf::Sym as _;

use crate::targets::elf::{Elf, SECTION_LIMIT, nul_terminated};
use crate::targets::locate::debug_data;
use crate::targets::symbols::SYMBOL_LIMIT;

/// The most bytes after a symbol without a size that are taken as its own: assembly functions are short.
const UNSIZED_BYTES: u64 = 4096;
/// How many symbols before an address are looked at for one that reaches over it: functions seldom overlap.
const OVERLAPS: usize = 8;

/// Functions, ascending by address.
#[derive(Debug, Default)]
pub struct Functions {
    entries: Vec<Entry>,
    /// The string tables, one behind the other.
    names: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    end: u64,
    /// Where in `names`.
    name: u32,
}

impl Functions {
    /// From the most complete table: the file's own, its debug file's, or `.gnu_debugdata` and the exported symbols.
    pub fn read<'data, 'debug, R: ReadRef<'data>, D: ReadRef<'debug>>(
        file: &Elf<'data, R>,
        debug: Option<&Elf<'debug, D>>,
    ) -> Self {
        let mut functions = Self::default();
        let full =
            functions.add(file, elf::SHT_SYMTAB) || debug.is_some_and(|debug| functions.add(debug, elf::SHT_SYMTAB));
        if !full {
            if let Some(section) = file.section(b".gnu_debugdata")
                && let Ok(compressed) = file.bytes_within(section, debug_data::COMPRESSED_LIMIT)
                && let Ok(inner) = debug_data::decompress(compressed, SECTION_LIMIT)
                && let Ok(inner) = Elf::parse(inner.as_slice())
            {
                functions.add(&inner, elf::SHT_SYMTAB);
            }
            functions.add(file, elf::SHT_DYNSYM);
        }
        functions.settle();
        functions
    }

    /// The name of the function that `address` is in.
    pub fn name_at(&self, address: u64) -> Option<&str> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let before = self.entries.get(..after)?.iter().rev().take(OVERLAPS);
        let found = before.into_iter().find(|entry| address < entry.end)?;
        str::from_utf8(nul_terminated(&self.names, found.name)?).ok()
    }

    /// The bytes of memory taken.
    pub fn bytes(&self) -> u64 {
        (self.names.capacity() + self.entries.capacity() * size_of::<Entry>()) as u64
    }

    /// Adds a table; whether there was one with functions.
    fn add<'data, R: ReadRef<'data>>(&mut self, file: &Elf<'data, R>, kind: elf::SectionType) -> bool {
        let Some(section) = file.sections().iter().find(|section| section.sh_type.get(LE) == kind) else {
            return false;
        };
        let Ok(bytes) = file.bytes_within(section, (SYMBOL_LIMIT * size_of::<Sym64<LE>>()) as u64) else {
            return false;
        };
        let strings = usize::try_from(section.sh_link.get(LE)).ok().and_then(|index| file.sections().get(index));
        let Some(Ok(names)) = strings.map(|strings| file.bytes_of(strings)) else { return false };
        let count = bytes.len() / size_of::<Sym64<LE>>();
        let Ok((symbols, _)) = pod::slice_from_bytes::<Sym64<LE>>(bytes, count) else { return false };
        let Ok(shift) = u32::try_from(self.names.len()) else { return false };
        let before = self.entries.len();
        self.entries.extend(symbols.iter().filter_map(|symbol| entry(file, symbol, shift)));
        self.names.extend_from_slice(names);
        self.entries.len() > before
    }

    /// Sorts, gives each address one name and each symbol an end.
    fn settle(&mut self) {
        let names = &self.names;
        self.entries.sort_by(|a, b| {
            let by_name = || rank(names, a).cmp(&rank(names, b));
            a.address.cmp(&b.address).then(b.end.cmp(&a.end)).then_with(by_name)
        });
        self.entries.dedup_by_key(|entry| entry.address);
        let next: Vec<u64> = self.entries.iter().skip(1).map(|entry| entry.address).chain([u64::MAX]).collect();
        for (entry, next) in self.entries.iter_mut().zip(next) {
            if entry.end == entry.address {
                entry.end = next.min(entry.address.saturating_add(UNSIZED_BYTES));
            }
        }
        self.entries.shrink_to_fit();
    }
}

fn entry<'data, R: ReadRef<'data>>(file: &Elf<'data, R>, symbol: &Sym64<LE>, shift: u32) -> Option<Entry> {
    let (section, kind) = (symbol.st_shndx(LE), symbol.st_type());
    let defined = section != elf::SHN_UNDEF && (!section.is_special() || section == elf::SHN_XINDEX);
    // Labels of assembly code have no type.
    let is_function = kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC || kind == elf::STT_NOTYPE;
    let address = symbol.st_value(LE);
    let name = symbol.st_name.get(LE);
    if !defined || !is_function || name == 0 || address == 0 {
        return None;
    }
    // A debug file's segments have no bytes, so only the section can tell there whether this is code.
    let in_section = file.sections().get(usize::from(section.0));
    let is_code = in_section.is_none_or(|section| section.sh_flags.get(LE).contains(elf::SHF_EXECINSTR));
    let end = address.saturating_add(symbol.st_size(LE));
    is_code.then_some(Entry { address, end, name: name.checked_add(shift)? })
}

/// Of several names for one function the one people use comes first: `malloc` before `__libc_malloc`.
fn rank<'a>(names: &'a [u8], entry: &Entry) -> (usize, usize, &'a [u8]) {
    let name = nul_terminated(names, entry.name).unwrap_or_default();
    (name.iter().take_while(|&&byte| byte == b'_').count(), name.len(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u64, u64, &str)]) -> Functions {
        let mut functions = Functions { entries: Vec::new(), names: vec![0] };
        for &(address, size, name) in entries {
            let at = u32::try_from(functions.names.len()).unwrap();
            functions.entries.push(Entry { address, end: address + size, name: at });
            functions.names.extend(name.bytes().chain([0]));
        }
        functions.settle();
        functions
    }

    #[test]
    fn an_address_outside_every_function_has_no_name() {
        let functions = table(&[(0x100, 0x10, "first"), (0x200, 0x10, "second")]);
        assert_eq!(functions.name_at(0xff), None);
        assert_eq!(functions.name_at(0x10f), Some("first"));
        assert_eq!(functions.name_at(0x110), None);
        assert_eq!(functions.name_at(0x200), Some("second"));
        assert_eq!(functions.name_at(u64::MAX), None);
        assert_eq!(Functions::default().name_at(0), None);
    }

    #[test]
    fn of_several_names_the_plainest_is_shown() {
        let functions = table(&[(0x100, 0x10, "__libc_malloc"), (0x100, 0x10, "malloc"), (0x100, 0x10, "__malloc")]);
        assert_eq!(functions.name_at(0x101), Some("malloc"));
    }

    #[test]
    fn a_symbol_without_a_size_ends_at_the_next() {
        let functions = table(&[(0x100, 0, "label"), (0x120, 0x10, "next"), (0x10_0000, 0, "last")]);
        assert_eq!(functions.name_at(0x11f), Some("label"));
        assert_eq!(functions.name_at(0x120), Some("next"));
        assert_eq!(functions.name_at(0x10_0000 + UNSIZED_BYTES), None);
    }

    #[test]
    fn a_function_inside_another_does_not_hide_the_rest_of_it() {
        let functions = table(&[(0x100, 0x100, "outer"), (0x120, 0x10, "inner")]);
        assert_eq!(functions.name_at(0x125), Some("inner"));
        assert_eq!(functions.name_at(0x140), Some("outer"));
    }
}
