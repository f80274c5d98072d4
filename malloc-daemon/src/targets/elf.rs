//! A bounded view of one ELF file: what it is, what it maps where, and where its parts lie.

use std::fmt;

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::read::elf::{FileHeader as _, NoteIterator, ProgramHeader as _};
use object::read::{ReadRef, StringTable};
use thiserror::Error;

/// The most of one section that is read: the symbols of the largest executables (Chromium) take about 40 MiB.
pub const SECTION_LIMIT: u64 = 64 << 20;
/// The most headers of one kind that are read; `e_shnum` holds 16 bits unless extended.
const HEADER_LIMIT: u32 = 1 << 16;
/// The most of one group of notes that is read, and of how many groups: libc has three groups of under 100 bytes.
const NOTE_LIMIT: u64 = 64 << 10;
const NOTE_GROUPS: usize = 16;
/// The longest build id that is taken: linkers write 8, 16 or 20 bytes.
const BUILD_ID_LIMIT: usize = 64;
/// The longest path a kernel accepts, its final NUL included.
const PATH_LIMIT: u64 = 4096;

/// Why a file cannot be looked into.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// The file does not begin as an ELF file does.
    #[error("not an ELF file")]
    NotElf,
    /// A 32-bit program or library: its allocator is laid out differently.
    #[error("a 32-bit ELF file: only 64-bit ones are supported")]
    ThirtyTwoBit,
    /// The file's instructions cannot be decoded here.
    #[error("unsupported architecture: {}", machine_name(*.machine))]
    UnsupportedMachine {
        /// `e_machine`
        machine: u16,
    },
    /// The file contradicts itself or ends too early.
    #[error("malformed ELF file: {what}")]
    Malformed {
        /// The part that cannot be read.
        what: &'static str,
    },
    /// A part is larger than any honest file's.
    #[error("{what} is too large: {found}, at most {limit} are read")]
    TooLarge {
        /// The part.
        what: &'static str,
        /// Its size or count.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// The file is made to take long, or lies where reading does.
    #[error("looking into it took more than {seconds} s")]
    TooSlow {
        /// How long was waited.
        seconds: u64,
    },
}

/// The usual name of an `e_machine`; a number where there is none here.
#[must_use]
pub fn machine_name(machine: u16) -> String {
    match elf::Machine(machine) {
        elf::EM_X86_64 => "x86_64".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_RISCV => "riscv64".into(),
        elf::EM_PPC64 => "ppc64".into(),
        elf::EM_S390 => "s390x".into(),
        elf::EM_LOONGARCH => "loongarch64".into(),
        _ => format!("machine {machine}"),
    }
}

/// What the linker stamped on a file; equal in a stripped file and its debug file.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// From its bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

/// What `.gnu_debuglink` says: the name of the debug file and the checksum of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLink {
    /// A file name without folders.
    pub file_name: Vec<u8>,
    /// CRC-32 of the debug file.
    pub crc32: u32,
}

/// One 64-bit little-endian ELF file.
#[derive(Clone, Copy)]
pub struct Elf<'data, R> {
    data: R,
    header: &'data FileHeader64<LE>,
    segments: &'data [ProgramHeader64<LE>],
    sections: &'data [SectionHeader64<LE>],
    section_names: &'data [u8],
}

