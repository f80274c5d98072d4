//! Functions, inlined calls, source files and lines of one file, from its debug sections.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use addr2line::Context;
use gimli::{Dwarf, SectionId};
use object::LittleEndian as LE;
use object::elf::{self, SectionHeader64};
use object::read::elf::{CompressionHeader as _, SectionHeader as _};
use object::read::{CompressedData, CompressionFormat, ReadRef};

use super::demangle::{cut, demangled};
use super::metered::{Meter, Metered};
use crate::targets::elf::Elf;

/// The reads for the table of all units: libc's takes half a million.
const OPENING_READS: u64 = 16 << 20;
/// The reads for one address: the first in a unit has to go through its lines and functions.
const LOOKUP_READS: u64 = 16 << 20;
/// What is assumed to be kept for each read, in bytes: a row of the line table takes 24, most reads leave nothing.
const BYTES_PER_READ: u64 = 4;

/// One call at an address, merged into its caller or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The function, demangled.
    pub function: Option<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line.
    pub line: Option<u32>,
}

/// The debug sections of one file, looked into as needed.
pub struct Lines {
    context: Context<Metered>,
    meter: Arc<Meter>,
    section_bytes: u64,
    reads: Cell<u64>,
}

impl Lines {
    /// Takes the sections out of `file`, whose bytes are `data`; `None` when it has none, or they exceed `limit` bytes.
    pub fn load<'data, R: ReadRef<'data>>(file: &Elf<'data, R>, data: R, limit: u64) -> Option<Self> {
        file.section(b".debug_info")?;
        let meter = Arc::new(Meter::default());
        let mut left = limit;
        let load = |id: SectionId| {
            let bytes = match file.section(id.name().as_bytes()).filter(|_| is_wanted(id)) {
                Some(section) => contents(section, data, left).ok_or(())?.into_owned(),
                None => Vec::new(),
            };
            left = left.saturating_sub(bytes.len() as u64);
            Ok::<_, ()>(Metered::new(bytes, Arc::clone(&meter)))
        };
        let dwarf = Dwarf::load(load).ok()?;
        meter.refill(OPENING_READS);
        let context = Context::from_dwarf(dwarf).ok()?;
        let reads = Cell::new(OPENING_READS.saturating_sub(meter.left()));
        Some(Self { context, meter, section_bytes: limit.saturating_sub(left), reads })
    }

    /// The calls at `address`, the innermost first; at most `count`. Empty when nothing is known.
    pub fn calls_at(&self, address: u64, count: usize) -> Vec<Call> {
        self.meter.refill(LOOKUP_READS);
        let mut calls = Vec::new();
        // addr2line 0.26 adds one to it.
        if address == u64::MAX {
            return calls;
        }
        if let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() {
            while calls.len() < count
                && let Ok(Some(frame)) = frames.next()
            {
                let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
                let location = frame.location.unwrap_or(addr2line::Location { file: None, line: None, column: None });
                calls.push(Call {
                    function: name.filter(|name| !name.is_empty()).map(|name| demangled(&name)),
                    file: location.file.map(cut),
                    // Line 0 says that no line is meant.
                    line: location.line.filter(|&line| line != 0),
                });
            }
        }
        let spent = LOOKUP_READS.saturating_sub(self.meter.left());
        self.reads.set(self.reads.get().saturating_add(spent));
        calls
    }

    /// The bytes of memory taken, an estimate.
    pub fn bytes(&self) -> u64 {
        self.section_bytes.saturating_add(self.reads.get().saturating_mul(BYTES_PER_READ))
    }
}

/// What is needed for functions and lines, and not variables, types or macros.
fn is_wanted(id: SectionId) -> bool {
    use SectionId as Id;
    matches!(
        id,
        Id::DebugAbbrev
            | Id::DebugAddr
            | Id::DebugAranges
            | Id::DebugInfo
            | Id::DebugLine
            | Id::DebugLineStr
            | Id::DebugRanges
            | Id::DebugRngLists
            | Id::DebugStr
            | Id::DebugStrOffsets
    )
}

/// The bytes of a section, decompressed, if they are no more than `limit`.
fn contents<'data, R: ReadRef<'data>>(section: &SectionHeader64<LE>, data: R, limit: u64) -> Option<Cow<'data, [u8]>> {
    let Some((header, offset, size)) = section.compression(LE, data).ok()? else {
        let (offset, size) = section.file_range(LE)?;
        return (size <= limit).then(|| data.read_bytes_at(offset, size).ok().map(Cow::Borrowed))?;
    };
    let format = match header.ch_type(LE) {
        elf::ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
        elf::ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
        _ => return None,
    };
    let uncompressed_size = header.ch_size(LE);
    if uncompressed_size > limit || size > limit {
        return None;
    }
    let data = data.read_bytes_at(offset, size).ok()?;
    CompressedData { format, data, uncompressed_size }.decompress().ok()
}
