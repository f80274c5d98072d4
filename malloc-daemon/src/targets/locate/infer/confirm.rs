//! Holds what is told of a file against its bytes: what must be so where a name is right, whoever told it.

use malloc_common::function;
use malloc_common::site::{ArenaLayout, MpLayout};
use object::read::ReadRef;

use super::flow::Known;
use super::frames::Frames;
use super::graph::Graph;
use super::rules::{Data, INT_MALLOC_BYTES, Rules};
use super::{INFERRED_NAMES, Inference, Morecore, near, roots};
use crate::targets::decode::Machine;
use crate::targets::elf::Elf;
use crate::targets::locate::glibc::counted;
use crate::targets::symbols::{Binding, Name, Source, Symbol};

/// The most symbols of one inference: eleven functions and the public ones, with a few parts each.
const SYMBOLS: usize = 128;

/// What is told that is no function.
const OBJECTS: [&str; 2] = ["mp_", "main_arena"];

/// One thing that must be so if what was told of a file is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The function or object it is about.
    pub of: String,
    /// What must be so, a clause.
    pub what: &'static str,
    /// Whether it is.
    pub holds: bool,
}

/// Checks `symbols`, exported and internal ones, by the file itself. What is not named is not checked.
pub fn checks<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, machine: Machine, symbols: &[Symbol]) -> Vec<Check> {
    let Ok(frames) = Frames::read(elf) else { return Vec::new() };
    let mut found = Vec::new();
    let place = |name: &str| symbols.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.vaddr);
    let (mp, arena) = (place("mp_"), place("main_arena"));
    let layout = mp.map_or(MpLayout::Unknown, |vaddr| super::mp_layout(elf, vaddr));
    let mut check = |of: &str, what, holds| found.push(Check { of: of.to_owned(), what, holds });
    if mp.is_some() {
        check("mp_", "its initial values are those of exactly one layout", layout != MpLayout::Unknown);
    }
    if let Some(vaddr) = arena {
        let known = super::arena_layout(elf, machine, vaddr).is_ok_and(|layout| layout != ArenaLayout::Unknown);
        check("main_arena", "its link to the next arena leads to itself", known);
    }
    let internal = internal(symbols);
    for (name, vaddr) in &internal {
        check(name, "a function begins there by the table for unwinding", frames.length(*vaddr).is_some());
    }
    let (Ok(roots), Some(mp), Some(main_arena), Some(offsets)) = (roots(symbols), mp, arena, layout.offsets()) else {
        return found;
    };
    let slots = roots.morecore.map(|pointer| Morecore::at(elf, pointer).slots).unwrap_or_default();
    let mut graph = Graph::new(elf, machine, &frames, &slots, near(&roots));
    let mut rules = Rules { graph: &mut graph, roots, data: Data { mp, offsets, main_arena } };
    let public: Vec<(&str, u64)> =
        function::ALL.iter().filter_map(|function| Some((function.name(), place(function.name())?))).collect();
    for (name, vaddr) in &internal {
        if let Some((what, holds)) = rules.fits(name, *vaddr, &internal, &public) {
            found.push(Check { of: name.clone(), what, holds });
        }
    }
    found
}

/// The functions that have a rule, and their parts.
fn internal(symbols: &[Symbol]) -> Vec<(String, u64)> {
    let has_rule = |symbol: &&Symbol| {
        let name = Name::parse(&symbol.name);
        symbol.source != Source::Exports
            && !OBJECTS.contains(&name.base)
            && (INFERRED_NAMES.contains(&name.base) || (name.cold && counted(name.base).is_some()))
    };
    let mut found: Vec<_> = symbols.iter().filter(has_rule).map(|symbol| (symbol.name.clone(), symbol.vaddr)).collect();
    found.sort();
    found.dedup();
    found
}

