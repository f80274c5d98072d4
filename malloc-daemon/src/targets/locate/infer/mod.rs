//! Finds the allocator's internals in a glibc that names none of them, by what its code and data are.

mod confirm;
mod data;
mod flow;
pub(in crate::targets) mod frames;
mod graph;
mod nameless;
mod rules;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use malloc_common::function;
use malloc_common::site::{ArenaLayout, MpLayout};
use object::read::ReadRef;

pub use confirm::{Check, checks, plausible};
pub use data::{arena_layout, mp_layout};
use flow::{Known, Reading, follow};
use frames::Frames;
use graph::Graph;
pub use nameless::{Nameless, nameless};
use rules::{Data, Roots, Rules, Told, Verdict};

use crate::targets::decode::Machine;
use crate::targets::decode::step::{Operand, Register};
use crate::targets::elf::Elf;
use crate::targets::slots::named_slots;
use crate::targets::symbols::{Binding, Source, Symbol};
use crate::targets::usdt::UsdtProbe;

/// Tells one state of the rules from another: what was inferred by others is not taken for what these infer. Every source
/// file that has a say is in it.
pub const RULES: u64 = fingerprint(&[
    include_bytes!("mod.rs"),
    include_bytes!("data.rs"),
    include_bytes!("flow.rs"),
    include_bytes!("frames.rs"),
    include_bytes!("graph.rs"),
    include_bytes!("nameless.rs"),
    include_bytes!("nameless/family.rs"),
    include_bytes!("rules.rs"),
    include_bytes!("../glibc.rs"),
    include_bytes!("../../decode/aarch64.rs"),
    include_bytes!("../../decode/x86_64.rs"),
]);

/// FNV-1a, which needs no crate at compile time.
const fn fingerprint(files: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut file = 0;
    while file < files.len() {
        let mut at = 0;
        while at < files[file].len() {
            hash = (hash ^ files[file][at] as u64).wrapping_mul(0x100_0000_01b3);
            at += 1;
        }
        file += 1;
    }
    hash
}

/// How far from the public functions the others of malloc.c may lie: the object file has 20 to 30 KiB.
const NEAR_BYTES: u64 = 128 << 10;

/// The names of what is inferred; parts that lie elsewhere have `.cold` behind their function's.
pub const INFERRED_NAMES: [&str; 17] = [
    "mp_",
    "main_arena",
    "_int_malloc",
    "sysmalloc",
    "sysmalloc_mmap",
    "sysmalloc_mmap_fallback",
    "munmap_chunk",
    "mremap_chunk",
    "systrim",
    "alloc_new_heap",
    "new_heap",
    "_int_free",
    "_int_free_chunk",
    "heap_trim",
    "_int_free_maybe_consolidate",
    "_int_free_maybe_trim",
    "__glibc_morecore",
];

/// A function or object that could not be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unidentified {
    /// Its name.
    pub name: &'static str,
    /// Why, in a clause.
    pub why: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inference {
    /// What a symbol table would say of it.
    pub symbols: Vec<Symbol>,
    /// What fits no rule, or too many functions fit.
    pub unidentified: Vec<Unidentified>,
    /// What else a reader should know, a sentence each.
    pub notes: Vec<String>,
}

impl Inference {
    fn lack(&mut self, name: &'static str, why: impl Into<String>) {
        self.unidentified.push(Unidentified { name, why: why.into() });
    }

    fn object(&mut self, name: &str, vaddr: u64) {
        self.symbols.push(symbol(name.to_owned(), vaddr, 0, Source::Inferred));
    }
}

fn symbol(name: String, vaddr: u64, size: u64, source: Source) -> Symbol {
    Symbol { name, vaddr, size, binding: Binding::Local, source, file: None }
}

