//! Finds glibc's malloc in a program of x86-64 that names nothing: by its own texts and data, who calls whom, and system
//! calls.

mod family;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use malloc_common::site::MpLayout;
use object::LittleEndian as LE;
use object::read::ReadRef;

use super::data::{self, Search};
use super::flow::Exit;
use super::frames::Frames;
use super::graph::Graph;
use super::rules::INT_MALLOC_BYTES;
use super::{Unidentified, symbol};
use crate::targets::decode::Machine;
use crate::targets::elf::Elf;
use crate::targets::locate::glibc::FREE_RELAY;
use crate::targets::symbols::{Source, Symbol};

/// The most code and the most text that are searched; a static program with its C library has 1 MiB.
const SEARCHED_BYTES: u64 = 64 << 20;
/// The most functions that are looked into because they may refer to the allocator's data.
const SEEDS: usize = 512;
/// malloc.c's functions lie side by side: a wider gap ends their stretch.
const GAP_BYTES: u64 = 32 << 10;
/// How far before the first and behind the last function that refers to the data others of malloc.c may lie.
const MARGIN_BYTES: u64 = 8 << 10;
/// The most functions of that stretch; malloc.c has 60.
const FUNCTIONS: usize = 1024;
/// The most functions that may have one of its texts: a function, a part of it, a checking twin.
const SAYING: usize = 8;
/// The sizes of the two objects, at most.
const MP_BYTES: u64 = 144;
const ARENA_BYTES: u64 = 2200;
/// The longest wrapper of a system call; `sbrk` has some 200 bytes.
const WRAPPER_BYTES: u64 = 512;

/// What the sources report, each in one function alone (glibc 2.23 to 2.44). `_int_malloc` has the first from 2.29 on.
const INT_MALLOC_SAYS: [&[u8]; 2] = [b"malloc(): corrupted top size\0", b"malloc(): memory corruption\0"];
const REALLOC_SAYS: &[u8] = b"realloc(): invalid pointer\0";
const MUNMAP_CHUNK_SAYS: &[u8] = b"munmap_chunk(): invalid pointer\0";

/// What was found where no table names anything.
pub struct Nameless {
    /// The public functions, the wrappers of system calls that malloc.c calls, and the pointer `__morecore`.
    pub symbols: Vec<Symbol>,
    /// `_int_malloc` by its text: the rules have to come to the same.
    pub int_malloc: u64,
    /// Public functions that are not known.
    pub unidentified: Vec<Unidentified>,
}

/// A wrapper's name, and the number of its system call.
const CALLS: [(&str, u32); 5] = [("mmap", 9), ("munmap", 11), ("mprotect", 10), ("madvise", 28), ("mremap", 25)];
const BRK: u32 = 12;

/// Finds the functions by which the rules begin.
///
/// # Errors
/// Why they cannot be told, in a clause.
pub fn nameless<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, machine: Machine) -> Result<Nameless, String> {
    if machine != Machine::X86_64 {
        return Err("it is searched for on x86-64 only".to_owned());
    }
    let (mp, layout) = data::mp(elf).one().map_err(|why| format!("mp_ is not known: {why}"))?;
    let arena = data::main_arena(elf, machine).map_err(|error| error.to_string()).and_then(Search::one);
    let (main_arena, _) = arena.map_err(|why| format!("main_arena is not known: {why}"))?;
    let texts = Texts::find(elf)?;
    let frames = Frames::read(elf).map_err(|error| error.to_string())?;
    let slots = BTreeMap::new();
    let mut graph = Graph::new(elf, machine, &frames, &slots, 0..u64::MAX);
    let objects = [mp..mp.saturating_add(MP_BYTES), main_arena..main_arena.saturating_add(ARENA_BYTES)];
    let code = Code::read(elf)?;
    let home = home(&code, &frames, &mut graph, &objects)?;
    let functions: Vec<u64> = frames.starts(home.clone()).take(FUNCTIONS).collect();
    let mut program = Program { elf, machine, graph, functions, home, layout, main_arena, code };
    program.tell(&texts, &frames)
}

