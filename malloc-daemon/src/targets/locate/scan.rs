//! Walks the allocator's functions and makes hooks of their entries and of the branches between them.

use std::collections::{BTreeMap, BTreeSet};

use malloc_common::function::{self, Function};
use malloc_common::site::{Cookie, MP_MMAP_THRESHOLD, PtRegsWord, Role};
use object::read::ReadRef;

use super::compared::compared;
use super::glibc::{self, OutOfLine, Wrapper};
use super::infer::{Morecore, Unidentified};
use super::{AllocatorFunction, HOOK_LIMIT, Hook, MallocPar, Missing};
use crate::targets::decode::{Arguments, BODY_LIMIT, Execution, Flow, Instruction, Machine};
use crate::targets::elf::Elf;
use crate::targets::sites::{entry_site, execution};
use crate::targets::slots::{STUB_BYTES, named_slots, slot_of_stub};
use crate::targets::symbols::{Name, Source, Symbol};
use malloc_common::depth::Depth;

/// The most code of one file that is decoded: thirty times glibc's malloc.
const CODE_LIMIT: u64 = 1 << 20;

/// The function name of code that no symbol names.
const UNNAMED: &str = "";

/// The most code between two public functions that is taken for malloc.c's own: the widest gap seen has 5 KiB.
const GAP_LIMIT: u64 = 16 << 10;

/// A stretch of the allocator's code: a function, or the part of one that lies elsewhere.
struct Stretch<'data> {
    /// The name in the source of the function it belongs to.
    function: String,
    /// The symbol's own name.
    symbol: String,
    vaddr: u64,
    reshaped: bool,
    part: bool,
    cold: bool,
    code: &'data [u8],
    body: Vec<Instruction>,
}

/// Where `sysmalloc` is hooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sysmalloc {
    /// At its entry, or at its comparison where it is a part of `_int_malloc`.
    AtItsEntry,
    /// At its comparison everywhere.
    AtItsComparison,
}

/// What else a hook tells its program or the reader.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Where the value is that the role is about, unless it is the first argument.
    word: Option<PtRegsWord>,
    pushed_bytes: u32,
}

/// The allocator's code in one file, and what has been made of it.
pub struct Scan<'a, 'data, R> {
    elf: &'a Elf<'data, R>,
    machine: Machine,
    mp: Option<MallocPar>,
    notes: &'a mut Vec<String>,
    functions: BTreeMap<u64, AllocatorFunction>,
    stretches: Vec<Stretch<'data>>,
    /// How many bytes may still be decoded.
    allowance: u64,
    /// The entries of the counted functions.
    counted: BTreeMap<u64, Function>,
    wrappers: BTreeMap<u64, Wrapper>,
    /// The pointer `__morecore`, where the file exports one.
    morecore: Option<u64>,
    /// Where any branch leads.
    targets: BTreeSet<u64>,
    hooks: BTreeMap<(Depth, u64, Role), Hook>,
    missing: Vec<Missing>,
}

