//! What each allocator's exported names mean, written down apart from the daemon's tables: from the manuals of jemalloc,
//! gperftools and mimalloc, and from musl's `stdlib.h` and `malloc.h`.

use malloc_common::function::Function;

/// One allocator as Debian has it.
#[derive(Clone, Copy, Debug)]
pub struct Packaged {
    /// What the daemon calls it.
    pub kind: &'static str,
    /// The package in bookworm.
    pub bookworm: &'static str,
    /// The package from trixie on.
    pub later: &'static str,
    /// What the library's file name begins with.
    pub library: &'static str,
}

/// The allocators that are looked at.
pub const PACKAGED: [Packaged; 4] = [
    Packaged { kind: "musl", bookworm: "musl", later: "musl", library: "ld-musl-" },
    Packaged { kind: "jemalloc", bookworm: "libjemalloc2", later: "libjemalloc2", library: "libjemalloc.so.2" },
    Packaged {
        kind: "tcmalloc",
        bookworm: "libtcmalloc-minimal4",
        later: "libtcmalloc-minimal4t64",
        library: "libtcmalloc_minimal.so.4",
    },
    Packaged { kind: "mimalloc", bookworm: "libmimalloc2.0", later: "libmimalloc3", library: "libmimalloc.so." },
];

/// What a call of the exported `name` of an allocator is.
#[must_use]
pub fn meaning(kind: &str, name: &str) -> Option<Function> {
    let plain = match kind {
        "tcmalloc" => name.strip_prefix("tc_").unwrap_or(name),
        "mimalloc" => name.strip_prefix("mi_").unwrap_or(name),
        _ => name,
    };
    let plain = plain.strip_prefix("__libc_").or_else(|| plain.strip_prefix("__")).unwrap_or(plain);
    Some(match plain {
        "malloc" => Function::Malloc,
        "calloc" => Function::Calloc,
        "realloc" => Function::Realloc,
        "free" | "cfree" | "vfree" | "free_sized" | "free_aligned_sized" => Function::Free,
        "memalign" => Function::Memalign,
        "aligned_alloc" => Function::AlignedAlloc,
        "posix_memalign" => Function::PosixMemalign,
        "valloc" => Function::Valloc,
        "pvalloc" => Function::Pvalloc,
        "mallocx" if kind == "jemalloc" => Function::Malloc,
        "rallocx" if kind == "jemalloc" => Function::Realloc,
        "dallocx" | "sdallocx" if kind == "jemalloc" => Function::Free,
        "malloc_skip_new_handler" if kind == "tcmalloc" => Function::Malloc,
        "free_size" | "free_aligned" | "free_size_aligned" if kind == "mimalloc" => Function::Free,
        "zalloc" | "malloc_small" | "zalloc_small" | "malloc_aligned" | "zalloc_aligned" if kind == "mimalloc" => {
            Function::Malloc
        }
        "new" | "new_nothrow" | "new_aligned" | "new_aligned_nothrow" if kind == "mimalloc" => Function::Malloc,
        "new_realloc" | "rezalloc" | "reallocf" if kind == "mimalloc" => Function::Realloc,
        _ if kind == "musl" => return None,
        _ if name.starts_with("_Znwm") || name.starts_with("_Znam") => Function::Malloc,
        _ if name.starts_with("_ZdlPv") || name.starts_with("_ZdaPv") => Function::Free,
        _ => return None,
    })
}