/// Where the texts lie.
struct Texts {
    int_malloc: u64,
    realloc: u64,
    munmap_chunk: u64,
}

impl Texts {
    fn find<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Self, String> {
        let section = elf.section(b".rodata").ok_or("it has no .rodata")?;
        let bytes = elf.bytes_within(section, SEARCHED_BYTES).map_err(|error| error.to_string())?;
        let start = section.sh_addr.get(LE);
        let place = |text: &[u8]| {
            let whole = |at: &usize| at.checked_sub(1).is_none_or(|before| bytes.get(before) == Some(&0));
            let places = memchr::memmem::find_iter(bytes, text).filter(whole).map(|at| start.saturating_add(at as u64));
            Search::of(places.take(2).collect()).one()
        };
        let what = "glibc's own texts are not in it";
        let lacks = |why: String| format!("{what}: {why}");
        let int_malloc = INT_MALLOC_SAYS.into_iter().map(place).find(Result::is_ok).unwrap_or_else(|| Err(what.into()));
        Ok(Self {
            int_malloc: int_malloc.map_err(lacks)?,
            realloc: place(REALLOC_SAYS).map_err(lacks)?,
            munmap_chunk: place(MUNMAP_CHUNK_SAYS).map_err(lacks)?,
        })
    }
}

/// The program's code as bytes.
struct Code<'data> {
    bytes: &'data [u8],
    start: u64,
}

impl<'data> Code<'data> {
    fn read<R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Self, String> {
        let section = elf.section(b".text").ok_or("it has no .text")?;
        let bytes = elf.bytes_within(section, SEARCHED_BYTES).map_err(|error| error.to_string())?;
        Ok(Self { bytes, start: section.sh_addr.get(LE) })
    }

    /// Hands over each four bytes that may be a distance from their end, by their place, and the address it leads to.
    /// What is there is still to be decoded.
    fn references(&self, mut each: impl FnMut(u64, u64)) {
        for (at, word) in self.bytes.windows(4).enumerate() {
            let Some(distance) = word.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) else { continue };
            let vaddr = self.start.wrapping_add(at as u64);
            each(vaddr, vaddr.wrapping_add(4).wrapping_add_signed(distance.into()));
        }
    }

    /// Hands over each place that may be a direct call or jump, and its target.
    fn branches(&self, mut each: impl FnMut(u64, u64)) {
        for at in memchr::memchr2_iter(0xe8, 0xe9, self.bytes) {
            let distance = self.bytes.get(at.saturating_add(1)..).and_then(|rest| rest.first_chunk());
            let Some(distance) = distance.map(|bytes| i32::from_le_bytes(*bytes)) else { continue };
            let vaddr = self.start.wrapping_add(at as u64);
            each(vaddr, vaddr.wrapping_add(5).wrapping_add_signed(distance.into()));
        }
    }
}

/// Where malloc.c's functions lie: the one stretch in which most functions refer to its data.
fn home<'data, R: ReadRef<'data>>(
    code: &Code<'data>,
    frames: &Frames,
    graph: &mut Graph<'_, 'data, R>,
    objects: &[Range<u64>],
) -> Result<Range<u64>, String> {
    let mut seeds = BTreeSet::new();
    code.references(|from, to| {
        if seeds.len() < SEEDS && objects.iter().any(|object| object.contains(&to)) {
            seeds.extend(frames.holding(from));
        }
    });
    let refers = |seed: &u64| {
        let whole = graph.whole(*seed);
        objects.iter().any(|object| whole.references.range(object.clone()).next().is_some())
    };
    let referring: Vec<u64> = seeds.into_iter().filter(refers).collect();
    let stretches = referring.chunk_by(|one, next| next.saturating_sub(*one) <= GAP_BYTES);
    let home = stretches.max_by_key(|stretch| stretch.len()).unwrap_or_default();
    match home {
        [first, .., last] => {
            let end = last.saturating_add(graph.length(*last)).saturating_add(MARGIN_BYTES);
            Ok(first.saturating_sub(MARGIN_BYTES)..end)
        }
        _ => Err("no code refers to mp_ and main_arena".to_owned()),
    }
}

