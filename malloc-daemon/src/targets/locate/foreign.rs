//! Finds the probes of allocators other than glibc's: entries of their public functions and the branches between them.

use std::collections::{BTreeMap, BTreeSet};

use malloc_common::depth::Depth;
use malloc_common::function::{self, Function};
use malloc_common::site::{Cookie, Role};
use object::LittleEndian as LE;
use object::elf::{self, SectionHeader64};
use object::read::ReadRef;

use super::tables::{self, Family, JEMALLOC_PREFIXES, MULTIPLYING};
use super::{AllocatorFunction, HOOK_LIMIT, Hook, Located, Missing};
use crate::targets::decode::{Arguments, BODY_LIMIT, Flow, Instruction, Machine};
use crate::targets::elf::{BuildId, Elf, ElfError};
use crate::targets::sites::{entry_site, execution};
use crate::targets::slots::{STUB_BYTES, named_slots, slot_of_stub};
use crate::targets::symbols::{self, Name, Source, Symbol, Table};

/// The most code of an allocator's library that is decoded: jemalloc, the largest seen, has 600 KiB.
const SWEEP_LIMIT: u64 = 4 << 20;
/// How much of a function is decoded whose size no table tells.
const UNSIZED_BYTES: u64 = 64;
/// The most text that is searched for a version.
const TEXT_LIMIT: u64 = 16 << 20;

/// A family whose functions a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recognised {
    family: Family,
    /// What stands before its names.
    prefix: &'static str,
}

/// What allocator other than glibc's a file holds.
///
/// # Errors
/// When its symbol tables cannot be read.
pub fn recognise<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Option<Recognised>, ElfError> {
    const MARKS: [&str; 12] = [
        "malloc",
        "free",
        "mallocx",
        "_rjem_malloc",
        "_rjem_mallocx",
        "je_malloc",
        "je_mallocx",
        "tc_malloc",
        "mi_malloc",
        "mi_malloc_aligned",
        "mi_free",
        "__libc_malloc_impl",
    ];
    for table in [Table::Exported, Table::Full] {
        let found = symbols::read_named(elf, table, Source::Exports, &MARKS)?.unwrap_or_default();
        let has = |name: &str| found.iter().any(|symbol| symbol.name == name && elf.is_code(symbol.vaddr));
        let of = |family, prefix| Ok(Some(Recognised { family, prefix }));
        if has("tc_malloc") && has("malloc") {
            return of(Family::Tcmalloc, "");
        }
        // Of a library that is linked into a program only what it calls is left: in Rust's the aligned function.
        if (has("mi_malloc") || has("mi_malloc_aligned")) && has("mi_free") {
            return of(Family::Mimalloc, "");
        }
        for prefix in JEMALLOC_PREFIXES {
            if has(&format!("{prefix}malloc")) && has(&format!("{prefix}mallocx")) {
                return of(Family::Jemalloc, prefix);
            }
        }
        let is_musl = || {
            has("__libc_malloc_impl")
                || text(elf).is_some_and(|text| memchr::memmem::find(text, b"musl libc (").is_some())
        };
        if has("malloc") && has("free") && is_musl() {
            return of(Family::Musl, "");
        }
    }
    Ok(None)
}

/// The probes of a file that holds an allocator other than glibc's; `None` for every other file.
///
/// # Errors
/// When its tables cannot be read.
pub fn locate<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    build_id: Option<&BuildId>,
) -> Result<Option<Located>, ElfError> {
    let Some(recognised) = recognise(elf)? else { return Ok(None) };
    let symbols = gather(elf, recognised)?;
    let Some(mut code) = Code::new(elf, machine, recognised, &symbols)? else { return Ok(None) };
    code.relays();
    code.entries();
    code.branches();
    let Recognised { family, prefix } = recognised;
    let Code { hooks, functions, mut missing, relays, .. } = code;
    for (depth, what, why) in [
        (Depth::Arena, "arena", format!("{} has no _int_malloc", family.name())),
        (Depth::Sysmalloc, "slow path", format!("{} has no sysmalloc", family.name())),
    ] {
        missing.push(Missing { depth, what: what.to_owned(), why });
    }
    let mut notes = Vec::new();
    if !prefix.is_empty() {
        notes.push(format!(
            "Its functions are named {prefix}malloc and so on: the program uses the C library's malloc beside it."
        ));
    }
    if !relays.is_empty() {
        let names: Vec<&str> = relays.values().map(|(_, name)| name.as_str()).collect();
        notes.push(format!("Counted where they jump to: {}.", names.join(", ")));
    }
    missing.sort_by(|a, b| (a.depth, &a.what).cmp(&(b.depth, &b.what)));
    let by_symtab = functions.values().any(|function| function.source == Source::Symtab);
    Ok(Some(Located {
        kind: family.kind(version(elf, machine, family, &symbols)),
        build_id: build_id.cloned(),
        machine: elf.machine(),
        hooks: hooks.into_values().collect(),
        functions: functions.into_values().collect(),
        objects: Vec::new(),
        mp: None,
        main_arena: None,
        arena_layout: malloc_common::site::ArenaLayout::Unknown,
        usdt: Vec::new(),
        located_by: if by_symtab { Source::Symtab } else { Source::Exports },
        missing,
        notes,
    }))
}