impl<'data, R: ReadRef<'data>> Elf<'data, R> {
    /// Reads the headers.
    ///
    /// # Errors
    /// When the file is no 64-bit little-endian ELF file, or its headers cannot be read.
    pub fn parse(data: R) -> Result<Self, ElfError> {
        let ident = data.read_bytes_at(0, 20).map_err(|()| ElfError::NotElf)?;
        let [b'\x7f', b'E', b'L', b'F', class, order, rest @ ..] = ident else { return Err(ElfError::NotElf) };
        let machine = match rest.get(12..14) {
            Some(&[a, b]) if *order == elf::ELFDATA2MSB.0 => u16::from_be_bytes([a, b]),
            Some(&[a, b]) => u16::from_le_bytes([a, b]),
            _ => return Err(ElfError::NotElf),
        };
        if *class == elf::ELFCLASS32.0 {
            return Err(ElfError::ThirtyTwoBit);
        }
        if *order != elf::ELFDATA2LSB.0 {
            return Err(ElfError::UnsupportedMachine { machine });
        }
        let header = FileHeader64::<LE>::parse(data).map_err(|_| ElfError::Malformed { what: "file header" })?;
        bounded("program headers", header.phnum(LE, data), HEADER_LIMIT)?;
        let sections = bounded("section headers", header.shnum(LE, data), HEADER_LIMIT)?;
        let segments = header.program_headers(LE, data).map_err(|_| ElfError::Malformed { what: "program headers" })?;
        let sections = if sections == 0 {
            &[][..]
        } else {
            header.section_headers(LE, data).map_err(|_| ElfError::Malformed { what: "section headers" })?
        };
        let mut this = Self { data, header, segments, sections, section_names: &[] };
        if !sections.is_empty() {
            let index = header.shstrndx(LE, data).map_err(|_| ElfError::Malformed { what: "section names" })?;
            let names = usize::try_from(index).ok().and_then(|index| sections.get(index));
            this.section_names = this.bytes_of(names.ok_or(ElfError::Malformed { what: "section names" })?)?;
        }
        Ok(this)
    }

    /// `e_machine`
    #[must_use]
    pub fn machine(&self) -> u16 {
        self.header.e_machine(LE).0
    }

    /// The program headers.
    #[must_use]
    pub fn segments(&self) -> &'data [ProgramHeader64<LE>] {
        self.segments
    }

    /// The section headers.
    #[must_use]
    pub fn sections(&self) -> &'data [SectionHeader64<LE>] {
        self.sections
    }

    /// The first section of that name that has bytes in this file.
    #[must_use]
    pub fn section(&self, name: &[u8]) -> Option<&'data SectionHeader64<LE>> {
        self.sections.iter().find(|section| {
            section.sh_type.get(LE) != elf::SHT_NOBITS
                && nul_terminated(self.section_names, section.sh_name.get(LE)) == Some(name)
        })
    }

    /// The bytes of a section.
    ///
    /// # Errors
    /// When they are not all in the file, are compressed, or exceed [`SECTION_LIMIT`].
    pub fn bytes_of(&self, section: &SectionHeader64<LE>) -> Result<&'data [u8], ElfError> {
        self.bytes_within(section, SECTION_LIMIT)
    }

    /// The bytes of a section that needs no more than `limit` of them: a sparse file claims sizes for nothing, and what
    /// is read is kept.
    ///
    /// # Errors
    /// When they are not all in the file, are compressed, or exceed `limit`.
    pub fn bytes_within(&self, section: &SectionHeader64<LE>, limit: u64) -> Result<&'data [u8], ElfError> {
        if section.sh_type.get(LE) == elf::SHT_NOBITS {
            return Ok(&[]);
        }
        if section.sh_flags.get(LE).contains(elf::SHF_COMPRESSED) {
            return Err(ElfError::Malformed { what: "a table in a compressed section" });
        }
        let size = section.sh_size.get(LE);
        if size > limit {
            return Err(ElfError::TooLarge { what: "section", found: size, limit });
        }
        self.data
            .read_bytes_at(section.sh_offset.get(LE), size)
            .map_err(|()| ElfError::Malformed { what: "a section outside the file" })
    }

    /// Where in the file the byte at `vaddr` lies; `None` when no loaded segment takes it from the file.
    #[must_use]
    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.file_range(vaddr, 1).map(|(offset, _)| offset)
    }

    /// Whether `vaddr` is in a segment that is mapped executable.
    #[must_use]
    pub fn is_code(&self, vaddr: u64) -> bool {
        self.segments.iter().any(|segment| {
            segment.p_type(LE) == elf::PT_LOAD
                && segment.p_flags(LE).contains(elf::PF_X)
                && vaddr.checked_sub(segment.p_vaddr(LE)).is_some_and(|delta| delta < segment.p_filesz(LE))
        })
    }

    /// The bytes loaded at `vaddr`, at most `length` of them: fewer where the segment's bytes in the file end.
    #[must_use]
    pub fn bytes_at(&self, vaddr: u64, length: u64) -> Option<&'data [u8]> {
        let (offset, length) = self.file_range(vaddr, length)?;
        self.data.read_bytes_at(offset, length).ok()
    }

    fn file_range(&self, vaddr: u64, length: u64) -> Option<(u64, u64)> {
        self.segments.iter().filter(|segment| segment.p_type(LE) == elf::PT_LOAD).find_map(|segment| {
            let delta = vaddr.checked_sub(segment.p_vaddr(LE))?;
            let left = segment.p_filesz(LE).checked_sub(delta).filter(|left| *left > 0)?;
            Some((segment.p_offset(LE).checked_add(delta)?, length.min(left)))
        })
    }

    /// The build id, from the notes that are loaded or, where there are none, from the section.
    #[must_use]
    pub fn build_id(&self) -> Option<BuildId> {
        let groups = self.segments.iter().filter(|segment| segment.p_type(LE) == elf::PT_NOTE).take(NOTE_GROUPS);
        let from_segments = groups.into_iter().find_map(|segment| {
            let size = Some(segment.p_filesz(LE)).filter(|size| *size <= NOTE_LIMIT)?;
            let bytes = self.data.read_bytes_at(segment.p_offset(LE), size).ok()?;
            build_id_in(segment.p_align(LE), bytes)
        });
        from_segments.or_else(|| {
            let section = self.section(b".note.gnu.build-id")?;
            build_id_in(section.sh_addralign.get(LE), self.bytes_within(section, NOTE_LIMIT).ok()?)
        })
    }

    /// The name of a separate debug file, if the file names one.
    #[must_use]
    pub fn debug_link(&self) -> Option<DebugLink> {
        let bytes = self.bytes_within(self.section(b".gnu_debuglink")?, PATH_LIMIT + 8).ok()?;
        let length = bytes.iter().position(|&byte| byte == 0)?;
        let file_name = bytes.get(..length)?.to_vec();
        // The checksum follows at the next multiple of four.
        let crc = bytes.get((length + 1).next_multiple_of(4)..)?.first_chunk::<4>()?;
        let plain = !file_name.is_empty() && !file_name.contains(&b'/');
        plain.then(|| DebugLink { file_name, crc32: u32::from_le_bytes(*crc) })
    }

    /// The path of the program that loads this one; `None` for a static executable or a library.
    #[must_use]
    pub fn interpreter(&self) -> Option<Vec<u8>> {
        let segment = self.segments.iter().find(|segment| segment.p_type(LE) == elf::PT_INTERP)?;
        let bytes = self.data.read_bytes_at(segment.p_offset(LE), segment.p_filesz(LE).min(PATH_LIMIT)).ok()?;
        let path = bytes.split(|&byte| byte == 0).next()?;
        (!path.is_empty() && path.len() < bytes.len()).then(|| path.to_vec())
    }
}