impl<'data, R: ReadRef<'data>> Rules<'_, '_, 'data, R> {
    /// What must be so of the function that is called `name`, and whether it is; `None` where nothing is known of it.
    fn fits(
        &mut self,
        name: &str,
        vaddr: u64,
        named: &[(String, u64)],
        public: &[(&str, u64)],
    ) -> Option<(&'static str, bool)> {
        let parsed = Name::parse(name);
        let place = |wanted: &str| {
            let is_it = |name: &str| {
                let name = Name::parse(name);
                name.base == wanted && !name.cold && !name.part
            };
            named.iter().find(|(name, _)| is_it(name)).map(|(_, vaddr)| *vaddr)
        };
        if parsed.cold || parsed.part {
            let owner = place(parsed.base)
                .or_else(|| public.iter().find(|(name, _)| *name == parsed.base).map(|(_, vaddr)| *vaddr))?;
            return Some((
                "its function jumps there and it jumps back",
                self.graph.whole(owner).parts.contains(&vaddr),
            ));
        }
        let roots = self.roots;
        let int_malloc = place("_int_malloc");
        // Inlined, the code of sysmalloc is _int_malloc's.
        let grower = place("sysmalloc").or(int_malloc);
        let calls = |rules: &mut Self, from: Option<u64>| {
            from.is_some_and(|from| rules.graph.whole(from).callees.contains(&vaddr))
        };
        let callees = self.graph.whole(vaddr).callees.clone();
        Some(match parsed.base {
            "_int_malloc" => (
                "malloc calls it with main_arena",
                self.graph.length(vaddr) >= INT_MALLOC_BYTES && self.served_by_main_arena().contains(&vaddr),
            ),
            "sysmalloc" => {
                let argument = Some(Known::Argument(0));
                let compares = self.compared(vaddr).iter().any(|(_, sides)| sides.contains(&argument));
                (
                    "_int_malloc calls it and it compares its first argument with mp_.mmap_threshold",
                    compares && self.decides(vaddr) && calls(self, int_malloc),
                )
            }
            "sysmalloc_mmap" => (
                "sysmalloc calls it, and it maps and counts mapped chunks",
                callees.contains(&roots.mmap) && self.counts_maps(vaddr) && calls(self, grower),
            ),
            "sysmalloc_mmap_fallback" => (
                "sysmalloc calls it, and it maps and counts no mapped chunk",
                callees.contains(&roots.mmap) && !self.counts_maps(vaddr) && calls(self, grower),
            ),
            "munmap_chunk" => (
                "it unmaps and counts mapped chunks",
                callees.contains(&roots.munmap) && self.counts_maps(vaddr) && vaddr != roots.free,
            ),
            "mremap_chunk" => {
                ("realloc calls it, and it remaps", callees.contains(&roots.mremap) && calls(self, Some(roots.realloc)))
            }
            "systrim" => (
                "it asks where the heap ends and cuts it, and maps nothing",
                self.morecore_uses(vaddr) >= 2
                    && !callees.contains(&roots.mmap)
                    && Some(vaddr) != grower
                    && Some(vaddr) != int_malloc,
            ),
            "alloc_new_heap" | "new_heap" => {
                let maps = [roots.mmap, roots.munmap, roots.mprotect].iter().all(|wrapper| callees.contains(wrapper));
                let inner = place("alloc_new_heap").filter(|inner| *inner != vaddr);
                let hands_on = inner.is_some_and(|inner| callees.contains(&inner));
                ("it maps a heap, cuts it to size and makes it accessible", maps || hands_on)
            }
            "_int_free" | "_int_free_chunk" => {
                let systrim = place("systrim")?;
                (
                    "free calls it, and it leads to systrim",
                    calls(self, Some(roots.free)) && self.graph.leads(vaddr, systrim, 3),
                )
            }
            "heap_trim" | "_int_free_maybe_consolidate" | "_int_free_maybe_trim" => {
                ("it unmaps heaps and gives their pages back", self.gives_heaps_back(vaddr))
            }
            "__glibc_morecore" => ("it calls sbrk and does little else", self.is_morecore(vaddr)),
            _ => return None,
        })
    }
}

/// Whether an inference made of these bytes before can be one of them at all: every function in it begins where the
/// table for unwinding says so and has that length, so that a probe there lies on an instruction, and the objects have
/// their signatures. Whether each function fits its rule is not looked at again.
pub fn plausible<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, machine: Machine, told: &Inference) -> bool {
    if told.symbols.len() > SYMBOLS {
        return false;
    }
    let Ok(frames) = Frames::read(elf) else { return false };
    let plain = told.symbols.iter().all(|symbol| {
        let fits = match &*symbol.name {
            "mp_" => symbol.size == 0 && super::mp_layout(elf, symbol.vaddr) != MpLayout::Unknown,
            "main_arena" => {
                let layout = super::arena_layout(elf, machine, symbol.vaddr);
                symbol.size == 0 && layout.is_ok_and(|layout| layout != ArenaLayout::Unknown)
            }
            _ => frames.length(symbol.vaddr) == Some(symbol.size),
        };
        let source = matches!(symbol.source, Source::Inferred | Source::Usdt);
        fits && source && symbol.binding == Binding::Local && symbol.file.is_none()
    });
    // A second place of a function that has one would be probed like the first.
    let mut entries: Vec<&str> = told.symbols.iter().map(|symbol| &*symbol.name).collect();
    entries.retain(|name| !Name::parse(name).cold && *name != "__glibc_morecore");
    let count = entries.len();
    entries.sort_unstable();
    entries.dedup();
    plain && entries.len() == count
}