impl<'a, 'data, R: ReadRef<'data>> Scan<'a, 'data, R> {
    /// Reads and decodes the functions that `symbols` names.
    pub fn new(
        elf: &'a Elf<'data, R>,
        machine: Machine,
        symbols: &[Symbol],
        mp: Option<MallocPar>,
        notes: &'a mut Vec<String>,
    ) -> Self {
        let mut scan = Self {
            elf,
            machine,
            mp,
            notes,
            functions: fold(elf, symbols),
            stretches: Vec::new(),
            allowance: CODE_LIMIT,
            counted: BTreeMap::new(),
            wrappers: BTreeMap::new(),
            morecore: symbols.iter().find(|symbol| symbol.name == "__morecore").map(|symbol| symbol.vaddr),
            targets: BTreeSet::new(),
            hooks: BTreeMap::new(),
            missing: Vec::new(),
        };
        for function in function::ALL {
            if let Some(vaddr) = public(symbols, function.name()).filter(|vaddr| elf.is_code(*vaddr)) {
                // aligned_alloc is memalign up to glibc 2.37: one address, one function, the first of the order.
                scan.counted.entry(vaddr).or_insert(function);
            }
        }
        for (name, wrapper) in glibc::WRAPPERS {
            for symbol in symbols.iter().filter(|symbol| symbol.name == name) {
                scan.wrappers.insert(symbol.vaddr, wrapper);
            }
        }
        scan.decode();
        scan
    }

    fn decode(&mut self) {
        for function in self.functions.values() {
            let name = Name::parse(&function.name);
            let base = match self.counted.get(&function.vaddr) {
                Some(counted) => counted.name(),
                None => name.base,
            };
            if !glibc::is_allocator_code(base) || self.wrappers.contains_key(&function.vaddr) {
                continue;
            }
            if function.size == 0 || function.size > BODY_LIMIT.min(self.allowance) {
                self.notes.push(format!("{} was not looked into: its size is {}.", function.name, function.size));
                continue;
            }
            self.allowance = self.allowance.saturating_sub(function.size);
            let Some(code) = self.elf.bytes_at(function.vaddr, function.size) else { continue };
            let body: Vec<Instruction> = self.machine.decode(code, function.vaddr);
            let end = body.last().map_or(function.vaddr, Instruction::end);
            if end.checked_sub(function.vaddr) != Some(function.size) {
                self.notes.push(format!("{} was decoded up to {end:#x} only.", function.name));
            }
            self.targets.extend(body.iter().filter_map(|instruction| instruction.flow.target()));
            self.stretches.push(Stretch {
                function: base.to_owned(),
                symbol: function.name.clone(),
                vaddr: function.vaddr,
                reshaped: name.reshaped,
                part: name.part,
                cold: name.cold,
                code,
                body,
            });
        }
    }

    /// Decodes the code between neighbouring public functions that belongs to no known name: in a stripped libc all
    /// internal functions, else those this version of the daemon does not know.
    ///
    /// The code of one object file is contiguous, and all counted functions come from malloc.c, so the code between two
    /// of them is malloc.c's own: a branch there to a counted function is a transfer. What lies before the first or
    /// behind the last stays unseen.
    pub fn sweep_unnamed(&mut self) {
        let known: Vec<(u64, u64, bool, String)> = self
            .functions
            .values()
            .filter(|function| !self.wrappers.contains_key(&function.vaddr))
            .filter_map(|function| {
                let end = function.vaddr.checked_add(function.size)?;
                Some((function.vaddr, end, self.counted.contains_key(&function.vaddr), function.name.clone()))
            })
            .collect();
        let counted = |(_, _, counted, _): &&(u64, u64, bool, String)| *counted;
        let (Some(first), Some(last)) = (known.iter().find(counted), known.iter().rev().find(counted)) else { return };
        for pair in known.windows(2) {
            let [(vaddr, end, _, symbol), (next, ..)] = pair else { continue };
            let Some(gap) = next.checked_sub(*end).filter(|gap| (1..=GAP_LIMIT.min(self.allowance)).contains(gap))
            else {
                continue;
            };
            if *vaddr < first.0 || *next > last.0 {
                continue;
            }
            self.allowance = self.allowance.saturating_sub(gap);
            let Some(code) = self.elf.bytes_at(*vaddr, next.saturating_sub(*vaddr)) else { continue };
            let Some(unnamed) = usize::try_from(end.saturating_sub(*vaddr)).ok().and_then(|at| code.get(at..)) else {
                continue;
            };
            let body: Vec<Instruction> = self.machine.decode(unnamed, *end);
            let decoded = body.last().map_or(*end, Instruction::end);
            if decoded.checked_sub(*end) != Some(gap) {
                self.notes.push(format!("The code behind {symbol} was decoded up to {decoded:#x} only."));
            }
            self.targets.extend(body.iter().filter_map(|instruction| instruction.flow.target()));
            self.stretches.push(Stretch {
                function: UNNAMED.to_owned(),
                symbol: symbol.clone(),
                vaddr: *vaddr,
                reshaped: false,
                part: false,
                cold: false,
                code,
                body,
            });
        }
    }

    /// Hooks the entries of the public functions and, when they are known, of the `internals`.
    /// Those that are `unidentified` are reported as such elsewhere.
    pub fn entries(&mut self, internals: bool, unidentified: &[Unidentified], sysmalloc: Sysmalloc) {
        for function in function::ALL {
            let place = self.counted.iter().find(|(_, counted)| **counted == function).map(|(vaddr, _)| *vaddr);
            if let Some(vaddr) = place {
                self.entry_at(vaddr, Role::Call(function), function.arguments());
            }
        }
        if !internals {
            return;
        }
        for (name, role, arguments) in glibc::ENTRIES {
            let whole = |stretch: &&Stretch<'_>| stretch.function == name && !stretch.part && !stretch.cold;
            let usable = |stretch: &&Stretch<'_>| whole(stretch) && (!stretch.reshaped || arguments == 1);
            let mut places: Vec<u64> = self.stretches.iter().filter(usable).map(|stretch| stretch.vaddr).collect();
            if role == Role::Sysmalloc && (places.is_empty() || sysmalloc == Sysmalloc::AtItsComparison) {
                if self.comparisons() {
                    continue;
                }
                places.clear();
            }
            if places.is_empty() {
                if unidentified.iter().any(|function| function.name == name) {
                    continue;
                }
                let why = if self.stretches.iter().any(|stretch| whole(&stretch)) {
                    "this build passes it other arguments than its source says"
                } else if role == Role::Sysmalloc {
                    "this build inlines it, and where it compares the threshold was not found"
                } else {
                    "this build inlines it: it has no symbol of its own"
                };
                self.lack(Depth::of(role), name, why);
            }
            for vaddr in places {
                self.entry_at(vaddr, role, arguments);
            }
        }
    }

    /// Hooks what stands for the entry of a `sysmalloc` that is a part of `_int_malloc`; false where nothing does.
    fn comparisons(&mut self) -> bool {
        let Some(threshold) = self.mp.and_then(|mp| mp.vaddr.checked_add(MP_MMAP_THRESHOLD.into())) else {
            return false;
        };
        let mut found = Vec::new();
        let holds = |stretch: &&Stretch<'_>| matches!(stretch.function.as_str(), "_int_malloc" | "sysmalloc");
        for stretch in self.stretches.iter().filter(holds) {
            for place in compared(self.machine, stretch.code, &stretch.body, threshold, &self.targets) {
                found.push((stretch.symbol.clone(), place.vaddr.saturating_sub(stretch.vaddr), place));
            }
        }
        for (symbol, offset, place) in &found {
            let told = Told { word: Some(place.nb), pushed_bytes: 0 };
            self.hook(Role::Sysmalloc, symbol.clone(), *offset, place.vaddr, place.execution.clone(), told);
        }
        !found.is_empty()
    }

    fn entry_at(&mut self, vaddr: u64, role: Role, arguments: usize) {
        let stretch = self.stretches.iter().find(|stretch| stretch.vaddr == vaddr && stretch.function != UNNAMED);
        let site = stretch.and_then(|stretch| {
            let site =
                entry_site(self.machine, stretch.code, &stretch.body, Arguments::first(arguments), &self.targets)?;
            Some((stretch.symbol.clone(), site))
        });
        let Some((symbol, site)) = site else {
            let name = self.functions.get(&vaddr).map(|function| function.name.clone()).unwrap_or_default();
            self.lack(Depth::of(role), &name, "its code cannot be read");
            return;
        };
        self.hook(
            role,
            symbol,
            site.offset,
            site.vaddr,
            site.execution,
            Told { word: None, pushed_bytes: site.pushed_bytes },
        );
    }

    /// Hooks the branches to the public functions and, when the `internals` are known, into the kernel.
    pub fn branches(&mut self, internals: bool) {
        let out_of_line =
            OutOfLine { int_free: self.stretches.iter().any(|stretch| stretch.function.starts_with("_int_free")) };
        let linked = self.linked();
        let mut found = Vec::new();
        for stretch in &self.stretches {
            for instruction in &stretch.body {
                let Some(target) = self.destination(instruction.flow, &linked) else { continue };
                let role = match (self.counted.get(&target), self.wrappers.get(&target)) {
                    (Some(function), _) if !glibc::is_relay(&stretch.function) => Some(Role::Transfer(*function)),
                    (None, Some(wrapper)) if internals && stretch.function != UNNAMED => {
                        glibc::origin(&stretch.function, *wrapper, out_of_line)
                    }
                    _ => None,
                };
                let Some(role) = role else { continue };
                let offset = instruction.vaddr.saturating_sub(stretch.vaddr);
                let at = usize::try_from(offset).ok().and_then(|offset| stretch.code.get(offset..));
                let cost = execution(self.machine, instruction, at.unwrap_or_default());
                found.push((role, stretch.symbol.clone(), offset, instruction.vaddr, cost, instruction.flow));
            }
        }
        if internals {
            found.extend(self.through_morecore(out_of_line));
        }
        for (role, symbol, offset, vaddr, cost, flow) in found {
            if matches!(flow, Flow::Branch(_)) {
                // The probe fires before the branch is decided: it would also count the branches not taken.
                let why = "a conditional branch leads there, which a probe cannot tell taken from not taken";
                self.lack(Depth::of(role), &format!("{symbol}+{offset:#x}"), why);
            } else {
                self.hook(role, symbol, offset, vaddr, cost, Told::default());
            }
        }
        if internals {
            self.note_absent_origins();
        }
    }

    /// Growth and trimming up to glibc 2.33: calls through the pointer `__morecore`.
    fn through_morecore(&self, out_of_line: OutOfLine) -> Vec<(Role, String, u64, u64, Execution, Flow)> {
        let Some(morecore) = self.morecore.map(|pointer| Morecore::at(self.elf, pointer)) else { return Vec::new() };
        let mut found = Vec::new();
        for stretch in self.stretches.iter().filter(|stretch| stretch.function != UNNAMED) {
            let Some(role) = glibc::origin(&stretch.function, Wrapper::Break, out_of_line) else { continue };
            for vaddr in morecore.calls(self.machine, stretch.code, stretch.vaddr) {
                let Some(instruction) = stretch.body.iter().find(|instruction| instruction.vaddr == vaddr) else {
                    continue;
                };
                let offset = vaddr.saturating_sub(stretch.vaddr);
                let at = usize::try_from(offset).ok().and_then(|offset| stretch.code.get(offset..));
                let cost = execution(self.machine, instruction, at.unwrap_or_default());
                found.push((role, stretch.symbol.clone(), offset, vaddr, cost, instruction.flow));
            }
        }
        found
    }

    /// Slots of the linkage table that lead to a counted function or a wrapper of this file, and its address.
    fn linked(&mut self) -> BTreeMap<u64, u64> {
        let mut places = BTreeMap::new();
        for function in self.functions.values() {
            if self.counted.contains_key(&function.vaddr) || self.wrappers.contains_key(&function.vaddr) {
                places.extend(function.aliases.iter().map(|alias| (alias.as_str(), function.vaddr)));
                places.insert(&function.name, function.vaddr);
            }
        }
        match named_slots(self.elf, |name| places.contains_key(name)) {
            Ok(slots) => slots.into_iter().filter_map(|(slot, name)| Some((slot, *places.get(name)?))).collect(),
            Err(error) => {
                self.notes.push(format!("Branches through the linkage table were not followed: {error}."));
                BTreeMap::new()
            }
        }
    }

    /// Where a branch leads, also by way of the linkage table.
    fn destination(&self, flow: Flow, linked: &BTreeMap<u64, u64>) -> Option<u64> {
        let slot_of = |flow| match flow {
            Flow::Indirect { slot, .. } => slot.and_then(|slot| linked.get(&slot).copied()),
            _ => None,
        };
        let Some(target) = flow.target() else { return slot_of(flow) };
        if linked.is_empty() || self.functions.contains_key(&target) || !self.elf.is_code(target) {
            return Some(target);
        }
        let stub = self.elf.bytes_at(target, STUB_BYTES)?;
        slot_of_stub(self.machine, stub, target).and_then(|slot| linked.get(&slot).copied()).or(Some(target))
    }

    fn note_absent_origins(&mut self) {
        let has = |role| self.hooks.keys().any(|(_, _, known)| *known == role);
        let absent: Vec<_> = [
            (Role::MapChunk, "mapping of chunks"),
            (Role::MapHeap, "mapping of arena heaps"),
            (Role::UnmapChunk, "unmapping of chunks"),
            (Role::RemapChunk, "remapping of chunks"),
            (Role::Grow, "growth of the main heap"),
            (Role::Trim, "trimming of the main heap"),
        ]
        .into_iter()
        .filter(|(role, _)| !has(*role))
        .collect();
        for (role, what) in absent {
            let why = match role {
                Role::Grow | Role::Trim => "no branch to sbrk, nor a call through the pointer __morecore, was found",
                _ => "no direct branch to the system call's wrapper was found",
            };
            self.lack(Depth::Sysmalloc, what, why);
        }
    }

    fn hook(
        &mut self,
        role: Role,
        symbol: String,
        offset_in_symbol: u64,
        vaddr: u64,
        execution: Execution,
        Told { word, pushed_bytes }: Told,
    ) {
        let Some(file_offset) = self.elf.file_offset(vaddr) else { return };
        let depth = Depth::of(role);
        if self.hooks.len() >= HOOK_LIMIT {
            self.lack(depth, &symbol, "this file has more probes than any allocator needs");
            return;
        }
        let mut cookie = Cookie::new(role);
        let needs_mp = matches!(role, Role::Sysmalloc | Role::MunmapChunk | Role::MapChunk | Role::UnmapChunk);
        if needs_mp
            && let Some(mp) = self.mp
            && let Ok(distance) = i32::try_from(i128::from(mp.vaddr) - i128::from(vaddr))
        {
            cookie = cookie.with_mp(mp.layout, distance);
        }
        if let Some(word) = word {
            cookie = cookie.with_word(word);
        }
        let hook = Hook { role, symbol, offset_in_symbol, vaddr, file_offset, cookie, execution, pushed_bytes, depth };
        self.hooks.insert((depth, file_offset, role), hook);
    }

    fn lack(&mut self, depth: Depth, what: &str, why: &str) {
        if self.missing.len() < HOOK_LIMIT {
            self.missing.push(Missing { depth, what: what.to_owned(), why: why.to_owned() });
        }
    }

    /// The hooks, the functions looked at, and what is missing.
    pub fn finish(self) -> (Vec<Hook>, Vec<AllocatorFunction>, Vec<Missing>) {
        (self.hooks.into_values().collect(), self.functions.into_values().collect(), self.missing)
    }
}