/// Finds `mp_` and `main_arena` where `known` has them not, and the functions where `functions` are asked for.
pub fn infer<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    known: &[Symbol],
    probes: &[UsdtProbe],
    version: Option<&str>,
    functions: bool,
) -> Inference {
    let mut found = Inference::default();
    let place = |name: &str| known.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.vaddr);
    let mp = match place("mp_") {
        Some(vaddr) => Ok((vaddr, mp_layout(elf, vaddr))),
        None => data::mp(elf).one().inspect(|(vaddr, _)| found.object("mp_", *vaddr)),
    };
    let main_arena = match place("main_arena") {
        Some(vaddr) => Ok((vaddr, ArenaLayout::Unknown)),
        None => data::main_arena(elf, machine)
            .map_err(|error| error.to_string())
            .and_then(data::Search::one)
            .inspect(|(vaddr, _)| found.object("main_arena", *vaddr)),
    };
    for (name, why) in [("mp_", mp.as_ref().err()), ("main_arena", main_arena.as_ref().err())] {
        if let Some(why) = why {
            found.lack(name, why.clone());
        }
    }
    if functions {
        let told = tell(elf, machine, known, mp, main_arena);
        match told {
            Ok((told, code)) => name(&mut found, &told, &code, probes, version),
            Err(why) => {
                for name in ["_int_malloc", "sysmalloc", "munmap_chunk", "systrim", "new_heap"] {
                    found.lack(name, why.clone());
                }
            }
        }
    }
    found
}

/// Where functions lie.
struct Code {
    frames: Frames,
    /// The counted functions.
    public: Vec<(&'static str, u64)>,
    /// Where each function and its parts begin.
    parts: BTreeMap<u64, Vec<u64>>,
    /// A version that names functions as this one does, told by the code.
    era: Option<&'static str>,
}

fn tell<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    known: &[Symbol],
    mp: Result<(u64, MpLayout), String>,
    main_arena: Result<(u64, ArenaLayout), String>,
) -> Result<(Told, Code), String> {
    let (mp, layout) = mp.map_err(|why| format!("mp_ is not known: {why}"))?;
    let offsets = layout.offsets().ok_or("the layout of mp_ is not known")?;
    let (main_arena, _) = main_arena.map_err(|why| format!("main_arena is not known: {why}"))?;
    let roots = roots(known)?;
    let frames = Frames::read(elf).map_err(|error| error.to_string())?;
    let slots = roots.morecore.map(|pointer| Morecore::at(elf, pointer).slots).unwrap_or_default();
    let mut graph = Graph::new(elf, machine, &frames, &slots, near(&roots));
    let told = Rules { graph: &mut graph, roots, data: Data { mp, offsets, main_arena } }.apply();
    let era = era(&mut graph, layout, mp, &told, roots.free);
    let mut parts = BTreeMap::new();
    let internal = functions_of(&told).into_iter().filter_map(|(_, verdict)| verdict.clone().ok().flatten());
    let public: Vec<(&str, u64)> = function::ALL
        .iter()
        .filter_map(|function| Some((function.name(), exported(known, function.name())?)))
        .collect();
    for function in internal.chain(public.iter().map(|(_, vaddr)| *vaddr)) {
        parts.insert(function, graph.whole(function).parts.clone());
    }
    Ok((told, Code { frames, public, parts, era }))
}

/// A version whose functions are called as this one's, by the code alone; `None` where that does not tell.
fn era<'data, R: ReadRef<'data>>(
    graph: &mut Graph<'_, 'data, R>,
    layout: MpLayout,
    mp: u64,
    told: &Told,
    free: u64,
) -> Option<&'static str> {
    /// Where `tcache_bins`, `tcache_max_bytes` and `tcache_count` lie in glibc 2.35 to 2.42.
    const CACHE: Range<u64> = 104..128;
    match layout {
        MpLayout::Unknown => None,
        MpLayout::Upto234 => Some("2.34"),
        MpLayout::From243 => Some("2.43"),
        MpLayout::From235 => {
            // 2.41 moved the thread's cache from `_int_free` into `free`, and took `_int_free` apart.
            let int_free = told.int_free.clone().ok().flatten()?;
            let fields = mp.saturating_add(CACHE.start)..mp.saturating_add(CACHE.end);
            let mut caches = |function| graph.whole(function).references.range(fields.clone()).next().is_some();
            match (caches(int_free), caches(free)) {
                (true, false) => Some("2.40"),
                (false, true) => Some("2.41"),
                _ => None,
            }
        }
    }
}

