//! How allocators' code is mapped, to be told again by an event that names no file.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::ReadCache;
use object::elf::{PF_X, PT_LOAD, ProgramHeader64};
use object::read::elf::ProgramHeader as _;

use crate::host::file::{FileKey, TargetFile};
use crate::targets::elf::Elf;

/// Shapes remembered: one for each file that carries probes, 64 bytes each.
const SHAPES: usize = 256;
/// Mappings end where a page does; a system with larger ones maps what is a multiple of it anyway.
const PAGE: u64 = 4096;

/// Files remembered of one shape: copies of one library, or its next release.
const ALIKE: usize = 4;

/// Files by offset in the file and bytes; none: more than are remembered are mapped so.
#[derive(Debug, Default)]
pub struct Shapes(HashMap<(u64, u64), Vec<FileKey>>);

impl Shapes {
    /// Remembers how a loader will map the code of a file.
    pub fn learn_file(&mut self, file: &TargetFile) {
        let data = ReadCache::new(file.reader());
        let Ok(elf) = Elf::parse(&data) else { return };
        let code = |segment: &&ProgramHeader64<LE>| segment.p_type(LE) == PT_LOAD && segment.p_flags(LE).contains(PF_X);
        for segment in elf.segments().iter().filter(code).take(ALIKE) {
            let down = |at: u64| at / PAGE * PAGE;
            let (start, end) = (segment.p_vaddr(LE), segment.p_vaddr(LE).checked_add(segment.p_filesz(LE)));
            if let Some(end) = end.and_then(|end| end.checked_next_multiple_of(PAGE)) {
                self.learn(down(segment.p_offset(LE)), end - down(start), file.key);
            }
        }
    }

    /// Remembers one.
    pub fn learn(&mut self, offset: u64, bytes: u64, key: FileKey) {
        if let Some(held) = self.0.get_mut(&(offset, bytes)) {
            match held.len() {
                _ if held.contains(&key) => {}
                1..ALIKE => held.push(key),
                _ => held.clear(),
            }
        } else if self.0.len() < SHAPES {
            self.0.insert((offset, bytes), vec![key]);
        }
    }

    /// Whether such a mapping may well be an allocator's code. While none was seen each may.
    pub fn may_be(&self, offset: u64, bytes: u64) -> bool {
        self.0.is_empty() || self.held(offset, bytes).is_some()
    }

    /// The files that are mapped so, as far as is known.
    pub fn files(&self, offset: u64, bytes: u64) -> &[FileKey] {
        self.held(offset, bytes).map(Vec::as_slice).unwrap_or_default()
    }

    fn held(&self, offset: u64, bytes: u64) -> Option<&Vec<FileKey>> {
        self.0.get(&(offset, bytes.checked_next_multiple_of(PAGE)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> FileKey {
        FileKey { dev: 1, ino, size: 5, mtime_ns: 6 }
    }

    #[test]
    fn a_shape_is_known_again_and_before_the_first_all_may_be_one() {
        let mut shapes = Shapes::default();
        assert!(shapes.may_be(0, 1));
        shapes.learn(0x26000, 0x155000, key(7));
        assert_eq!(shapes.files(0x26000, 0x154123), [key(7)]);
        assert!(!shapes.may_be(0x25000, 0x155000) && !shapes.may_be(0x26000, u64::MAX));
    }

    #[test]
    fn a_shape_that_too_many_files_have_tells_none() {
        let mut shapes = Shapes::default();
        for (ino, held) in [(7, 1), (7, 1), (8, 2), (9, 3), (10, 4), (11, 0), (7, 0)] {
            shapes.learn(0, 4096, key(ino));
            assert_eq!(shapes.files(0, 4096).len(), held);
        }
        assert!(shapes.may_be(0, 4096));
    }
}
