//! Which files hold an allocator, and where in them the probes belong.

pub mod decode;
pub mod depth;
pub mod elf;
#[cfg(test)]
mod fixture;
pub mod locate;
pub mod sites;
mod slots;
pub mod symbols;

pub use depth::Depth;
pub use elf::{BuildId, ElfError};
pub use locate::{AllocatorKind, Hook, Located, locate};
