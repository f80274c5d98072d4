//! How far up the chain from system call to `malloc` a process is probed.

use core::fmt;
use core::str::FromStr;

use crate::site::Role;

/// Each depth includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Depth {
    /// Tracepoints on `mmap`, `munmap`, `mremap`, `brk`.
    Syscall,
    /// The slow path of the allocator: crossings, heap growth, trim.
    Sysmalloc,
    /// `_int_malloc`: what the tcache did not absorb.
    Arena,
    /// The public functions: every call.
    Call,
}

/// Every depth, the cheapest first.
pub const DEPTHS: [Depth; 4] = [Depth::Syscall, Depth::Sysmalloc, Depth::Arena, Depth::Call];

/// A word that names no depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDepth;

impl Depth {
    /// The first depth that needs a probe of that role.
    #[must_use]
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Call(_) | Role::Transfer(_) => Depth::Call,
            Role::Arena => Depth::Arena,
            _ => Depth::Sysmalloc,
        }
    }

    /// The name on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Depth::Syscall => "syscall",
            Depth::Sysmalloc => "sysmalloc",
            Depth::Arena => "arena",
            Depth::Call => "call",
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for UnknownDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a depth is one of syscall, sysmalloc, arena, call")
    }
}

impl core::error::Error for UnknownDepth {}

impl FromStr for Depth {
    type Err = UnknownDepth;

    fn from_str(word: &str) -> Result<Self, UnknownDepth> {
        DEPTHS.into_iter().find(|depth| depth.name() == word).ok_or(UnknownDepth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_reads_back_from_its_name() {
        for depth in DEPTHS {
            assert_eq!(depth.name().parse(), Ok(depth));
        }
        assert_eq!("deep".parse::<Depth>(), Err(UnknownDepth));
    }
}
