//! Which files and processes carry probes, and where in them.

use std::path::PathBuf;

use crate::host::file::TargetFile;

pub mod command_files;
pub mod discover;
pub mod plan;

/// What discovery asks of the content of a file. A file that is no ELF file, or a malformed one, has none of it.
pub trait ElfFacts {
    /// The program interpreter (`PT_INTERP`); `None` for static executables and libraries.
    fn interpreter(&self, file: &TargetFile) -> Option<PathBuf>;
    /// The build id, raw.
    fn build_id(&self, file: &TargetFile) -> Option<Vec<u8>>;
    /// Whether the file defines `malloc` itself.
    fn defines_malloc(&self, file: &TargetFile) -> bool;
}

#[cfg(test)]
mod tests {
    use object::elf::{FileHeader64, PT_INTERP};
    use object::read::elf::{FileHeader, ProgramHeader};
    use object::{LittleEndian, Object, ObjectSymbol, ReadCache};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    /// Reads with `object` what the tests need.
    pub(crate) struct Elf;

    impl ElfFacts for Elf {
        fn interpreter(&self, file: &TargetFile) -> Option<PathBuf> {
            let cache = ReadCache::new(file.reader());
            let header = FileHeader64::<LittleEndian>::parse(&cache).ok()?;
            let segments = header.program_headers(LittleEndian, &cache).ok()?;
            let interpreter = segments.iter().find(|segment| segment.p_type(LittleEndian) == PT_INTERP)?;
            let name = interpreter.data(LittleEndian, &cache).ok()?;
            Some(PathBuf::from(OsString::from_vec(name.strip_suffix(b"\0")?.to_vec())))
        }

        fn build_id(&self, file: &TargetFile) -> Option<Vec<u8>> {
            let cache = ReadCache::new(file.reader());
            object::File::parse(&cache).ok()?.build_id().ok()?.map(<[u8]>::to_vec)
        }

        fn defines_malloc(&self, file: &TargetFile) -> bool {
            let cache = ReadCache::new(file.reader());
            let Ok(file) = object::File::parse(&cache) else { return false };
            file.dynamic_symbols().any(|symbol| symbol.is_definition() && symbol.name() == Ok("malloc"))
        }
    }
}