/// The names by which a file's functions are counted, those folded into another included: by function.
#[must_use]
pub fn folded(located: &Located) -> Vec<(String, Vec<String>)> {
    let Some(family) = located.kind.family() else { return Vec::new() };
    let mut folded: BTreeMap<Function, BTreeSet<String>> = BTreeMap::new();
    for known in &located.functions {
        for name in std::iter::once(&known.name).chain(&known.aliases) {
            let function = JEMALLOC_PREFIXES.iter().find_map(|prefix| family.meaning(name, prefix));
            if let Some(function) = function {
                folded.entry(function).or_default().extend(tables::folded_name(name, function));
            }
        }
    }
    let lists = folded.into_iter().filter(|(_, names)| !names.is_empty());
    lists.map(|(function, names)| (function.name().to_owned(), names.into_iter().collect())).collect()
}

fn text<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<&'data [u8]> {
    elf.bytes_within(elf.section(b".rodata")?, TEXT_LIMIT).ok()
}

fn gather<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, r: Recognised) -> Result<Vec<Symbol>, ElfError> {
    let wanted =
        |name: &str| r.family.meaning(name, r.prefix).is_some() || MULTIPLYING.contains(&name) || name == "mi_version";
    let mut all = symbols::read(elf, Table::Exported, Source::Exports, wanted)?.unwrap_or_default();
    // The full table names the same exports again.
    let seen: BTreeSet<(String, u64)> = all.iter().map(|symbol| (symbol.name.clone(), symbol.vaddr)).collect();
    let full = symbols::read(elf, Table::Full, Source::Symtab, wanted)?.unwrap_or_default();
    all.extend(full.into_iter().filter(|symbol| !seen.contains(&(symbol.name.clone(), symbol.vaddr))));
    all.retain(|symbol| elf.is_code(symbol.vaddr));
    Ok(all)
}

/// Decoded code, in one piece.
struct Stretch<'data> {
    vaddr: u64,
    code: &'data [u8],
    body: Vec<Instruction>,
}

struct Code<'a, 'data, R> {
    elf: &'a Elf<'data, R>,
    machine: Machine,
    functions: BTreeMap<u64, AllocatorFunction>,
    /// As what each entry counts.
    entries: BTreeMap<u64, Function>,
    bodies: BTreeMap<u64, Stretch<'data>>,
    /// Where branches to the entries are looked for.
    stretches: Vec<Stretch<'data>>,
    /// Entries that do nothing but jump to another of the same meaning: which one, and the name.
    relays: BTreeMap<u64, (u64, String)>,
    /// Functions that hand their call to a counted one, which is where it counts.
    multiplying: Vec<(u64, u64)>,
    targets: BTreeSet<u64>,
    slots: BTreeMap<u64, u64>,
    hooks: BTreeMap<(Depth, u64, Role), Hook>,
    missing: Vec<Missing>,
}

