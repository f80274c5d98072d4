//! Where functions begin and end, told by the tables for stack unwinding, which no file is stripped of.

use std::collections::BTreeMap;
use std::ops::Range;

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use object::LittleEndian as LE;
use object::read::ReadRef;

use crate::targets::elf::{Elf, ElfError};

/// The most of `.eh_frame` that is read; libc has 150 KiB, the largest executables some 20 MiB.
const TABLE_LIMIT: u64 = 32 << 20;
/// The most entries that are read; libc has 4,000.
const ENTRY_LIMIT: usize = 1 << 19;

/// The stretches of code that unwind as one: a function each, or the part of one that lies elsewhere.
#[derive(Debug, Default)]
pub struct Frames {
    by_start: BTreeMap<u64, u64>,
}

impl Frames {
    /// Reads `.eh_frame`; without one there are none.
    ///
    /// # Errors
    /// When the table is there and cannot be read to its end.
    pub fn read<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Self, ElfError> {
        let Some(section) = elf.section(b".eh_frame") else { return Ok(Self::default()) };
        let bytes = elf.bytes_within(section, TABLE_LIMIT)?;
        let mut table = EhFrame::new(bytes, LittleEndian);
        table.set_address_size(8);
        let bases = BaseAddresses::default().set_eh_frame(section.sh_addr.get(LE));
        let malformed = |_| ElfError::Malformed { what: ".eh_frame" };
        let mut by_start = BTreeMap::new();
        let mut entries = table.entries(&bases);
        while let Some(entry) = entries.next().map_err(malformed)? {
            let CieOrFde::Fde(partial) = entry else { continue };
            let entry = partial.parse(EhFrame::cie_from_offset).map_err(malformed)?;
            if by_start.len() >= ENTRY_LIMIT {
                let limit = ENTRY_LIMIT as u64;
                return Err(ElfError::TooLarge { what: ".eh_frame", found: limit + 1, limit });
            }
            if entry.len() > 0 && entry.initial_address().checked_add(entry.len()).is_some() {
                by_start.insert(entry.initial_address(), entry.len());
            }
        }
        Ok(Self { by_start })
    }

    /// The length in bytes of the stretch that begins at `vaddr`.
    pub fn length(&self, vaddr: u64) -> Option<u64> {
        self.by_start.get(&vaddr).copied()
    }

    /// Where the stretches within `range` begin.
    pub fn starts(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        self.by_start.range(range).map(|(start, _)| *start)
    }

    /// The start of the stretch that `vaddr` lies in.
    pub fn holding(&self, vaddr: u64) -> Option<u64> {
        let (start, length) = self.by_start.range(..=vaddr).next_back()?;
        (vaddr - start < *length).then_some(*start)
    }
}
