//! Holds what is told of a stripped libc against the symbols of the same build.

use std::collections::BTreeMap;

use malloc_common::site::{ArenaLayout, MpLayout};
use malloc_daemon::targets::Located;
use malloc_daemon::targets::symbols::{Name, Source};

/// The functions that are compared.
const FUNCTIONS: [&str; 11] = [
    "_int_malloc",
    "sysmalloc",
    "sysmalloc_mmap",
    "sysmalloc_mmap_fallback",
    "munmap_chunk",
    "mremap_chunk",
    "systrim",
    "new_heap",
    "alloc_new_heap",
    "_int_free",
    "heap_trim",
];

/// One item's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As the symbols say.
    Right,
    /// As the symbols say, and a static probe bears it out.
    Witnessed,
    /// Told to be no function of its own, and the symbols have none.
    Absent,
    /// Not told.
    Unidentified,
    /// Not as the symbols say.
    Wrong,
}

impl Verdict {
    /// As the table has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Right => "right",
            Verdict::Witnessed => "right+usdt",
            Verdict::Absent => "absent",
            Verdict::Unidentified => "UNIDENTIFIED",
            Verdict::Wrong => "WRONG",
        }
    }
}

/// Every item's verdict, in the table's order.
#[must_use]
pub fn items(inferred: &Located, truth: &Located) -> Vec<(&'static str, Verdict)> {
    let same = |same: bool, told: bool| match (told, same) {
        (false, _) => Verdict::Unidentified,
        (true, true) => Verdict::Right,
        (true, false) => Verdict::Wrong,
    };
    let layout = inferred.mp.map(|mp| mp.layout);
    let mut items = vec![
        ("main_arena", same(inferred.main_arena == truth.main_arena, inferred.main_arena.is_some())),
        ("malloc_state layout", same(Some(inferred.arena_layout) == arena(truth), known(inferred.arena_layout))),
        ("mp_", same(inferred.mp.map(|mp| mp.vaddr) == truth.mp.map(|mp| mp.vaddr), inferred.mp.is_some())),
        ("malloc_par layout", same(layout == parameters(truth), layout.is_some_and(|l| l != MpLayout::Unknown))),
    ];
    items.extend(functions(inferred, truth));
    items.push(("hooks", same(places(inferred) == places(truth), !inferred.hooks.is_empty())));
    items
}

/// The verdicts of the internal functions alone.
#[must_use]
pub fn functions(inferred: &Located, truth: &Located) -> [(&'static str, Verdict); FUNCTIONS.len()] {
    FUNCTIONS.map(|name| (name, function(name, inferred, truth)))
}

fn known(layout: ArenaLayout) -> bool {
    layout != ArenaLayout::Unknown
}

/// The layouts that the debug information of these versions has, by the version alone.
fn parameters(truth: &Located) -> Option<MpLayout> {
    Some(match minor(truth)? {
        23..=34 => MpLayout::Upto234,
        35..=42 => MpLayout::From235,
        43..=44 => MpLayout::From243,
        _ => return None,
    })
}

fn arena(truth: &Located) -> Option<ArenaLayout> {
    Some(match minor(truth)? {
        23..=26 => ArenaLayout::Upto226,
        27..=42 => ArenaLayout::From227,
        43..=44 => ArenaLayout::From243,
        _ => return None,
    })
}

fn minor(located: &Located) -> Option<u32> {
    located.version()?.strip_prefix("2.")?.parse().ok()
}

/// What the source calls `name` in later versions, or what a build calls the function that it is a part of.
fn also_called(name: &str) -> &[&str] {
    match name {
        "_int_free" => &["_int_free", "_int_free_chunk"],
        "heap_trim" => &["heap_trim", "_int_free_maybe_consolidate", "_int_free_maybe_trim"],
        _ => &[],
    }
}

fn function(name: &'static str, inferred: &Located, truth: &Located) -> Verdict {
    let entries = |located: &Located| -> BTreeMap<u64, Source> {
        let all = located.functions.iter().filter(|function| {
            let parsed = Name::parse(&function.name);
            let called = parsed.base == name || also_called(name).contains(&parsed.base);
            called && !parsed.cold
        });
        all.map(|function| (function.vaddr, function.source)).collect()
    };
    let (mine, real) = (entries(inferred), entries(truth));
    let lacking = inferred.missing.iter().any(|missing| missing.what == name && missing.why.contains("not identified"));
    match (mine.len(), mine.keys().eq(real.keys())) {
        (0, _) if lacking => Verdict::Unidentified,
        (0, true) => Verdict::Absent,
        (1, true) if mine.values().any(|source| *source == Source::Usdt) => Verdict::Witnessed,
        (1, true) => Verdict::Right,
        _ => Verdict::Wrong,
    }
}

/// Where the hooks lie and what they stand for: what the kernel is told.
#[must_use]
pub fn places(located: &Located) -> Vec<(u64, String, u64, u32)> {
    let hooks = located.hooks.iter();
    let mut places: Vec<_> =
        hooks.map(|hook| (hook.file_offset, format!("{:?}", hook.role), hook.cookie.0, hook.pushed_bytes)).collect();
    places.sort();
    places
}
