//! Reads the few symbols an allocator's probes need out of a file's symbol tables.

use std::collections::HashSet;

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::pod;
use object::read::ReadRef;
use object::read::elf::Sym as _;

use super::elf::{Elf, ElfError, nul_terminated};

/// The most symbols of one table that are looked at; libc has 3,000 exported ones and 30,000 in all.
pub const SYMBOL_LIMIT: usize = 1_000_000;
/// The most that are kept: some eighty names, each with a few aliases.
const KEPT_LIMIT: usize = 4096;
/// The longest name that is kept as an alias.
const NAME_LIMIT: usize = 256;

/// Which table told where a function lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The file's own `.symtab`.
    Symtab,
    /// The compressed table in the file's `.gnu_debugdata`.
    DebugData,
    /// A separate debug file of the same build id.
    DebugFile,
    /// A note of the file's own static probes lies in it.
    Usdt,
    /// What its code does, in a file that names nothing: every rule had one answer.
    Inferred,
    /// The exported symbols alone.
    Exports,
}

impl Source {
    /// The word the reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Source::Symtab => "symtab",
            Source::DebugData => "debug_data",
            Source::DebugFile => "debug_file",
            Source::Usdt => "usdt",
            Source::Inferred => "inferred",
            Source::Exports => "exports",
        }
    }
}

/// Whom a symbol is visible to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// The default version of a name other files link against.
    Default,
    /// An old version of a name, kept for programs linked long ago.
    Old,
    /// Its own file alone.
    Local,
}

/// One defined function or object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name without a version.
    pub name: String,
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Its size in bytes; 0 when the table does not tell.
    pub size: u64,
    /// Whom it is visible to.
    pub binding: Binding,
    /// Where it was found.
    pub source: Source,
    /// The source file a local symbol comes from, where the table tells.
    pub file: Option<String>,
}

/// A symbol's name, taken apart from what the compiler appended to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name in the source.
    pub base: &'a str,
    /// `.constprop` or `.isra`: arguments may be missing or in other registers.
    pub reshaped: bool,
    /// `.part`: some of the function's body, which its callers reach past a check of their own.
    pub part: bool,
    /// `.cold`: the body's unlikely blocks, which are jumped to.
    pub cold: bool,
}

impl<'a> Name<'a> {
    /// Takes `name` apart.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        let whole = Self { base: name, reshaped: false, part: false, cold: false };
        let Some((base, suffixes)) = name.split_once('.').filter(|(base, _)| !base.is_empty()) else { return whole };
        let mut parsed = Self { base, ..whole };
        for suffix in suffixes.split('.') {
            match suffix {
                "constprop" | "isra" => parsed.reshaped = true,
                "part" => parsed.part = true,
                "cold" => parsed.cold = true,
                "lto_priv" | "localalias" => {}
                number if number.bytes().all(|byte| byte.is_ascii_digit()) => {}
                _ => return whole,
            }
        }
        parsed
    }
}

/// One of a file's symbol tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `.dynsym`
    Exported,
    /// `.symtab`
    Full,
}

/// The symbols of `table` whose base name is `wanted`, and all others at the addresses of those.
/// `None` when the file has no such table.
///
/// # Errors
/// When the table cannot be read or is too large.
pub fn read<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    table: Table,
    source: Source,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<Vec<Symbol>>, ElfError> {
    select(elf, table, source, |_| true, wanted)
}

/// [`read`] for a few names: of all others no more than the first bytes are looked at.
///
/// # Errors
/// As [`read`].
pub fn read_named<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    table: Table,
    source: Source,
    names: &[&str],
) -> Result<Option<Vec<Symbol>>, ElfError> {
    let may_be = |bytes: &[u8]| names.iter().any(|name| bytes.starts_with(name.as_bytes()));
    select(elf, table, source, may_be, |name| names.contains(&name))
}

fn select<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    table: Table,
    source: Source,
    may_be: impl Fn(&[u8]) -> bool,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<Vec<Symbol>>, ElfError> {
    let Some(raw) = RawTable::open(elf, table)? else { return Ok(None) };
    let mut kept = Vec::new();
    let mut addresses = HashSet::new();
    for symbol in raw.defined(source, |symbol| may_be(raw.names_from(symbol))) {
        if wanted(Name::parse(symbol.name).base) {
            addresses.insert(symbol.vaddr);
        }
    }
    if addresses.is_empty() {
        return Ok(Some(kept));
    }
    for symbol in raw.defined(source, |symbol| addresses.contains(&symbol.st_value(LE))) {
        if kept.len() == KEPT_LIMIT {
            return Err(ElfError::TooLarge {
                what: "number of allocator symbols",
                found: kept.len() as u64 + 1,
                limit: KEPT_LIMIT as u64,
            });
        }
        kept.push(symbol.to_owned());
    }
    Ok(Some(kept))
}

/// The names `.dynsym` numbers, of defined and undefined symbols alike.
pub(super) struct DynamicNames<'data>(RawTable<'data>);

impl<'data> DynamicNames<'data> {
    pub(super) fn open<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Option<Self>, ElfError> {
        Ok(RawTable::open(elf, Table::Exported)?.map(Self))
    }

    /// The name of the symbol at `index`; 0 stands for none.
    pub(super) fn get(&self, index: u32) -> Option<&'data str> {
        let symbol = self.0.symbols.get(usize::try_from(index).ok().filter(|index| *index != 0)?)?;
        self.0.name(symbol)
    }
}