/// The address a program that links against `name` reaches.
fn public(symbols: &[Symbol], name: &str) -> Option<u64> {
    let named = symbols.iter().filter(|symbol| symbol.name == name);
    // Local ones come last: a static position-independent executable has no other malloc.
    let best = named.min_by_key(|symbol| (symbol.binding, symbol.source != Source::Exports))?;
    Some(best.vaddr)
}

/// One function for each address, under its best name.
fn fold<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, symbols: &[Symbol]) -> BTreeMap<u64, AllocatorFunction> {
    let mut by_address: BTreeMap<u64, Vec<&Symbol>> = BTreeMap::new();
    for symbol in symbols.iter().filter(|symbol| elf.is_code(symbol.vaddr)) {
        by_address.entry(symbol.vaddr).or_default().push(symbol);
    }
    let mut functions = BTreeMap::new();
    for (vaddr, mut names) in by_address {
        names.sort_by_key(|symbol| (rank(&symbol.name), symbol.binding, symbol.source, symbol.name.clone()));
        let (Some(best), Some(file_offset)) = (names.first(), elf.file_offset(vaddr)) else { continue };
        let mut aliases: Vec<String> = names.iter().map(|symbol| symbol.name.clone()).collect();
        aliases.sort();
        aliases.dedup();
        aliases.retain(|alias| *alias != best.name);
        functions.insert(
            vaddr,
            AllocatorFunction {
                name: best.name.clone(),
                vaddr,
                size: names.iter().map(|symbol| symbol.size).max().unwrap_or(0),
                file_offset,
                aliases,
                source: best.source,
            },
        );
    }
    functions
}

/// Which of several names of one address is used: a counted function's, in its order, before any other known one.
fn rank(name: &str) -> usize {
    let base = Name::parse(name).base;
    let counted = function::ALL.iter().position(|function| function.name() == base);
    counted.unwrap_or(function::FUNCTIONS + usize::from(!glibc::is_wanted(base)))
}