impl<'a, 'data, R: ReadRef<'data>> Code<'a, 'data, R> {
    fn new(
        elf: &'a Elf<'data, R>,
        machine: Machine,
        r: Recognised,
        symbols: &[Symbol],
    ) -> Result<Option<Self>, ElfError> {
        let mut exports = symbols.iter().filter(|symbol| symbol.source == Source::Exports).peekable();
        // A static program has no interpreter either, and exports nothing.
        let is_library = elf.interpreter().is_none()
            && exports.peek().is_some()
            && (exports.any(|symbol| symbol.name == "malloc") || exports_nothing_else(elf, r)?);
        let mut by_address: BTreeMap<u64, Vec<(&Symbol, Function)>> = BTreeMap::new();
        let mut cold = Vec::new();
        for symbol in symbols {
            let name = Name::parse(&symbol.name);
            let Some(function) = r.family.meaning(name.base, r.prefix) else { continue };
            if name.cold || name.part {
                cold.push(symbol);
            // An executable's operators may be anybody's: those that the allocator serves have another name of its own.
            } else if tables::operator(name.base).is_none() || is_library {
                by_address.entry(symbol.vaddr).or_default().push((symbol, function));
            }
        }
        let mut entries = BTreeMap::new();
        let mut functions = BTreeMap::new();
        for (vaddr, mut named) in by_address {
            named.sort_by_key(|(symbol, function)| (rank(&symbol.name, r.prefix), *function, symbol.name.clone()));
            let (Some((best, function)), Some(file_offset)) = (named.first(), elf.file_offset(vaddr)) else { continue };
            let mut aliases: Vec<String> = symbols
                .iter()
                .filter(|symbol| symbol.vaddr == vaddr && symbol.name != best.name)
                .map(|symbol| symbol.name.clone())
                .collect();
            aliases.sort();
            aliases.dedup();
            let size = named.iter().map(|(symbol, _)| symbol.size).max().unwrap_or(0);
            let known =
                AllocatorFunction { name: best.name.clone(), vaddr, size, file_offset, aliases, source: best.source };
            entries.insert(vaddr, *function);
            functions.insert(vaddr, known);
        }
        let used = entries.values().any(|function| *function == Function::Malloc);
        if !used || !entries.values().any(|function| *function == Function::Free) {
            return Ok(None);
        }
        let slots = slots(elf, &functions)?;
        let mut missing = Vec::new();
        let multiplying = symbols.iter().filter(|s| MULTIPLYING.contains(&s.name.as_str()));
        let multiplying: Vec<_> = multiplying.map(|s| (s.vaddr, s.vaddr.saturating_add(s.size))).collect();
        if r.family == Family::Mimalloc {
            let why = "mimalloc multiplies its arguments inside and enters no counted function: it is not counted";
            missing.push(Missing { depth: Depth::Call, what: "reallocarray".to_owned(), why: why.to_owned() });
        }
        let mut code = Self {
            elf,
            machine,
            bodies: BTreeMap::new(),
            stretches: Vec::new(),
            relays: BTreeMap::new(),
            multiplying,
            targets: BTreeSet::new(),
            slots,
            hooks: BTreeMap::new(),
            missing,
            functions,
            entries,
        };
        let internals = match is_library {
            true => Vec::new(),
            false => symbols::read(elf, Table::Full, Source::Symtab, |name| r.family.owns(name, r.prefix))?
                .unwrap_or_default(),
        };
        let inner: Vec<&Symbol> = cold.into_iter().chain(&internals).filter(|s| elf.is_code(s.vaddr)).collect();
        code.decode(is_library && r.family != Family::Musl, &inner);
        Ok(Some(code))
    }

    /// Decodes the entries' bodies and, of an allocator's own library, all code: what it calls of itself anywhere is not
    /// the program's. musl's library is a whole C library, whose `strdup` calls `malloc` for the program. Of a program
    /// that holds an allocator those functions are decoded that its names tell as the allocator's: `inner`.
    fn decode(&mut self, is_allocators_own: bool, inner: &[&Symbol]) {
        let (elf, machine) = (self.elf, self.machine);
        let stretch = |vaddr: u64, size: u64| {
            let code = elf.bytes_at(vaddr, size)?;
            let body = machine.decode(code, vaddr);
            Some(Stretch { vaddr, code, body })
        };
        for (vaddr, function) in &self.functions {
            let size = if function.size == 0 { UNSIZED_BYTES } else { function.size.min(BODY_LIMIT) };
            self.bodies.extend(stretch(*vaddr, size).map(|stretch| (*vaddr, stretch)));
        }
        if is_allocators_own {
            let mut left = SWEEP_LIMIT;
            // gperftools has its public functions in a section of their own.
            for section in elf.sections().iter().filter(|section| is_swept(elf, section)) {
                let (start, size) = (section.sh_addr.get(LE), section.sh_size.get(LE).min(left));
                left = left.saturating_sub(size);
                let end = start.saturating_add(size);
                // From function to function: padding between two may hide where the next begins.
                let mut at = start;
                let within = self.functions.range(start..end).map(|(vaddr, _)| *vaddr).filter(|vaddr| *vaddr > start);
                for end in within.chain([end]).collect::<Vec<_>>() {
                    self.stretches.extend(stretch(at, end.saturating_sub(at)));
                    at = end;
                }
            }
        } else {
            for (vaddr, function) in &self.functions {
                let size = if function.size == 0 { UNSIZED_BYTES } else { function.size.min(BODY_LIMIT) };
                self.stretches.extend(stretch(*vaddr, size));
            }
            let mut left = SWEEP_LIMIT;
            let inner: BTreeMap<u64, u64> = inner.iter().map(|symbol| (symbol.vaddr, symbol.size)).collect();
            for (vaddr, size) in inner.into_iter().filter(|(vaddr, _)| !self.functions.contains_key(vaddr)) {
                let size = size.min(BODY_LIMIT).min(left);
                left -= size;
                self.stretches.extend(stretch(vaddr, size));
            }
        }
        let all = self.stretches.iter().flat_map(|stretch| &stretch.body);
        self.targets = all.filter_map(|instruction| instruction.flow.target()).collect();
    }

    /// Where a branch leads, also by way of the linkage table.
    fn destination(&self, flow: Flow) -> Option<u64> {
        let by_slot = |flow| match flow {
            Flow::Indirect { slot, .. } => slot.and_then(|slot| self.slots.get(&slot).copied()),
            _ => None,
        };
        let Some(target) = flow.target() else { return by_slot(flow) };
        if self.entries.contains_key(&target) || self.slots.is_empty() || !self.elf.is_code(target) {
            return Some(target);
        }
        let stub = self.elf.bytes_at(target, STUB_BYTES)?;
        slot_of_stub(self.machine, stub, target).and_then(|slot| self.slots.get(&slot).copied()).or(Some(target))
    }

    /// Tells the entries that only jump to another one, with all arguments as they came: the other is probed alone.
    fn relays(&mut self) {
        for (vaddr, function) in &self.entries {
            let Some(stretch) = self.bodies.get(vaddr) else { continue };
            let Some(leaving) = stretch.body.iter().find(|i| i.flow != Flow::Next || i.writes != Arguments(0)) else {
                continue;
            };
            let jumps = matches!(leaving.flow, Flow::Jump(_) | Flow::Indirect { call: false, .. });
            let Some(to) = self.destination(leaving.flow).filter(|_| jumps) else { continue };
            if to != *vaddr && self.entries.get(&to) == Some(function) {
                let name = self.functions.get(vaddr).map(|function| function.name.clone()).unwrap_or_default();
                self.relays.insert(*vaddr, (to, name));
            }
        }
    }

    fn entries(&mut self) {
        let wanted: Vec<(u64, Function)> =
            self.entries.iter().filter(|(vaddr, _)| !self.relays.contains_key(vaddr)).map(|(v, f)| (*v, *f)).collect();
        for (vaddr, function) in wanted {
            let name = self.functions.get(&vaddr).map(|function| function.name.clone()).unwrap_or_default();
            let site = self.bodies.get(&vaddr).and_then(|stretch| {
                let arguments = Arguments::first(function.arguments());
                entry_site(self.machine, stretch.code, &stretch.body, arguments, &self.targets)
            });
            let Some(site) = site else {
                self.lack(&name, "its code cannot be read");
                continue;
            };
            let hook = (Role::Call(function), site.vaddr, site.execution);
            self.hook(hook, name, site.offset, site.pushed_bytes);
        }
    }

    /// Hooks the branches to the entries: what the allocator calls of itself is not the program's.
    fn branches(&mut self) {
        let mut found = Vec::new();
        let outside = self.relays.keys().filter_map(|vaddr| self.functions.get(vaddr)).map(|f| {
            let size = if f.size == 0 { UNSIZED_BYTES } else { f.size };
            (f.vaddr, f.vaddr.saturating_add(size))
        });
        let outside: Vec<(u64, u64)> = outside.chain(self.multiplying.iter().copied()).collect();
        for stretch in &self.stretches {
            for instruction in &stretch.body {
                let Some(function) = self.destination(instruction.flow).and_then(|to| self.entries.get(&to)) else {
                    continue;
                };
                if outside.iter().any(|(start, end)| (*start..*end).contains(&instruction.vaddr)) {
                    continue;
                }
                let offset = instruction.vaddr.saturating_sub(stretch.vaddr);
                let at = usize::try_from(offset).ok().and_then(|offset| stretch.code.get(offset..));
                found.push((*function, *instruction, execution(self.machine, instruction, at.unwrap_or_default())));
            }
        }
        for (function, instruction, cost) in found {
            let near = self.functions.range(..=instruction.vaddr).next_back();
            let (name, start) = near.map_or((String::new(), 0), |(start, f)| (f.name.clone(), *start));
            let offset = instruction.vaddr.saturating_sub(start);
            if matches!(instruction.flow, Flow::Branch(_)) {
                // The probe fires before the branch is decided: it would also count the branches not taken.
                let why = "a conditional branch leads there, which a probe cannot tell taken from not taken";
                self.lack(&format!("{name}+{offset:#x}"), why);
            } else {
                self.hook((Role::Transfer(function), instruction.vaddr, cost), name, offset, 0);
            }
        }
    }

    fn hook(&mut self, at: (Role, u64, crate::targets::decode::Execution), symbol: String, offset: u64, pushed: u32) {
        let (role, vaddr, execution) = at;
        let Some(file_offset) = self.elf.file_offset(vaddr) else { return };
        if self.hooks.len() >= HOOK_LIMIT {
            self.lack(&symbol, "this file has more probes than any allocator needs");
            return;
        }
        let (depth, cookie) = (Depth::of(role), Cookie::new(role));
        let hook = Hook {
            role,
            symbol,
            offset_in_symbol: offset,
            vaddr,
            file_offset,
            cookie,
            execution,
            pushed_bytes: pushed,
            depth,
        };
        self.hooks.insert((depth, file_offset, role), hook);
    }

    fn lack(&mut self, what: &str, why: &str) {
        if self.missing.len() < HOOK_LIMIT {
            self.missing.push(Missing { depth: Depth::Call, what: what.to_owned(), why: why.to_owned() });
        }
    }
}

