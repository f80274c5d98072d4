//! How far up the chain from `malloc` to the system call the probes reach.

use std::fmt;
use std::str::FromStr;

use malloc_common::site::Role;
use thiserror::Error;

/// How far up the chain the probes reach; each depth includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Depth {
    /// What processes take from the kernel.
    Syscall,
    /// And the allocator's slow path, which asks the kernel.
    Sysmalloc,
    /// And every entry of an arena: what the thread cache did not absorb.
    Arena,
    /// And every call of a public function.
    Call,
}

/// A word that names no depth.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown depth `{0}`: use syscall, sysmalloc, arena or call")]
pub struct UnknownDepth(pub String);

impl Depth {
    /// Every depth, the cheapest first.
    pub const ALL: [Depth; 4] = [Depth::Syscall, Depth::Sysmalloc, Depth::Arena, Depth::Call];

    /// The word the command line and the reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Depth::Syscall => "syscall",
            Depth::Sysmalloc => "sysmalloc",
            Depth::Arena => "arena",
            Depth::Call => "call",
        }
    }

    /// The first depth at which a probe of that role is needed.
    #[must_use]
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Call(_) | Role::Transfer(_) => Depth::Call,
            Role::Arena => Depth::Arena,
            Role::Sysmalloc
            | Role::MunmapChunk
            | Role::Systrim
            | Role::NewHeap
            | Role::MapChunk
            | Role::MapFallback
            | Role::MapHeap
            | Role::UnmapChunk
            | Role::UnmapHeap
            | Role::RemapChunk
            | Role::Grow
            | Role::Trim => Depth::Sysmalloc,
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Depth {
    type Err = UnknownDepth;

    fn from_str(word: &str) -> Result<Self, UnknownDepth> {
        Self::ALL.into_iter().find(|depth| depth.name() == word).ok_or_else(|| UnknownDepth(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_read_back_from_its_name() {
        for depth in Depth::ALL {
            assert_eq!(depth.to_string().parse(), Ok(depth));
        }
        assert_eq!("heap".parse::<Depth>(), Err(UnknownDepth("heap".into())));
    }

    #[test]
    fn each_depth_is_dearer_than_the_one_before() {
        assert!(Depth::ALL.is_sorted());
        assert!(Depth::of(Role::Grow) < Depth::of(Role::Arena));
    }
}