/// The address a program that links against `name` reaches.
fn exported(known: &[Symbol], name: &str) -> Option<u64> {
    known.iter().filter(|symbol| symbol.name == name).min_by_key(|symbol| symbol.binding).map(|symbol| symbol.vaddr)
}

fn roots(known: &[Symbol]) -> Result<Roots, String> {
    let root = |name: &str| exported(known, name).ok_or_else(|| format!("{name} is not exported"));
    Ok(Roots {
        malloc: root("malloc")?,
        calloc: root("calloc")?,
        realloc: root("realloc")?,
        free: root("free")?,
        malloc_trim: exported(known, "malloc_trim"),
        mmap: root("mmap")?,
        munmap: root("munmap")?,
        mprotect: root("mprotect")?,
        madvise: root("madvise")?,
        mremap: root("mremap")?,
        sbrk: root("sbrk")?,
        morecore: exported(known, "__morecore"),
    })
}

/// Where the functions of malloc.c may lie.
fn near(roots: &Roots) -> Range<u64> {
    let named = [roots.malloc, roots.calloc, roots.realloc, roots.free];
    let public = || named.into_iter().chain(roots.malloc_trim);
    let first = public().min().unwrap_or(0).saturating_sub(NEAR_BYTES);
    first..public().max().unwrap_or(0).saturating_add(NEAR_BYTES)
}