/// Whether all functions that a library exports are the allocator's, under names of its own. mimalloc has a weak
/// `std::get_new_handler` beside them, for programs that are not C++.
fn exports_nothing_else<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, r: Recognised) -> Result<bool, ElfError> {
    const NEW_HANDLER: &str = "_ZSt15get_new_handlerv";
    let is_other = |name: &str| !r.family.owns(name, r.prefix) && name != NEW_HANDLER;
    let others = symbols::read(elf, Table::Exported, Source::Exports, is_other)?;
    Ok(others.is_some_and(|others| !others.iter().any(|symbol| elf.is_code(symbol.vaddr))))
}

/// Whether a section holds code that the linker did not make up: a stub of the linkage table is no branch of its own.
fn is_swept<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, section: &SectionHeader64<LE>) -> bool {
    let linkage = [&b".plt"[..], b".plt.got", b".plt.sec"].into_iter().filter_map(|name| elf.section(name));
    section.sh_type.get(LE) == elf::SHT_PROGBITS
        && section.sh_flags.get(LE).contains(elf::SHF_EXECINSTR)
        && linkage.into_iter().all(|table| table.sh_addr.get(LE) != section.sh_addr.get(LE))
}

/// Slots of the linkage table that lead to an entry of this file, and its address.
fn slots<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    functions: &BTreeMap<u64, AllocatorFunction>,
) -> Result<BTreeMap<u64, u64>, ElfError> {
    let mut places: BTreeMap<&str, u64> = BTreeMap::new();
    for function in functions.values() {
        places.extend(function.aliases.iter().map(|alias| (alias.as_str(), function.vaddr)));
        places.insert(&function.name, function.vaddr);
    }
    let slots = named_slots(elf, |name| places.contains_key(name))?;
    Ok(slots.into_iter().filter_map(|(slot, name)| Some((slot, *places.get(name)?))).collect())
}

