//! The public functions of allocators other than glibc's, what a call of each means, and how such a file is known.

use malloc_common::function::{self, Function};

use super::AllocatorKind;

/// An allocator other than glibc's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// jemalloc 5
    Jemalloc,
    /// gperftools
    Tcmalloc,
    /// mimalloc 2 and 3
    Mimalloc,
    /// musl's, `mallocng` or the older one
    Musl,
}

/// What programs that carry a jemalloc of their own put before its names: nothing, Rust's `tikv-jemallocator`, the
/// usual choice of C programs.
pub const JEMALLOC_PREFIXES: [&str; 3] = ["", "_rjem_", "je_"];

/// Functions of jemalloc beside malloc's family. `xallocx` resizes in place or not at all and is not counted.
const JEMALLOC: [(&str, Function); 4] = [
    ("mallocx", Function::Malloc),
    ("rallocx", Function::Realloc),
    ("dallocx", Function::Free),
    ("sdallocx", Function::Free),
];

/// Functions of gperftools whose names do not follow from malloc's family.
const TCMALLOC: [(&str, Function); 2] =
    [("tc_free_sized", Function::Free), ("tc_malloc_skip_new_handler", Function::Malloc)];

/// Functions of mimalloc whose names do not follow from malloc's family. In those that also take an alignment or an
/// offset the size stands where it does without. Functions on a heap of the caller's take the heap first, which no
/// counted function does: they are left out.
const MIMALLOC: [(&str, Function); 23] = [
    ("mi_zalloc", Function::Malloc),
    ("mi_malloc_small", Function::Malloc),
    ("mi_zalloc_small", Function::Malloc),
    ("mi_malloc_aligned", Function::Malloc),
    ("mi_zalloc_aligned", Function::Malloc),
    ("mi_malloc_aligned_at", Function::Malloc),
    ("mi_zalloc_aligned_at", Function::Malloc),
    ("mi_new", Function::Malloc),
    ("mi_new_nothrow", Function::Malloc),
    ("mi_new_aligned", Function::Malloc),
    ("mi_new_aligned_nothrow", Function::Malloc),
    ("mi_mallocn", Function::Calloc),
    ("mi_new_n", Function::Calloc),
    ("mi_calloc_aligned", Function::Calloc),
    ("mi_reallocf", Function::Realloc),
    ("mi_rezalloc", Function::Realloc),
    ("mi_new_realloc", Function::Realloc),
    ("mi_realloc_aligned", Function::Realloc),
    ("mi_rezalloc_aligned", Function::Realloc),
    ("mi_realloc_aligned_at", Function::Realloc),
    ("mi_free_size", Function::Free),
    ("mi_free_aligned", Function::Free),
    ("mi_free_size_aligned", Function::Free),
];

/// Public functions that multiply their arguments where no counted function does. Those that then enter `realloc` are
/// counted there.
pub const MULTIPLYING: [&str; 6] =
    ["reallocarray", "reallocarr", "mi_reallocarray", "mi_reallocarr", "mi_reallocn", "mi_new_reallocn"];

impl Family {
    /// The word the reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::Jemalloc => "jemalloc",
            Family::Tcmalloc => "tcmalloc",
            Family::Mimalloc => "mimalloc",
            Family::Musl => "musl",
        }
    }

    /// The kind of a file of this family.
    #[must_use]
    pub fn kind(self, version: Option<String>) -> AllocatorKind {
        match self {
            Family::Jemalloc => AllocatorKind::Jemalloc { version },
            Family::Tcmalloc => AllocatorKind::Tcmalloc { version },
            Family::Mimalloc => AllocatorKind::Mimalloc { version },
            Family::Musl => AllocatorKind::Musl { version },
        }
    }

    /// Whether a function of that name in a program is the allocator's, public or not, where its names tell that.
    #[must_use]
    pub fn owns(self, name: &str, prefix: &str) -> bool {
        match self {
            Family::Mimalloc => name.trim_start_matches('_').starts_with("mi_"),
            // Its own functions are named so where the public ones have no prefix.
            Family::Jemalloc => name.starts_with(if prefix.is_empty() { "je_" } else { prefix }),
            Family::Tcmalloc | Family::Musl => false,
        }
    }

    /// What a call of `name` means: as a call of which function it counts.
    #[must_use]
    pub fn meaning(self, name: &str, prefix: &str) -> Option<Function> {
        let listed =
            |list: &[(&str, Function)], name: &str| list.iter().find(|(known, _)| *known == name).map(|(_, f)| *f);
        match self {
            Family::Musl => malloc_family(name),
            Family::Jemalloc => {
                let plain = name.strip_prefix(prefix)?;
                malloc_family(plain).or_else(|| listed(&JEMALLOC, plain)).or_else(|| operator(name))
            }
            Family::Tcmalloc => malloc_family(name.strip_prefix("tc_").unwrap_or(name))
                .or_else(|| listed(&TCMALLOC, name))
                .or_else(|| operator(name)),
            Family::Mimalloc => malloc_family(name.strip_prefix("mi_").unwrap_or(name))
                .or_else(|| listed(&MIMALLOC, name))
                .or_else(|| operator(name)),
        }
    }
}

/// The counted function of that name, or of which it is another name.
fn malloc_family(name: &str) -> Option<Function> {
    let name = name.strip_prefix("__libc_").or_else(|| name.strip_prefix("__")).unwrap_or(name);
    match name {
        "cfree" | "vfree" | "free_sized" | "free_aligned_sized" => Some(Function::Free),
        "reallocf" => Some(Function::Realloc),
        _ => function::ALL.into_iter().find(|function| function.name() == name),
    }
}