struct Program<'a, 'data, R> {
    elf: &'a Elf<'data, R>,
    machine: Machine,
    graph: Graph<'a, 'data, R>,
    functions: Vec<u64>,
    home: Range<u64>,
    layout: MpLayout,
    main_arena: u64,
    code: Code<'data>,
}

fn one(name: &str, places: impl IntoIterator<Item = u64>) -> Result<u64, String> {
    let places: Vec<u64> = places.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    match *places {
        [] => Err(format!("no function is found that does what {name} does")),
        [one] => Ok(one),
        _ => Err(format!("{} functions do what {name} does", places.len())),
    }
}

impl<'data, R: ReadRef<'data>> Program<'_, 'data, R> {
    fn tell(&mut self, texts: &Texts, frames: &Frames) -> Result<Nameless, String> {
        let int_malloc = self.says("_int_malloc", texts.int_malloc)?;
        if self.graph.length(int_malloc) < INT_MALLOC_BYTES {
            return Err("what has the text of _int_malloc is too short for it".to_owned());
        }
        let realloc = self.says("realloc", texts.realloc)?;
        let munmap_chunk = self.says("munmap_chunk", texts.munmap_chunk)?;
        // realloc of nothing is malloc, and realloc to nothing is free: it calls both, and no calloc.
        let callees = self.graph.whole(realloc).callees.clone();
        let callees: Vec<u64> = callees.into_iter().filter(|callee| self.home.contains(callee)).collect();
        let mallocs = callees.iter().copied().filter(|callee| *callee != int_malloc);
        let mallocs: Vec<u64> = mallocs.filter(|callee| self.serves_main_arena(*callee, int_malloc)).collect();
        let malloc = one("malloc", self.not_inner(mallocs))?;
        let frees: Vec<u64> = callees
            .into_iter()
            .filter(|callee| ![realloc, malloc, munmap_chunk].contains(callee))
            .filter(|callee| self.graph.leads(*callee, munmap_chunk, 2) && !self.graph.leads(*callee, int_malloc, 1))
            .collect();
        let free = one("free", self.not_inner(frees))?;
        let others = self.functions.clone();
        let callocs: Vec<u64> = others
            .into_iter()
            .filter(|function| ![malloc, realloc, int_malloc].contains(function))
            .filter(|function| self.hands_on(*function, int_malloc) && self.multiplies(*function, frames))
            .collect();
        let calloc = one("calloc", callocs)?;
        let mut public = vec![("malloc", malloc), ("free", free), ("calloc", calloc), ("realloc", realloc)];
        self.check(&public, int_malloc)?;
        let family = self.family(malloc, realloc, int_malloc);
        public.extend(family.found);
        let relays = self.relays(free);
        self.keep_reached(&public);
        let mut symbols: Vec<Symbol> = public.iter().map(|(name, vaddr)| self.symbol(name, *vaddr)).collect();
        symbols.extend(relays);
        symbols.extend(self.wrappers()?);
        symbols.extend(self.sbrk()?);
        Ok(Nameless { symbols, int_malloc, unidentified: family.unidentified })
    }

    fn symbol(&self, name: &str, vaddr: u64) -> Symbol {
        symbol(name.to_owned(), vaddr, self.graph.length(vaddr), Source::Inferred)
    }

    /// The one function that refers to a text.
    fn says(&mut self, name: &str, text: u64) -> Result<u64, String> {
        let functions = self.functions.clone();
        // A part that lies within the stretch has its function's text; the function itself refers to the data too.
        let saying: Vec<u64> =
            functions.into_iter().filter(|one| self.graph.whole(*one).references.contains(&text)).collect();
        // Each is looked for in all of the code.
        if saying.len() > SAYING {
            return Err(format!("{} functions have the text of {name}", saying.len()));
        }
        let mut parts = BTreeSet::new();
        for one in &saying {
            parts.extend(self.graph.whole(*one).parts.iter().copied().filter(|part| part != one));
        }
        // A part and its function may each take the other for its part: what is called is the function.
        let called = |one: &u64| !parts.contains(one) || self.is_called(*one);
        let mut functions: Vec<u64> = saying.iter().copied().filter(called).collect();
        if functions.len() > 1 {
            // Up to glibc 2.33 a checking twin, which is reached by pointer alone, says the same.
            functions.retain(|function| self.is_called(*function));
        }
        one(name, functions)
    }

