//! Tells the allocator's internal functions by what they do: each has to fit its rule alone.

use std::collections::BTreeSet;

use malloc_common::site::{MP_MMAP_THRESHOLD, MpOffsets};
use object::read::ReadRef;

use super::flow::Known;
use super::graph::Graph;

/// `_int_malloc` has 2,900 bytes or more in every build seen, and twice the code of any other function near it.
pub(super) const INT_MALLOC_BYTES: u64 = 1500;
/// `sysmalloc` has 1,500 bytes or more.
const SYSMALLOC_BYTES: u64 = 200;
/// `__glibc_morecore` calls `sbrk` and does little else.
const MORECORE_BYTES: u64 = 160;

/// The public functions that lead to the internal ones.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    pub malloc: u64,
    pub calloc: u64,
    pub realloc: u64,
    pub free: u64,
    /// Not known where nothing is named.
    pub malloc_trim: Option<u64>,
    pub mmap: u64,
    pub munmap: u64,
    pub mprotect: u64,
    pub madvise: u64,
    pub mremap: u64,
    pub sbrk: u64,
    /// The pointer `__morecore`, up to glibc 2.33.
    pub morecore: Option<u64>,
}

/// Where the parameters and the first arena lie.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub mp: u64,
    pub offsets: MpOffsets,
    pub main_arena: u64,
}

impl Data {
    /// The address of the field of `mp_` at `offset`.
    fn field(&self, offset: u32) -> u64 {
        self.mp.wrapping_add(u64::from(offset))
    }
}

/// One function's verdict: where it is; `Ok(None)` when the build has no such function; or why it is not known.
pub type Verdict = Result<Option<u64>, String>;

/// What the rules say.
#[derive(Clone, Debug)]
pub struct Told {
    pub int_malloc: Verdict,
    pub sysmalloc: Verdict,
    /// Where the code of sysmalloc compares the threshold, when it is a part of `_int_malloc`.
    pub threshold_compared: Vec<u64>,
    pub sysmalloc_mmap: Verdict,
    pub sysmalloc_mmap_fallback: Verdict,
    pub munmap_chunk: Verdict,
    pub mremap_chunk: Verdict,
    pub systrim: Verdict,
    pub alloc_new_heap: Verdict,
    pub new_heap: Verdict,
    pub int_free: Verdict,
    pub morecore: BTreeSet<u64>,
    /// What gives an arena's heap back, where it is apart from `_int_free`.
    pub heap_trim: Verdict,
}

/// The rules, applied to one file.
pub struct Rules<'g, 'a, 'data, R> {
    pub graph: &'g mut Graph<'a, 'data, R>,
    pub roots: Roots,
    pub data: Data,
}

/// The one candidate. None at all is `absent`.
fn only(candidates: &[u64], absent: Verdict) -> Verdict {
    match candidates {
        [] => absent,
        [one] => Ok(Some(*one)),
        many => Err(format!("{} functions fit its rule", many.len())),
    }
}

fn unknown(why: &str) -> Verdict {
    Err(why.to_owned())
}

