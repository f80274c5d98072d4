//! Which files hold an allocator, where in them the probes belong, and which processes use them.

use std::path::PathBuf;

use crate::host::file::TargetFile;

pub mod command_files;
mod contents;
pub mod deadline;
pub mod decode;
pub mod discover;
pub mod elf;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "the fuzzer takes a part of it"))]
pub(crate) mod fixture;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod identity;
pub mod locate;
pub mod sites;
mod slots;
pub mod symbols;
pub mod usdt;

pub use contents::Contents;
pub use elf::{BuildId, ElfError};
pub use identity::{ContentId, Digest};
pub use locate::{AllocatorKind, Hook, Inference, Located, analyse, analyse_at_comparison, folded, locate};
pub use malloc_common::depth::Depth;

/// What discovery asks of the content of a file. A file that is no ELF file, or a malformed one, has none of it.
pub trait ElfFacts {
    /// The program interpreter (`PT_INTERP`); `None` for static executables and libraries.
    fn interpreter(&self, file: &TargetFile) -> Option<PathBuf>;
    /// The build id, raw.
    fn build_id(&self, file: &TargetFile) -> Option<Vec<u8>>;
    /// Whether the file defines `malloc` itself.
    fn defines_malloc(&self, file: &TargetFile) -> bool;
}