struct RawTable<'data> {
    symbols: &'data [Sym64<LE>],
    names: &'data [u8],
    /// `.gnu.version`, two bytes for each symbol; empty where versions are not used.
    versions: &'data [u8],
}

struct Borrowed<'data> {
    name: &'data str,
    vaddr: u64,
    size: u64,
    binding: Binding,
    source: Source,
    file: Option<&'data str>,
}

impl Borrowed<'_> {
    fn to_owned(&self) -> Symbol {
        Symbol {
            name: self.name.to_owned(),
            vaddr: self.vaddr,
            size: self.size,
            binding: self.binding,
            source: self.source,
            file: self.file.map(ToOwned::to_owned),
        }
    }
}

impl<'data> RawTable<'data> {
    fn open<R: ReadRef<'data>>(elf: &Elf<'data, R>, table: Table) -> Result<Option<Self>, ElfError> {
        let kind = match table {
            Table::Exported => elf::SHT_DYNSYM,
            Table::Full => elf::SHT_SYMTAB,
        };
        let Some(section) = elf.sections().iter().find(|section| section.sh_type.get(LE) == kind) else {
            return Ok(None);
        };
        let bytes = elf.bytes_within(section, (SYMBOL_LIMIT * size_of::<Sym64<LE>>()) as u64)?;
        let count = bytes.len() / size_of::<Sym64<LE>>();
        let (symbols, _) =
            pod::slice_from_bytes(bytes, count).map_err(|()| ElfError::Malformed { what: "symbol table" })?;
        let strings = usize::try_from(section.sh_link.get(LE)).ok().and_then(|index| elf.sections().get(index));
        let names = elf.bytes_of(strings.ok_or(ElfError::Malformed { what: "symbol names" })?)?;
        let versions = match table {
            Table::Full => &[][..],
            Table::Exported => {
                let section = elf.sections().iter().find(|section| section.sh_type.get(LE) == elf::SHT_GNU_VERSYM);
                section
                    .map(|section| elf.bytes_within(section, SYMBOL_LIMIT as u64 * 2))
                    .transpose()?
                    .unwrap_or_default()
            }
        };
        Ok(Some(Self { symbols, names, versions }))
    }

    fn name(&self, symbol: &Sym64<LE>) -> Option<&'data str> {
        std::str::from_utf8(nul_terminated(self.names, symbol.st_name.get(LE))?).ok()
    }

    /// The names from that of a symbol on.
    fn names_from(&self, symbol: &Sym64<LE>) -> &'data [u8] {
        self.names.get(symbol.st_name.get(LE) as usize..).unwrap_or_default()
    }

    /// The defined functions and variables among those that `look` says are worth it.
    fn defined(&self, source: Source, look: impl Fn(&Sym64<LE>) -> bool) -> impl Iterator<Item = Borrowed<'data>> {
        // A file's name comes before its local symbols; an empty one ends the last file's.
        let mut file = None;
        self.symbols.iter().enumerate().filter_map(move |(index, symbol)| {
            let section = symbol.st_shndx(LE);
            let kind = symbol.st_type();
            if kind == elf::STT_FILE {
                file = self.name(symbol).filter(|name| !name.is_empty() && name.len() <= NAME_LIMIT);
            }
            if section == elf::SHN_UNDEF
                || (section.is_special() && section != elf::SHN_XINDEX)
                || !(kind == elf::STT_FUNC || kind == elf::STT_OBJECT)
                || !look(symbol)
            {
                return None;
            }
            let full = self.name(symbol)?;
            // `.symtab` spells versions out: `name@@VERSION` is the default one.
            let (name, version) = full.split_once('@').unwrap_or((full, "@"));
            let hidden = self
                .versions
                .get(index.checked_mul(2)?..)
                .and_then(|bytes| bytes.first_chunk::<2>())
                .is_some_and(|bytes| u16::from_le_bytes(*bytes) & 0x8000 != 0);
            let binding = match symbol.st_bind() {
                elf::STB_LOCAL => Binding::Local,
                _ if hidden || !version.starts_with('@') => Binding::Old,
                _ => Binding::Default,
            };
            (!name.is_empty() && name.len() <= NAME_LIMIT).then(|| Borrowed {
                name,
                vaddr: symbol.st_value(LE),
                size: symbol.st_size(LE),
                binding,
                source,
                file: file.filter(|_| binding == Binding::Local),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_compiler_appends_is_not_part_of_the_name() {
        let name = |base, reshaped, part, cold| Name { base, reshaped, part, cold };
        assert_eq!(Name::parse("sysmalloc"), name("sysmalloc", false, false, false));
        assert_eq!(Name::parse("systrim.constprop.0"), name("systrim", true, false, false));
        assert_eq!(Name::parse("sysmalloc_mmap.isra.0"), name("sysmalloc_mmap", true, false, false));
        assert_eq!(Name::parse("tcache_init.part.0"), name("tcache_init", false, true, false));
        assert_eq!(Name::parse("realloc.cold"), name("realloc", false, false, true));
        assert_eq!(Name::parse("f.constprop.0.cold"), name("f", true, false, true));
        assert_eq!(Name::parse("malloc.mine"), name("malloc.mine", false, false, false));
        assert_eq!(Name::parse(".L1"), name(".L1", false, false, false));
    }
}