/// C++'s `operator new` and `operator delete` in all their forms: the size, or the pointer, comes first.
#[must_use]
pub fn operator(name: &str) -> Option<Function> {
    let starts = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if starts(["_Znwm", "_Znam"]) {
        Some(Function::Malloc)
    } else if starts(["_ZdlPv", "_ZdaPv"]) {
        Some(Function::Free)
    } else {
        None
    }
}

/// The name of a function that was counted as another, for people; `None` for one that says no more than the
/// function's own.
#[must_use]
pub fn folded_name(name: &str, function: Function) -> Option<String> {
    if let Some(operator) = operator(name) {
        return Some(if operator == Function::Free { "operator delete" } else { "operator new" }.to_owned());
    }
    let plain = name.trim_start_matches('_');
    let plain =
        ["libc_", "tc_", "mi_", "rjem_", "je_"].iter().find_map(|prefix| plain.strip_prefix(prefix)).unwrap_or(plain);
    (plain != function.name() && !name.starts_with("tc_")).then(|| name.to_owned())
}

/// The version that the text of a file names.
#[must_use]
pub fn version(family: Family, text: &[u8]) -> Option<String> {
    match family {
        // `5.3.0-0-g54eaed1d8b56b1aa528be3bdd1877e59c56fa90c`
        Family::Jemalloc => words(text).find_map(|word| {
            let (version, rest) = word.split_once('-')?;
            let hash = rest.split_once("-g")?.1;
            (is_version(version) && hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| version.to_owned())
        }),
        // `gperftools 2.10`
        Family::Tcmalloc => words(text).find_map(|word| {
            let version = word.strip_prefix("gperftools ")?;
            is_version(version).then(|| version.to_owned())
        }),
        // `1.2.3`, a string of its own.
        Family::Musl => words(text)
            .find(|word| {
                (word.starts_with("1.") || word.starts_with("0.9."))
                    && is_version(word)
                    && word.matches('.').count() == 2
            })
            .map(str::to_owned),
        // A number in the code of mi_version; see there.
        Family::Mimalloc => None,
    }
}

/// mimalloc's number for itself: 209 is 2.0.9, 20204 is 2.2.4.
#[must_use]
pub fn mimalloc_version(number: u32) -> Option<String> {
    match number {
        100..=999 => Some(format!("{}.{}.{}", number / 100, number / 10 % 10, number % 10)),
        10_000..=99_999 => Some(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)),
        _ => None,
    }
}

/// The NUL-terminated strings of a section that are UTF-8 and short.
fn words(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == 0)
        .filter(|word| (3..=80).contains(&word.len()))
        .filter_map(|word| std::str::from_utf8(word).ok())
}

fn is_version(word: &str) -> bool {
    word.len() <= 16
        && word.split('.').count() >= 2
        && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefixed_jemalloc_is_another_than_the_c_librarys() {
        assert_eq!(Family::Jemalloc.meaning("_rjem_sdallocx", "_rjem_"), Some(Function::Free));
        assert_eq!(Family::Jemalloc.meaning("_rjem_malloc", "_rjem_"), Some(Function::Malloc));
        assert_eq!(Family::Jemalloc.meaning("malloc", "_rjem_"), None);
        assert_eq!(Family::Jemalloc.meaning("_Znwm", "_rjem_"), None);
        assert_eq!(Family::Jemalloc.meaning("_rjem_je_malloc_default", "_rjem_"), None);
    }

    #[test]
    fn an_allocators_inner_functions_are_told_by_their_names() {
        assert!(Family::Mimalloc.owns("mi_theap_realloc_zero_aligned_at", ""));
        assert!(Family::Mimalloc.owns("__mi_stat_increase", "") && Family::Mimalloc.owns("_mi_theap_init", ""));
        assert!(!Family::Mimalloc.owns("minimum", ""));
        assert!(Family::Jemalloc.owns("_rjem_je_arena_malloc_hard", "_rjem_"));
        assert!(Family::Jemalloc.owns("je_arena_malloc_hard", "") && !Family::Jemalloc.owns("je_malloc", "_rjem_"));
    }

    #[test]
    fn an_operator_counts_as_what_it_does() {
        assert_eq!(Family::Tcmalloc.meaning("_ZnwmSt11align_val_tRKSt9nothrow_t", ""), Some(Function::Malloc));
        assert_eq!(Family::Mimalloc.meaning("_ZdaPvm", ""), Some(Function::Free));
        assert_eq!(Family::Musl.meaning("_Znwm", ""), None);
        assert_eq!(folded_name("_ZdaPvm", Function::Free).as_deref(), Some("operator delete"));
        assert_eq!(folded_name("__libc_malloc", Function::Malloc), None);
        assert_eq!(folded_name("_rjem_mallocx", Function::Malloc).as_deref(), Some("_rjem_mallocx"));
    }

    #[test]
    fn the_version_is_read_from_the_text() {
        let jemalloc = b"x\x005.3.0-0-g54eaed1d8b56b1aa528be3bdd1877e59c56fa90c\0y";
        assert_eq!(version(Family::Jemalloc, jemalloc).as_deref(), Some("5.3.0"));
        assert_eq!(version(Family::Tcmalloc, b"\0gperftools 2.10\0").as_deref(), Some("2.10"));
        assert_eq!(version(Family::Musl, b"\x00127.0.0.1\x001.2.3\0").as_deref(), Some("1.2.3"));
        assert_eq!(version(Family::Musl, b"\x00127.0.0.1\0"), None);
        assert_eq!(mimalloc_version(209).as_deref(), Some("2.0.9"));
        assert_eq!(mimalloc_version(7), None);
    }
}
