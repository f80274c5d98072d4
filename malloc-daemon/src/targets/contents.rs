//! Reads target files for the pure code: the file and, where there is one, its debug file.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use object::ReadCache;

use super::deadline::Deadline;
use super::locate::{Evidence, evidence};
use super::{BuildId, ElfError, ElfFacts, Located, analyse, elf, locate};
use crate::host::debug_files::debug_file;
use crate::host::file::{Root, TargetFile};

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
        locate::defines_malloc(Deadline::new().on(&ReadCache::new(file.reader())))
    }
}

/// The largest file that is read as a whole: eight times the largest allocator's library seen with its symbols.
const WHOLE_BYTES: u64 = 32 << 20;

impl Contents {
    /// All bytes of a file; `None` when it is too large for that, or changed while it was read.
    #[must_use]
    pub fn whole(self, file: &TargetFile) -> Option<Vec<u8>> {
        let size = Some(file.key.size).filter(|size| *size <= WHOLE_BYTES)?;
        let mut bytes = Vec::new();
        file.reader().take(size.saturating_add(1)).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 == size && !file.has_changed().ok()?).then_some(bytes)
    }

    /// Whether the content of a file shows which allocator it is.
    #[must_use]
    pub fn is_known_allocator(self, file: &TargetFile) -> bool {
        locate::is_known_allocator(Deadline::new().on(&ReadCache::new(file.reader())))
    }

    /// Whether a program runs without a dynamic linker and has no symbols: what in it is `malloc` cannot be told.
    #[must_use]
    pub fn hides_its_functions(self, file: &TargetFile) -> bool {
        locate::hides_its_functions(&ReadCache::new(file.reader()))
    }

    /// The debug file of that build id, when `root` or the host has one that can be read.
    #[must_use]
    pub fn debug_file(self, build_id: Option<&BuildId>, root: Root) -> Option<TargetFile> {
        debug_file(&build_id?.to_string(), root).ok().flatten()
    }

    /// What a file of any machine holds, and the evidence for it: to be shown, never attached.
    ///
    /// # Errors
    ///
    /// See [`ElfError`]. A debug file that cannot be read counts as none.
    pub fn show(self, file: &TargetFile, root: Root) -> Result<(Located, Evidence), ElfError> {
        let cache = ReadCache::new(file.reader());
        let debug = self.debug_file(elf::build_id(&cache).as_ref(), root);
        let debug = debug.as_ref().map(|debug| ReadCache::new(debug.reader()));
        let deadline = Deadline::new();
        let on = |cache| deadline.on(cache);
        let found = analyse(on(&cache), debug.as_ref().map(on)).and_then(|located| {
            let evidence = evidence(on(&cache), &located)?;
            Ok((located, evidence))
        });
        deadline.keeps(found)
    }

    /// Finds the hooks of a file, with the debug file of its build id when `root` or the host has one.
    ///
    /// # Errors
    ///
    /// See [`ElfError`]. A debug file that cannot be read counts as none.
    pub fn locate(self, file: &TargetFile, root: Root) -> Result<Located, ElfError> {
        let cache = ReadCache::new(file.reader());
        let debug = self.debug_file(elf::build_id(&cache).as_ref(), root);
        let debug = debug.as_ref().map(|debug| ReadCache::new(debug.reader()));
        let deadline = Deadline::new();
        let on = |cache| deadline.on(cache);
        deadline.keeps(locate(on(&cache), debug.as_ref().map(on)))
    }
}