/// Which of several names of one address is used: malloc's family first, in its order.
fn rank(name: &str, prefix: &str) -> usize {
    let plain = name.strip_prefix(prefix).unwrap_or(name);
    function::ALL.iter().position(|function| function.name() == plain).unwrap_or(function::FUNCTIONS)
}

fn version<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    family: Family,
    symbols: &[Symbol],
) -> Option<String> {
    if family == Family::Mimalloc {
        let at = symbols.iter().find(|symbol| symbol.name == "mi_version")?.vaddr;
        return tables::mimalloc_version(returned(machine, elf.bytes_at(at, 16)?)?);
    }
    tables::version(family, text(elf)?)
}

/// The number that a function returns which does nothing else: a landing pad perhaps, a move, a return.
fn returned(machine: Machine, code: &[u8]) -> Option<u32> {
    match machine {
        Machine::X86_64 => {
            let code = code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(code);
            let [0xb8, a, b, c, d, 0xc3, ..] = code else { return None };
            Some(u32::from_le_bytes([*a, *b, *c, *d]))
        }
        Machine::Aarch64 => {
            const BTI_C: u32 = 0xd503_245f;
            const RET: u32 = 0xd65f_03c0;
            /// `movz w0, #number`, the number in bits 5 to 20.
            const MOVZ_W0: u32 = 0x5280_0000;
            let words: Vec<u32> = code.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let words = words.strip_prefix(&[BTI_C]).unwrap_or(&words);
            let [moved, RET, ..] = words else { return None };
            (moved & 0xffe0_001f == MOVZ_W0).then_some(moved >> 5 & 0xffff)
        }
    }
}
