//! Reads target files for the pure code: the file and, where there is one, its debug file.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use object::ReadCache;

use super::{ElfError, ElfFacts, Located, elf, locate};
use crate::host::file::{Root, TargetFile, debug_file};

/// Answers from the files themselves, by `pread` alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contents;

impl ElfFacts for Contents {
    fn interpreter(&self, file: &TargetFile) -> Option<PathBuf> {
        let cache = ReadCache::new(file.reader());
        Some(PathBuf::from(OsString::from_vec(elf::interpreter(&cache)?)))
    }

    fn build_id(&self, file: &TargetFile) -> Option<Vec<u8>> {
        let cache = ReadCache::new(file.reader());
        Some(elf::build_id(&cache)?.as_bytes().to_vec())
    }

    fn defines_malloc(&self, file: &TargetFile) -> bool {
        locate::defines_malloc(&ReadCache::new(file.reader()))
    }
}

impl Contents {
    /// Whether the content of a file shows which allocator it is.
    #[must_use]
    pub fn is_known_allocator(self, file: &TargetFile) -> bool {
        locate::is_known_allocator(&ReadCache::new(file.reader()))
    }

    /// Finds the hooks of a file, with the debug file of its build id when `root` or the host has one.
    ///
    /// # Errors
    ///
    /// See [`ElfError`]. A debug file that cannot be read counts as none.
    pub fn locate(self, file: &TargetFile, root: Root) -> Result<Located, ElfError> {
        let cache = ReadCache::new(file.reader());
        let debug = elf::build_id(&cache).and_then(|id| debug_file(&id.to_string(), root).ok().flatten());
        match &debug {
            Some(debug) => locate(&cache, Some(&ReadCache::new(debug.reader()))),
            None => locate(&cache, None),
        }
    }
}