    fn is_called(&self, function: u64) -> bool {
        let mut called = false;
        self.code.branches(|from, to| {
            called |=
                to == function && !(function..function.saturating_add(self.graph.length(function))).contains(&from);
        });
        called
    }

    /// Whether it, or what it ends by jumping to, calls `_int_malloc` with `main_arena`.
    fn serves_main_arena(&mut self, function: u64, int_malloc: u64) -> bool {
        let arena = Some(self.main_arena);
        let serves = |exit: &Exit| exit.target == int_malloc && exit.argument == arena;
        let whole = self.graph.whole(function);
        let ends: Vec<u64> = whole.exits.iter().filter(|exit| !exit.call).map(|exit| exit.target).collect();
        whole.exits.iter().any(serves)
            || ends.into_iter().any(|end| self.home.contains(&end) && self.graph.whole(end).exits.iter().any(serves))
    }

    /// Whether it, or what it ends by jumping to, calls `_int_malloc`.
    fn hands_on(&mut self, function: u64, int_malloc: u64) -> bool {
        let whole = self.graph.whole(function);
        let ends: Vec<u64> = whole.exits.iter().filter(|exit| !exit.call).map(|exit| exit.target).collect();
        whole.callees.contains(&int_malloc)
            || ends
                .into_iter()
                .any(|end| self.home.contains(&end) && self.graph.whole(end).callees.contains(&int_malloc))
    }

    /// Without those that another of them calls: what does the rest of its work.
    fn not_inner(&mut self, candidates: Vec<u64>) -> Vec<u64> {
        let mut inner = BTreeSet::new();
        for outer in &candidates {
            let callees = self.graph.whole(*outer).callees.clone();
            inner.extend(candidates.iter().copied().filter(|one| one != outer && callees.contains(one)));
        }
        candidates.into_iter().filter(|one| !inner.contains(one)).collect()
    }

    /// Whether it takes a product and looks at its upper half, as calloc does to see an overflow.
    fn multiplies(&self, function: u64, frames: &Frames) -> bool {
        let length = frames.length(function).unwrap_or(0).min(crate::targets::decode::BODY_LIMIT);
        let Some(code) = self.elf.bytes_at(function, length) else { return false };
        self.machine.decode(code, function).iter().any(|instruction| {
            let at = usize::try_from(instruction.vaddr.saturating_sub(function)).ok().and_then(|at| code.get(at..));
            matches!(self.machine.mnemonic(at.unwrap_or_default()).as_str(), "mul" | "imul")
        })
    }

    /// The public functions are called from elsewhere, and `_int_malloc` is not.
    fn check(&self, public: &[(&str, u64)], int_malloc: u64) -> Result<(), String> {
        let mut called = BTreeSet::new();
        self.code.branches(|from, to| {
            if !self.home.contains(&from) {
                called.insert(to);
            }
        });
        if called.contains(&int_malloc) {
            return Err("what fits _int_malloc is called from outside of malloc.c".to_owned());
        }
        // Every program with a C library allocates and frees within that library.
        for (name, vaddr) in public.iter().filter(|(name, _)| ["malloc", "free"].contains(name)) {
            if !called.contains(vaddr) {
                return Err(format!("nothing outside of malloc.c calls what fits {name}"));
            }
        }
        let places: BTreeSet<u64> = public.iter().map(|(_, vaddr)| *vaddr).collect();
        if places.len() < public.len() { Err("one function fits two rules".to_owned()) } else { Ok(()) }
    }

