//! What the functions of glibc's malloc are called, what their branches into the kernel mean, and how `mp_` is told.

use malloc_common::function::Function;
use malloc_common::site::{MpLayout, Role};

use crate::targets::symbols::{Name, Symbol};

/// Internal functions that are probed at their entry.
pub const ENTRIES: [(&str, Role, usize); 5] = [
    ("_int_malloc", Role::Arena, 2),
    ("sysmalloc", Role::Sysmalloc, 2),
    ("munmap_chunk", Role::MunmapChunk, 1),
    // The second argument, the arena, is dropped in every build seen; the first is the padding.
    ("systrim", Role::Systrim, 1),
    ("new_heap", Role::NewHeap, 2),
];

/// Public functions that are not counted themselves: the function they hand the call to is, once.
const RELAYS: [&str; 5] = ["reallocarray", "__libc_reallocarray", "free_sized", "free_aligned_sized", FREE_RELAY];

/// The name of what can be either where nothing is named.
pub const FREE_RELAY: &str = "free_sized or free_aligned_sized";

/// Functions of malloc.c and arena.c that may branch to a public function or a system-call wrapper (glibc 2.23 to 2.44).
const INTERNAL: [&str; 46] = [
    "_int_malloc",
    "_int_free",
    "_int_free_chunk",
    "_int_free_merge_chunk",
    "_int_free_create_chunk",
    "_int_free_maybe_consolidate",
    "_int_free_maybe_trim",
    "_int_realloc",
    "_int_memalign",
    "_mid_memalign",
    "_int_new_arena",
    "sysmalloc",
    "sysmalloc_mmap",
    "sysmalloc_mmap_fallback",
    "systrim",
    "mtrim",
    "malloc_trim",
    "__malloc_trim",
    "munmap_chunk",
    "mremap_chunk",
    "malloc_consolidate",
    "new_heap",
    "alloc_new_heap",
    "grow_heap",
    "shrink_heap",
    "delete_heap",
    "heap_trim",
    "arena_get2",
    "arena_get_retry",
    "arena_thread_freeres",
    "__malloc_arena_thread_freeres",
    "tcache_thread_shutdown",
    "tcache_init",
    "tcache_malloc_init",
    "tcache_calloc_init",
    "tcache_realloc_init",
    "tcache_memalign_init",
    "tcache_free_init",
    "tcache_double_free_verify",
    "__libc_malloc2",
    "__libc_calloc2",
    "malloc_hook_ini",
    "realloc_hook_ini",
    "memalign_hook_ini",
    "ptmalloc_init",
    "memalignment",
];

/// A way from the allocator into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// `mmap`
    Map,
    /// `munmap`
    Unmap,
    /// `mremap`
    Remap,
    /// `sbrk`, or `__glibc_morecore` which calls it for growth and trimming alike.
    Break,
}

/// The names of the wrappers.
pub const WRAPPERS: [(&str, Wrapper); 10] = [
    ("mmap", Wrapper::Map),
    ("mmap64", Wrapper::Map),
    ("__mmap", Wrapper::Map),
    ("__mmap64", Wrapper::Map),
    ("munmap", Wrapper::Unmap),
    ("__munmap", Wrapper::Unmap),
    ("mremap", Wrapper::Remap),
    ("sbrk", Wrapper::Break),
    ("__sbrk", Wrapper::Break),
    ("__glibc_morecore", Wrapper::Break),
];

/// Whether `name` is a public function that hands its call to a counted one.
pub fn is_relay(name: &str) -> bool {
    RELAYS.contains(&name)
}

/// Whether the branches of `name` are looked at.
pub fn is_allocator_code(name: &str) -> bool {
    is_relay(name) || INTERNAL.contains(&name) || counted(name).is_some()
}

/// Whether the symbol `name` is needed at all.
pub fn is_wanted(name: &str) -> bool {
    const OBJECTS: [&str; 3] = ["mp_", "main_arena", "__morecore"];
    // Heaps are told by these wrappers, which are not probed.
    const TELLING: [&str; 2] = ["mprotect", "madvise"];
    is_allocator_code(name)
        || OBJECTS.contains(&name)
        || TELLING.contains(&name)
        || WRAPPERS.iter().any(|(known, _)| *known == name)
}

/// The counted function of that name.
pub fn counted(name: &str) -> Option<Function> {
    malloc_common::function::ALL.into_iter().find(|function| function.name() == name)
}

/// The symbols without those local to another source file than `_int_malloc`: a statically linked program may well
/// have a `new_heap` of its own. Names with two underscores are glibc's, whichever file the linker lists them under.
pub fn without_strangers(mut symbols: Vec<Symbol>) -> Vec<Symbol> {
    let home = symbols.iter().find(|symbol| Name::parse(&symbol.name).base == "_int_malloc");
    if let Some(home) = home.and_then(|symbol| symbol.file.clone()) {
        symbols.retain(|symbol| {
            let internal = INTERNAL.contains(&Name::parse(&symbol.name).base) && !symbol.name.starts_with("__");
            !internal || symbol.file.as_ref().is_none_or(|file| *file == home)
        });
    }
    symbols
}

/// What the build keeps out of line, which decides whose code an inlined branch can be.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutOfLine {
    /// `_int_free` or the functions that replace it from 2.41 on.
    pub int_free: bool,
}