impl<'data, R: ReadRef<'data>> Rules<'_, '_, 'data, R> {
    /// Applies them all.
    pub fn apply(mut self) -> Told {
        let int_malloc = self.int_malloc();
        let im = int_malloc.clone().ok().flatten();
        let after = "_int_malloc is not known, whose callee it is";
        let sysmalloc = im.map_or(unknown(after), |im| self.sysmalloc(im));
        // Inlined, its code is _int_malloc's.
        let grower = match sysmalloc {
            Ok(separate) => separate.or(im),
            Err(_) => None,
        };
        let threshold_compared = match (&sysmalloc, im) {
            (Ok(None), Some(im)) => self.compared(im).into_iter().map(|(vaddr, _)| vaddr).collect(),
            _ => Vec::new(),
        };
        let after = "sysmalloc is not known, whose callee it is";
        let (alloc_new_heap, new_heap) = self.new_heap();
        let heaps: Vec<u64> =
            [&alloc_new_heap, &new_heap].into_iter().filter_map(|v| v.clone().ok().flatten()).collect();
        let sysmalloc_mmap = grower.map_or(unknown(after), |grower| self.mapper(grower, &heaps, true));
        let sysmalloc_mmap_fallback = grower.map_or(unknown(after), |grower| self.mapper(grower, &heaps, false));
        let munmap_chunk = self.munmap_chunk();
        let mremap_chunk = self.mremap_chunk();
        let systrim = self.systrim(&[im, grower]);
        let int_free = self.int_free(im, &[&munmap_chunk, &systrim]);
        let mut morecore = BTreeSet::new();
        for from in [grower, systrim.clone().ok().flatten()].into_iter().flatten() {
            let callees = self.graph.whole(from).callees.clone();
            // Where it is inlined, they call sbrk themselves.
            let sbrk = self.roots.sbrk;
            morecore.extend(callees.into_iter().filter(|callee| *callee != sbrk && self.is_morecore(*callee)));
        }
        let heap_trim = self.heap_trim(&int_free);
        Told {
            int_malloc,
            sysmalloc,
            threshold_compared,
            sysmalloc_mmap,
            sysmalloc_mmap_fallback,
            munmap_chunk,
            mremap_chunk,
            systrim,
            alloc_new_heap,
            new_heap,
            int_free,
            morecore,
            heap_trim,
        }
    }

    /// The large function that malloc, calloc and realloc share, whose callees grow the heap and map memory, and that
    /// malloc calls with `&main_arena` as long as the process has one thread.
    fn int_malloc(&mut self) -> Verdict {
        let roots = self.roots;
        let (by_calloc, by_realloc) = (self.graph.reach(roots.calloc, 2), self.graph.reach(roots.realloc, 3));
        let mut candidates = Vec::new();
        for (function, _) in self.graph.reach(roots.malloc, 2) {
            if by_calloc.contains_key(&function)
                && by_realloc.contains_key(&function)
                && ![roots.malloc, roots.calloc, roots.realloc].contains(&function)
                && self.graph.length(function) >= INT_MALLOC_BYTES
                && self.graph.reach(function, 1).into_keys().any(|near| self.morecore_uses(near) > 0)
                && self.graph.leads(function, roots.mmap, 3)
            {
                candidates.push(function);
            }
        }
        let fitting = candidates.len();
        let served = self.served_by_main_arena();
        candidates.retain(|function| served.contains(function));
        let why = match fitting {
            0 => "no function fits its rule",
            _ => "malloc is not seen to call what fits its rule with main_arena",
        };
        only(&candidates, unknown(why))
    }

    /// What malloc, or what it calls, calls with `main_arena` as the first argument.
    pub(super) fn served_by_main_arena(&mut self) -> BTreeSet<u64> {
        let mut served = BTreeSet::new();
        for caller in self.graph.reach(self.roots.malloc, 1).into_keys() {
            let arena = Some(self.data.main_arena);
            let whole = self.graph.whole(caller);
            served.extend(whole.exits.iter().filter(|exit| exit.argument == arena).map(|exit| exit.target));
        }
        served
    }

    /// The callee that reads both the threshold and the limit of mapped chunks, and compares the threshold with its
    /// first argument.
    fn sysmalloc(&mut self, int_malloc: u64) -> Verdict {
        let mut candidates = Vec::new();
        for callee in self.graph.whole(int_malloc).callees.clone() {
            if callee != int_malloc
                && self.graph.is_function(callee)
                && self.graph.length(callee) >= SYSMALLOC_BYTES
                && self.decides(callee)
            {
                candidates.push(callee);
            }
        }
        if let [one] = *candidates {
            let argument = Some(Known::Argument(0));
            if !self.compared(one).iter().any(|(_, sides)| sides.contains(&argument)) {
                return unknown("what fits its rule is not seen to compare its first argument with the threshold");
            }
        }
        let inlined = self.decides(int_malloc);
        only(&candidates, if inlined { Ok(None) } else { unknown("no function fits its rule") })
    }

    /// Where `function` compares something with the threshold.
    pub(super) fn compared(&mut self, function: u64) -> Vec<(u64, [Option<Known>; 2])> {
        let threshold = Some(Known::Loaded(self.data.field(MP_MMAP_THRESHOLD)));
        let comparisons = &self.graph.whole(function).comparisons;
        comparisons.iter().filter(|(_, sides)| sides.contains(&threshold)).copied().collect()
    }

    pub(super) fn decides(&mut self, function: u64) -> bool {
        let data = self.data;
        let references = &self.graph.whole(function).references;
        references.contains(&data.field(MP_MMAP_THRESHOLD))
            && references.contains(&data.field(data.offsets.n_mmaps_max))
    }

    pub(super) fn counts_maps(&mut self, function: u64) -> bool {
        let n_mmaps = self.data.field(self.data.offsets.n_mmaps);
        self.graph.whole(function).references.contains(&n_mmaps)
    }

    /// The callee of sysmalloc that maps: counting mapped chunks, or in place of the heap's growth.
    fn mapper(&mut self, grower: u64, heaps: &[u64], counting: bool) -> Verdict {
        let mut candidates = Vec::new();
        for callee in self.graph.whole(grower).callees.clone() {
            if callee != grower
                && self.graph.is_function(callee)
                && !heaps.contains(&callee)
                && self.graph.whole(callee).callees.contains(&self.roots.mmap)
                && self.counts_maps(callee) == counting
                // What reports an error maps its message, and unmaps the one before.
                && !self.graph.whole(callee).callees.contains(&self.roots.munmap)
            {
                candidates.push(callee);
            }
        }
        let inlined = self.graph.whole(grower).callees.contains(&self.roots.mmap);
        only(&candidates, if inlined || !counting { Ok(None) } else { unknown("no function fits its rule") })
    }

    /// What free reaches that unmaps and counts mapped chunks.
    fn munmap_chunk(&mut self) -> Verdict {
        let mut candidates = Vec::new();
        for function in self.graph.reach(self.roots.free, 3).into_keys() {
            if function != self.roots.free
                && self.graph.whole(function).callees.contains(&self.roots.munmap)
                && self.counts_maps(function)
            {
                candidates.push(function);
            }
        }
        only(&candidates, unknown("no function fits its rule"))
    }

    /// The callee of realloc that remaps; realloc itself where it is inlined.
    fn mremap_chunk(&mut self) -> Verdict {
        let callees = self.graph.whole(self.roots.realloc).callees.clone();
        let mremap = self.roots.mremap;
        let mut candidates: Vec<u64> = callees.into_iter().collect();
        candidates.retain(|one| self.graph.is_function(*one) && self.graph.whole(*one).callees.contains(&mremap));
        only(&candidates, Ok(None))
    }

    /// What malloc_trim and free share that asks `sbrk` at least twice, where the heap ends and to cut it, and maps
    /// nothing.
    fn systrim(&mut self, growers: &[Option<u64>]) -> Verdict {
        let by_free = self.graph.reach(self.roots.free, 4);
        let mut candidates = Vec::new();
        let trim = self.roots.malloc_trim;
        let by_trim = trim.map_or_else(|| by_free.clone(), |trim| self.graph.reach(trim, 2));
        for function in by_trim.into_keys() {
            if by_free.contains_key(&function)
                && Some(function) != trim
                && !growers.contains(&Some(function))
                && self.morecore_uses(function) >= 2
                && !self.graph.whole(function).callees.contains(&self.roots.mmap)
            {
                candidates.push(function);
            }
        }
        only(&candidates, unknown("no function fits its rule"))
    }

    /// What malloc reaches that maps, cuts what it mapped to size, and makes it accessible; and, where that is apart,
    /// the one function it is called by.
    fn new_heap(&mut self) -> (Verdict, Verdict) {
        let roots = self.roots;
        let near = self.graph.reach(roots.malloc, 4);
        let mut candidates = Vec::new();
        for function in near.keys() {
            let callees = &self.graph.whole(*function).callees;
            if [roots.mmap, roots.munmap, roots.mprotect].iter().all(|wrapper| callees.contains(wrapper)) {
                candidates.push(*function);
            }
        }
        let inner = only(&candidates, unknown("no function fits its rule"));
        let Ok(Some(heap)) = inner else { return (inner.clone(), inner) };
        // From glibc 2.35 on, new_heap tries huge pages first: two calls of alloc_new_heap and nothing else.
        let mut callers = Vec::new();
        for function in near.into_keys() {
            let whole = self.graph.whole(function);
            let calls = whole.exits.iter().filter(|exit| exit.target == heap).count();
            let rest = whole.callees.iter().filter(|callee| **callee != heap).count();
            if function != heap && calls >= 2 && rest == 0 {
                callers.push(function);
            }
        }
        match *callers {
            [] => (Ok(None), Ok(Some(heap))),
            [one] => (Ok(Some(heap)), Ok(Some(one))),
            _ => (inner, unknown("several functions call what fits the rule of alloc_new_heap")),
        }
    }

    /// The callee of free through which it reaches systrim.
    fn int_free(&mut self, int_malloc: Option<u64>, others: &[&Verdict]) -> Verdict {
        let Some(Ok(Some(systrim))) = others.last().map(|verdict| (*verdict).clone()) else {
            return unknown("systrim is not known, which it leads to");
        };
        let others: Vec<u64> = others.iter().filter_map(|verdict| (*verdict).clone().ok().flatten()).collect();
        let mut candidates = Vec::new();
        for callee in self.graph.whole(self.roots.free).callees.clone() {
            if self.graph.is_function(callee)
                && !others.contains(&callee)
                && callee != self.roots.free
                && Some(callee) != int_malloc
                && !int_malloc.is_some_and(|im| self.graph.whole(callee).callees.contains(&im))
                && self.graph.leads(callee, systrim, 3)
            {
                candidates.push(callee);
            }
        }
        // What another candidate calls is a part of that one's work.
        let mut inner = BTreeSet::new();
        for outer in &candidates {
            let reached = self.graph.reach(*outer, 3);
            inner.extend(candidates.iter().copied().filter(|one| one != outer && reached.contains_key(one)));
        }
        if inner.len() < candidates.len() {
            candidates.retain(|candidate| !inner.contains(candidate));
        }
        let inlined = self.graph.whole(self.roots.free).callees.contains(&systrim);
        only(&candidates, if inlined { Ok(None) } else { unknown("no function fits its rule") })
    }

    /// What `_int_free` leads to that unmaps heaps, and takes the pages from what it keeps of them.
    fn heap_trim(&mut self, int_free: &Verdict) -> Verdict {
        let from = match int_free {
            Ok(Some(int_free)) => *int_free,
            Ok(None) => self.roots.free,
            Err(_) => return unknown("_int_free is not known, which leads to it"),
        };
        if self.gives_heaps_back(from) {
            return Ok(None);
        }
        let mut candidates: Vec<u64> = self.graph.reach(from, 3).into_keys().collect();
        candidates.retain(|function| self.gives_heaps_back(*function));
        only(&candidates, unknown("no function fits its rule"))
    }

    pub(super) fn gives_heaps_back(&mut self, function: u64) -> bool {
        let callees = &self.graph.whole(function).callees;
        callees.contains(&self.roots.munmap) && callees.contains(&self.roots.madvise)
    }

    /// How often `function` asks for more heap or less.
    pub(super) fn morecore_uses(&mut self, function: u64) -> usize {
        let whole = self.graph.whole(function);
        let mut direct = 0;
        for exit in &whole.exits {
            direct += usize::from(self.is_morecore(exit.target));
        }
        let through = whole.throughs.iter().filter(|through| Some(through.pointer) == self.roots.morecore).count();
        direct + through
    }

    pub(super) fn is_morecore(&mut self, function: u64) -> bool {
        function == self.roots.sbrk
            || (self.graph.is_function(function)
                && self.graph.length(function) <= MORECORE_BYTES
                && self.graph.whole(function).callees.contains(&self.roots.sbrk))
    }
}