    /// What does nothing but jump to free: `free_sized` and `free_aligned_sized`, which differ in nothing else.
    fn relays(&mut self, free: u64) -> Vec<Symbol> {
        /// `endbr64` and a jump.
        const RELAY_BYTES: u64 = 9;
        let mut found = Vec::new();
        for function in self.functions.clone() {
            let exits = &self.graph.whole(function).exits;
            let jumps = matches!(&exits[..], [Exit { target, call: false, .. }] if *target == free);
            if jumps && self.graph.length(function) <= RELAY_BYTES {
                found.push(self.symbol(FREE_RELAY, function));
            }
        }
        found
    }

    /// Forgets the functions that the public ones do not lead to: those beside malloc.c's are among them.
    fn keep_reached(&mut self, public: &[(&str, u64)]) {
        let mut reached: BTreeSet<u64> = public.iter().map(|(_, vaddr)| *vaddr).collect();
        let mut pending: Vec<u64> = reached.iter().copied().collect();
        while let Some(function) = pending.pop() {
            let callees = self.graph.whole(function).callees.clone();
            pending.extend(callees.into_iter().filter(|callee| self.home.contains(callee) && reached.insert(*callee)));
        }
        self.functions.retain(|function| reached.contains(function));
    }

    /// What the public functions lead to outside of malloc.c.
    fn outside(&mut self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        for function in self.functions.clone() {
            found.extend(self.graph.whole(function).callees.iter().copied());
        }
        found.retain(|callee| !self.home.contains(callee));
        found
    }

    fn wrappers(&mut self) -> Result<Vec<Symbol>, String> {
        let outside = self.outside();
        let mut found = Vec::new();
        for (name, numbers) in CALLS {
            let places = outside.iter().copied().filter(|callee| self.asks(*callee, numbers));
            found.push(self.symbol(name, one(name, places)?));
        }
        Ok(found)
    }

    /// `sbrk`, which calls `brk`; up to glibc 2.33 by way of the pointer `__morecore`, which is also given.
    fn sbrk(&mut self) -> Result<Vec<Symbol>, String> {
        let direct = self.outside();
        if let Ok(sbrk) = one("sbrk", direct.into_iter().filter(|callee| self.breaks(*callee)).collect::<Vec<_>>()) {
            return Ok(vec![self.symbol("sbrk", sbrk)]);
        }
        let mut pointers = BTreeSet::new();
        for function in self.functions.clone() {
            pointers.extend(self.graph.whole(function).throughs.iter().map(|through| through.pointer));
        }
        let stored = data::stored(self.elf, self.machine, &pointers).map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        for (pointer, function) in stored {
            for callee in self.graph.whole(function).callees.clone() {
                if self.breaks(callee) {
                    found.push((pointer, callee));
                }
            }
        }
        match *found {
            [(pointer, sbrk)] => {
                Ok(vec![symbol("__morecore".to_owned(), pointer, 0, Source::Inferred), self.symbol("sbrk", sbrk)])
            }
            _ => Err("what moves the end of the heap is not found".to_owned()),
        }
    }

    /// Whether it calls what asks the kernel to move the end of the heap.
    fn breaks(&mut self, function: u64) -> bool {
        if self.graph.length(function) > WRAPPER_BYTES || self.asks(function, BRK) {
            return false;
        }
        let callees = self.graph.whole(function).callees.clone();
        callees.into_iter().any(|callee| self.asks(callee, BRK))
    }

    /// Whether a short function makes the system call of that number: `mov eax, number` and soon a `syscall`.
    fn asks(&self, function: u64, number: u32) -> bool {
        /// How far the two may lie apart.
        const APART: usize = 40;
        let length = self.graph.length(function);
        if length > WRAPPER_BYTES {
            return false;
        }
        let Some(code) = self.elf.bytes_at(function, length) else { return false };
        let [a, b, c, d] = number.to_le_bytes();
        let mov = [0xb8, a, b, c, d];
        memchr::memmem::find_iter(code, &mov).any(|at| {
            let after = code.get(at.saturating_add(mov.len())..).unwrap_or_default();
            memchr::memmem::find(after.get(..APART.min(after.len())).unwrap_or_default(), &[0x0f, 0x05]).is_some()
        })
    }
}
