//! Whose allocator a file holds.

use super::tables::Family;

/// Whose `malloc` it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocatorKind {
    /// The GNU C library's.
    Glibc {
        /// As its banner says: `2.36`.
        version: Option<String>,
    },
    /// jemalloc, under its own names or an executable's.
    Jemalloc {
        /// `5.3.0`
        version: Option<String>,
    },
    /// gperftools' tcmalloc.
    Tcmalloc {
        /// `2.10`
        version: Option<String>,
    },
    /// mimalloc.
    Mimalloc {
        /// `2.0.9`
        version: Option<String>,
    },
    /// musl's.
    Musl {
        /// `1.2.3`
        version: Option<String>,
    },
    /// Some other; only its public functions are known.
    Unknown,
}

impl AllocatorKind {
    /// The word the reports use.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            AllocatorKind::Glibc { .. } => "glibc",
            AllocatorKind::Jemalloc { .. } => "jemalloc",
            AllocatorKind::Tcmalloc { .. } => "tcmalloc",
            AllocatorKind::Mimalloc { .. } => "mimalloc",
            AllocatorKind::Musl { .. } => "musl",
            AllocatorKind::Unknown => "unknown",
        }
    }

    /// The version, where it is known.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        match self {
            AllocatorKind::Glibc { version }
            | AllocatorKind::Jemalloc { version }
            | AllocatorKind::Tcmalloc { version }
            | AllocatorKind::Mimalloc { version }
            | AllocatorKind::Musl { version } => version.as_deref(),
            AllocatorKind::Unknown => None,
        }
    }

    /// Whether it is the C library's own: any other allocator is brought along to serve instead of that.
    #[must_use]
    pub const fn is_libc(&self) -> bool {
        matches!(self, AllocatorKind::Glibc { .. } | AllocatorKind::Musl { .. })
    }

    pub(super) fn family(&self) -> Option<Family> {
        Some(match self {
            AllocatorKind::Jemalloc { .. } => Family::Jemalloc,
            AllocatorKind::Tcmalloc { .. } => Family::Tcmalloc,
            AllocatorKind::Mimalloc { .. } => Family::Mimalloc,
            AllocatorKind::Musl { .. } => Family::Musl,
            AllocatorKind::Glibc { .. } | AllocatorKind::Unknown => return None,
        })
    }
}