/// The NUL-terminated string at `offset` of a string table.
#[must_use]
pub fn nul_terminated(table: &[u8], offset: u32) -> Option<&[u8]> {
    StringTable::new(table, 0, table.len() as u64).get(offset).ok()
}

/// [`Elf::build_id`] of a file; `None` also when it is no ELF file.
#[must_use]
pub fn build_id<'data, R: ReadRef<'data>>(file: R) -> Option<BuildId> {
    Elf::parse(file).ok()?.build_id()
}

/// [`Elf::debug_link`] of a file; `None` also when it is no ELF file.
#[must_use]
pub fn debug_link<'data, R: ReadRef<'data>>(file: R) -> Option<DebugLink> {
    Elf::parse(file).ok()?.debug_link()
}

/// [`Elf::interpreter`] of a file; `None` also when it is no ELF file.
#[must_use]
pub fn interpreter<'data, R: ReadRef<'data>>(file: R) -> Option<Vec<u8>> {
    Elf::parse(file).ok()?.interpreter()
}

fn bounded(what: &'static str, count: object::Result<u32>, limit: u32) -> Result<u32, ElfError> {
    match count {
        Ok(found) if found > limit => {
            Err(ElfError::TooLarge { what, found: u64::from(found), limit: u64::from(limit) })
        }
        Ok(found) => Ok(found),
        Err(_) => Err(ElfError::Malformed { what }),
    }
}

fn build_id_in(align: u64, notes: &[u8]) -> Option<BuildId> {
    let mut notes = NoteIterator::<FileHeader64<LE>>::new(LE, align, notes).ok()?;
    while let Ok(Some(note)) = notes.next() {
        let id = note.desc();
        if note.name() == elf::ELF_NOTE_GNU
            && note.n_type(LE) == elf::NT_GNU_BUILD_ID
            && (1..=BUILD_ID_LIMIT).contains(&id.len())
        {
            return Some(BuildId(id.to_vec()));
        }
    }
    None
}