/// What a branch to `wrapper` means in the code of `function`; `None` where it is no part of the chain.
pub fn origin(function: &str, wrapper: Wrapper, out_of_line: OutOfLine) -> Option<Role> {
    let freeing = function.starts_with("_int_free") || matches!(function, "heap_trim" | "shrink_heap" | "delete_heap");
    Some(match wrapper {
        Wrapper::Map => match function {
            "sysmalloc_mmap_fallback" => Role::MapFallback,
            "new_heap" | "alloc_new_heap" | "arena_get2" | "_int_new_arena" => Role::MapHeap,
            // shrink_heap maps a heap's tail anew, without access.
            _ if freeing => Role::MapHeap,
            _ => Role::MapChunk,
        },
        Wrapper::Unmap => match function {
            "munmap_chunk" | "realloc" => Role::UnmapChunk,
            // free gives heaps back itself only when _int_free is part of it.
            "free" if out_of_line.int_free => Role::UnmapChunk,
            _ => Role::UnmapHeap,
        },
        Wrapper::Remap => Role::RemapChunk,
        Wrapper::Break => match function {
            "systrim" | "mtrim" | "malloc_trim" | "__malloc_trim" | "free" => Role::Trim,
            _ if freeing => Role::Trim,
            _ => Role::Grow,
        },
    })
}

/// The bytes `mp_` begins with: thresholds and padding of 128 KiB, an arena test of 8, no arena maximum.
pub const MP_HEAD: [u8; 40] = {
    let words: [u64; 5] = [0x2_0000, 0x2_0000, 0x2_0000, 8, 0];
    let mut bytes = [0; 40];
    let mut at = 0;
    while at < 40 {
        bytes[at] = words[at / 8].to_le_bytes()[at % 8];
        at += 1;
    }
    bytes
};

/// The layout of `mp_`, told by the values it is compiled with: thresholds and padding of 128 KiB, an arena test of
/// 8, no arena maximum, and 65536 where one layout has its `n_mmaps_max`.
pub fn mp_layout(data: &[u8]) -> MpLayout {
    let int = |offset: u32| {
        let offset = usize::try_from(offset).ok()?;
        data.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    };
    if !data.starts_with(&MP_HEAD) {
        return MpLayout::Unknown;
    }
    let mut fitting = [MpLayout::Upto234, MpLayout::From235, MpLayout::From243].into_iter().filter(|layout| {
        layout.offsets().is_some_and(|at| {
            int(at.n_mmaps_max) == Some(65536)
                && int(at.n_mmaps) == Some(0)
                && int(at.no_dyn_threshold) == Some(0)
                && int(at.mmapped_mem) == Some(0)
        })
    });
    match (fitting.next(), fitting.next()) {
        (Some(layout), None) => layout,
        _ => MpLayout::Unknown,
    }
}

/// The version the banner in `text` names: `GNU C Library (...) stable release version 2.36.`
pub fn version(text: &[u8]) -> Option<String> {
    const BANNER_LIMIT: usize = 256;
    let start = memchr::memmem::find(text, b"GNU C Library")?;
    let banner = text.get(start..)?;
    let banner = banner.get(..banner.len().min(BANNER_LIMIT))?;
    let at = memchr::memmem::find(banner, b"release version ")?.checked_add(b"release version ".len())?;
    let version: String = banner
        .get(at..)?
        .iter()
        .map(|&byte| char::from(byte))
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn static_mp(n_mmaps_max_at: usize) -> Vec<u8> {
        let mut data: Vec<u8> = [0x2_0000u64, 0x2_0000, 0x2_0000, 8, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        data.resize(144, 0);
        data[n_mmaps_max_at..n_mmaps_max_at + 4].copy_from_slice(&65536u32.to_le_bytes());
        data
    }

    #[test]
    fn the_layout_of_mp_is_told_by_its_static_values() {
        assert_eq!(mp_layout(&static_mp(44)), MpLayout::Upto234);
        assert_eq!(mp_layout(&static_mp(64)), MpLayout::From235);
        assert_eq!(mp_layout(&static_mp(72)), MpLayout::From243);
    }

    #[test]
    fn data_that_fits_no_layout_is_unknown() {
        assert_eq!(mp_layout(&static_mp(100)), MpLayout::Unknown);
        assert_eq!(mp_layout(&static_mp(64)[..60]), MpLayout::Unknown);
        assert_eq!(mp_layout(&[0; 144]), MpLayout::Unknown);
        assert_eq!(mp_layout(&[]), MpLayout::Unknown);
    }

    #[test]
    fn the_banner_names_the_version() {
        let debian = b"..GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright";
        assert_eq!(version(debian).as_deref(), Some("2.36"));
        let old = b"GNU C Library (Ubuntu GLIBC 2.23-0ubuntu11.3) stable release version 2.23, by Roland";
        assert_eq!(version(old).as_deref(), Some("2.23"));
        assert_eq!(version(b"GNU C Library"), None);
        assert_eq!(version(b"release version 1.0"), None);
    }

    #[test]
    fn a_branch_means_what_its_function_does() {
        let inlined = OutOfLine::default();
        let split = OutOfLine { int_free: true };
        assert_eq!(origin("sysmalloc", Wrapper::Map, split), Some(Role::MapChunk));
        assert_eq!(origin("sysmalloc_mmap_fallback", Wrapper::Map, split), Some(Role::MapFallback));
        assert_eq!(origin("alloc_new_heap", Wrapper::Unmap, split), Some(Role::UnmapHeap));
        assert_eq!(origin("free", Wrapper::Unmap, split), Some(Role::UnmapChunk));
        assert_eq!(origin("free", Wrapper::Unmap, inlined), Some(Role::UnmapHeap));
        assert_eq!(origin("systrim", Wrapper::Break, split), Some(Role::Trim));
        assert_eq!(origin("_int_malloc", Wrapper::Break, split), Some(Role::Grow));
        assert_eq!(origin("realloc", Wrapper::Remap, split), Some(Role::RemapChunk));
    }
}