fn functions_of(told: &Told) -> [(&'static str, &Verdict); 11] {
    [
        ("_int_malloc", &told.int_malloc),
        ("sysmalloc", &told.sysmalloc),
        ("sysmalloc_mmap", &told.sysmalloc_mmap),
        ("sysmalloc_mmap_fallback", &told.sysmalloc_mmap_fallback),
        ("munmap_chunk", &told.munmap_chunk),
        ("mremap_chunk", &told.mremap_chunk),
        ("systrim", &told.systrim),
        ("alloc_new_heap", &told.alloc_new_heap),
        ("new_heap", &told.new_heap),
        ("_int_free", &told.int_free),
        ("heap_trim", &told.heap_trim),
    ]
}

/// Static probes that lie in a function of known name wherever the function is not inlined.
const WITNESSES: [(&str, &str); 3] =
    [("sysmalloc", "memory_sbrk_more"), ("systrim", "memory_sbrk_less"), ("alloc_new_heap", "memory_heap_new")];

fn name(found: &mut Inference, told: &Told, code: &Code, probes: &[UsdtProbe], version: Option<&str>) {
    let Code { frames, public, parts, era } = code;
    let version = version.or(*era);
    for (name, verdict) in functions_of(told) {
        let vaddr = match verdict {
            Ok(Some(vaddr)) => *vaddr,
            Ok(None) => continue,
            Err(why) => {
                found.lack(name, why.clone());
                continue;
            }
        };
        if version.is_none() && ["_int_free", "heap_trim"].contains(&name) {
            found.lack(name, "what it is called in this version is not known");
            continue;
        }
        let pieces = parts.get(&vaddr).cloned().unwrap_or_default();
        let source = match witnessed(name, &pieces, frames, probes) {
            _ if name.starts_with("sysmalloc_") && found.unidentified.iter().any(|one| one.name == "sysmalloc") => {
                found.lack(name, "sysmalloc is not known, whose callee it is");
                continue;
            }
            Some(true) => Source::Usdt,
            None => Source::Inferred,
            Some(false) => {
                found.lack(name, "the file's static probes contradict what fits its rule");
                continue;
            }
        };
        pieces_of(found, name_in(version, name), &pieces, frames, source);
    }
    if let Some(vaddr) = told.threshold_compared.first() {
        found.notes.push(format!(
            "sysmalloc is a part of _int_malloc in this build; it compares the threshold at {vaddr:#x}."
        ));
    }
    for vaddr in &told.morecore {
        let size = frames.length(*vaddr).unwrap_or(0);
        found.symbols.push(symbol("__glibc_morecore".to_owned(), *vaddr, size, Source::Inferred));
    }
    // The public functions name their entries themselves, but not their other parts.
    for (name, vaddr) in public {
        for piece in parts.get(vaddr).into_iter().flatten().skip(1) {
            let size = frames.length(*piece).unwrap_or(0);
            found.symbols.push(symbol(format!("{name}.cold"), *piece, size, Source::Inferred));
        }
    }
}

fn pieces_of(found: &mut Inference, name: &str, pieces: &[u64], frames: &Frames, source: Source) {
    for (index, piece) in pieces.iter().enumerate() {
        let name = if index == 0 { name.to_owned() } else { format!("{name}.cold") };
        found.symbols.push(symbol(name, *piece, frames.length(*piece).unwrap_or(0), source));
    }
}

/// Whether the static probe that belongs into `name` lies in one of its `pieces`; `None` when there is no such probe.
fn witnessed(name: &str, pieces: &[u64], frames: &Frames, probes: &[UsdtProbe]) -> Option<bool> {
    let (_, witness) = WITNESSES.iter().find(|(known, _)| *known == name)?;
    let mut sites = probes.iter().filter(|probe| probe.provider == "libc" && probe.name == *witness).peekable();
    sites.peek()?;
    Some(sites.any(|site| frames.holding(site.vaddr).is_some_and(|start| pieces.contains(&start))))
}

/// What the function `name` of the rules is called in that version: 2.41 took `_int_free` apart, 2.43 did so anew.
fn name_in(version: Option<&str>, name: &'static str) -> &'static str {
    let mut numbers = version.unwrap_or_default().split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match name {
        "_int_free" if version >= (2, 41) => "_int_free_chunk",
        "heap_trim" if version >= (2, 43) => "_int_free_maybe_trim",
        "heap_trim" if version >= (2, 41) => "_int_free_maybe_consolidate",
        name => name,
    }
}

/// Where the code of a function, which lies at `vaddr`, compares the word at `place` with a register: the comparison and
/// that register.
pub fn comparisons_with(machine: Machine, code: &[u8], vaddr: u64, place: u64) -> Vec<(u64, Register)> {
    let slots = BTreeMap::new();
    let reading = Reading { convention: machine.convention(), slots: &slots };
    let steps = machine.steps(code, vaddr);
    let facts = follow(&steps, vaddr, vaddr.saturating_add(code.len() as u64), reading);
    let wanted = Some(Known::Loaded(place));
    let mut found = Vec::new();
    for (at, sides) in facts.comparisons {
        let step = steps.iter().find(|step| step.vaddr == at);
        let operands = step.and_then(|step| step.compares);
        let other = match (operands, sides[0] == wanted, sides[1] == wanted) {
            (Some([_, other]), true, false) | (Some([other, _]), false, true) => other,
            _ => continue,
        };
        if let Operand::Register(register) = other {
            found.push((at, register));
        }
    }
    found
}

/// The pointer `__morecore`: the one way in which glibc up to 2.33 asks for more heap or less.
pub struct Morecore {
    pointer: u64,
    /// The slots through which code reaches it, for it is exported.
    slots: BTreeMap<u64, u64>,
}

impl Morecore {
    /// The pointer that lies at `pointer`.
    pub fn at<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, pointer: u64) -> Self {
        let slots = named_slots(elf, |name| name == "__morecore").unwrap_or_default();
        Self { pointer, slots: slots.into_keys().map(|slot| (slot, pointer)).collect() }
    }

    /// Where the code of a function, which lies at `vaddr`, calls through it.
    pub fn calls(&self, machine: Machine, code: &[u8], vaddr: u64) -> Vec<u64> {
        let reading = Reading { convention: machine.convention(), slots: &self.slots };
        let end = vaddr.saturating_add(code.len() as u64);
        let facts = follow(&machine.steps(code, vaddr), vaddr, end, reading);
        let through = facts.throughs.into_iter().filter(|through| through.pointer == self.pointer);
        through.map(|through| through.vaddr).collect()
    }
}
