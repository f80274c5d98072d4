//! Turns the bytes of a file that defines `malloc` into the list of its probes.

mod compared;
pub(crate) mod debug_data;
mod defined;
mod evidence;
mod foreign;
mod glibc;
pub(in crate::targets) mod infer;
mod kind;
mod scan;
mod stepped;
mod tables;
#[cfg(test)]
mod tests;
mod told;

#[cfg(test)]
pub(crate) use infer::tests::stripped_miniature;

use malloc_common::site::{ArenaLayout, Cookie, MpLayout, Role};
use object::read::ReadRef;

use super::decode::{Execution, Machine};
use super::elf::{BuildId, Elf, ElfError};
use super::symbols::{self, Source, Symbol, Table};
use super::usdt::{self, UsdtProbe};
use defined::{defines, kind, nameless};
pub use defined::{defines_malloc, hides_its_functions, is_known_allocator};
pub use evidence::{Evidence, evidence};
pub use foreign::folded;
pub use infer::{Check, INFERRED_NAMES, Inference, RULES, Unidentified};
pub use kind::AllocatorKind;
use malloc_common::depth::Depth;
use scan::{Scan, Sysmalloc};

/// The most probes one file is given: twice what any glibc seen needs.
pub const HOOK_LIMIT: usize = 256;

/// A function of the allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorFunction {
    /// Its name, as the table that told of it spells it.
    pub name: String,
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Its size in bytes; 0 when no table tells.
    pub size: u64,
    /// Where in the file its first byte lies.
    pub file_offset: u64,
    /// Other names of the same address.
    pub aliases: Vec<String>,
    /// Which table told of it.
    pub source: Source,
}

/// One of the allocator's variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorObject {
    /// Its name.
    pub name: String,
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Where in the file its first byte lies; `None`: it is not in the file.
    pub file_offset: Option<u64>,
    /// What told of it.
    pub source: Source,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it stands for.
    pub role: Role,
    /// The function the probed instruction lies in.
    pub symbol: String,
    /// The instruction's distance in bytes from that function's start.
    pub offset_in_symbol: u64,
    /// The instruction's address in the file's own numbering.
    pub vaddr: u64,
    /// Where in the file the instruction lies: what the kernel takes.
    pub file_offset: u64,
    /// What the probe hands its program: the role, and the way to `mp_` where the role needs it.
    pub cookie: Cookie,
    /// What a hit costs.
    pub execution: Execution,
    /// By how many bytes the stack pointer is lower than at the function's entry; 0 where the hook is a branch.
    pub pushed_bytes: u32,
    /// The first depth that needs the probe.
    pub depth: Depth,
}

/// Where the allocator keeps its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MallocPar {
    /// The address of `mp_` in the file's own numbering.
    pub vaddr: u64,
    /// How its fields lie.
    pub layout: MpLayout,
}

/// Something a depth needs and this file does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first depth that is incomplete without it.
    pub depth: Depth,
    /// What: a function's name or a few words.
    pub what: String,
    /// Why it is missing, in a clause.
    pub why: String,
}

/// What was found in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Whose allocator it is.
    pub kind: AllocatorKind,
    /// The file's build id.
    pub build_id: Option<BuildId>,
    /// `e_machine`
    pub machine: u16,
    /// The probes, by depth, then by place in the file.
    pub hooks: Vec<Hook>,
    /// The functions that were looked at, by address.
    pub functions: Vec<AllocatorFunction>,
    /// `mp_`, `main_arena` and, up to glibc 2.33, the pointer `__morecore`: those that were found.
    pub objects: Vec<AllocatorObject>,
    /// The allocator's parameters.
    pub mp: Option<MallocPar>,
    /// The address of `main_arena` in the file's own numbering.
    pub main_arena: Option<u64>,
    /// How the fields of an arena lie.
    pub arena_layout: ArenaLayout,
    /// The static probes of the allocator: `memory_*` of the provider `libc`.
    pub usdt: Vec<UsdtProbe>,
    /// What told of the internal functions.
    pub located_by: Source,
    /// What this file does not give.
    pub missing: Vec<Missing>,
    /// What else a reader should know, a sentence each.
    pub notes: Vec<String>,
}

impl Located {
    /// The allocator's version, where it is known.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.kind.version()
    }

    /// Of a file without an allocator.
    fn nothing<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, build_id: Option<BuildId>, why: &str) -> Self {
        Self {
            kind: AllocatorKind::Unknown,
            build_id,
            machine: elf.machine(),
            hooks: Vec::new(),
            functions: Vec::new(),
            objects: Vec::new(),
            mp: None,
            main_arena: None,
            arena_layout: ArenaLayout::Unknown,
            usdt: Vec::new(),
            located_by: Source::Exports,
            missing: vec![Missing { depth: Depth::Sysmalloc, what: "malloc".to_owned(), why: why.to_owned() }],
            notes: Vec::new(),
        }
    }
}

/// Finds the probes of `file`; `debug` is its separate debug file, taken only when the build ids agree.
///
/// A file that defines no `malloc` has no hooks and says so in `missing`.
///
/// # Errors
/// When the file is no ELF file of the machine this program runs on, or its tables cannot be read. An emulator maps files
/// of other machines, and a probe in one would overwrite what it interprets: [`analyse`] looks into those.
pub fn locate<'data, R: ReadRef<'data>>(file: R, debug: Option<R>) -> Result<Located, ElfError> {
    locate_knowing(file, debug, None).map(|(located, _)| located)
}

/// [`locate`], with what was inferred before of bytes of the same SHA-256, for which the caller answers: it is taken unless it
/// is implausible. Also what was inferred now.
///
/// # Errors
/// As [`locate`].
pub fn locate_knowing<'data, 'debug, R: ReadRef<'data>, D: ReadRef<'debug>>(
    file: R,
    debug: Option<D>,
    before: Option<&Inference>,
) -> Result<(Located, Option<Inference>), ElfError> {
    let machine = Elf::parse(file)?.machine();
    if Machine::HOST.is_none() || Machine::of(machine) != Machine::HOST {
        return Err(ElfError::UnsupportedMachine { machine });
    }
    analyse_knowing(file, debug, before)
}

/// [`locate`] for a file of any machine that is decoded; its hooks are to be shown and never attached.
///
/// # Errors
/// When the file is no ELF file of a supported kind, or its tables cannot be read.
pub fn analyse<'data, R: ReadRef<'data>>(file: R, debug: Option<R>) -> Result<Located, ElfError> {
    analyse_knowing(file, debug, None).map(|(located, _)| located)
}

/// [`analyse`] with `sysmalloc` hooked where it compares the threshold, as if every build made it a part of
/// `_int_malloc`: for holding these places against its entry where there is one.
///
/// # Errors
/// As [`analyse`].
pub fn analyse_at_comparison<'data, R: ReadRef<'data>>(file: R, debug: Option<R>) -> Result<Located, ElfError> {
    look(file, debug, None, Sysmalloc::AtItsComparison).map(|(located, _)| located)
}

/// [`analyse`], with what was inferred before of bytes of the same SHA-256, for which the caller answers: it is taken unless it
/// is implausible. Also what was inferred now.
///
/// # Errors
/// As [`analyse`].
pub fn analyse_knowing<'data, 'debug, R: ReadRef<'data>, D: ReadRef<'debug>>(
    file: R,
    debug: Option<D>,
    before: Option<&Inference>,
) -> Result<(Located, Option<Inference>), ElfError> {
    look(file, debug, before, Sysmalloc::AtItsEntry)
}

fn look<'data, 'debug, R: ReadRef<'data>, D: ReadRef<'debug>>(
    file: R,
    debug: Option<D>,
    before: Option<&Inference>,
    sysmalloc: Sysmalloc,
) -> Result<(Located, Option<Inference>), ElfError> {
    let elf = Elf::parse(file)?;
    let Some(machine) = Machine::of(elf.machine()) else {
        return Err(ElfError::UnsupportedMachine { machine: elf.machine() });
    };
    let build_id = elf.build_id();
    if let Some(located) = foreign::locate(&elf, machine, build_id.as_ref())? {
        return Ok((located, None));
    }
    let mut notes = Vec::new();
    let nameless = if defines(&elf)? {
        None
    } else {
        match nameless(&elf, machine)? {
            Ok(nameless) => Some(nameless),
            Err(why) => return Ok((Located::nothing(&elf, build_id, &why), None)),
        }
    };
    let mut found = match &nameless {
        Some(nameless) => Found::nameless(nameless),
        None => gather(&elf, build_id.as_ref(), debug, &mut notes)?,
    };
    let kind = match nameless {
        Some(_) => AllocatorKind::Glibc { version: None },
        None => kind(&elf, &found.symbols),
    };
    // What is kept from before names no public function.
    let before = before.filter(|_| nameless.is_none());
    let glibc = matches!(kind, AllocatorKind::Glibc { .. });
    let usdt = static_probes(&elf, &mut notes);
    let (inferred, made) =
        if glibc { complete(&elf, machine, &mut found, (&kind, &usdt), before) } else { (Inference::default(), None) };
    let made = made.filter(|_| nameless.is_none());
    if let Some(nameless) = &nameless
        && object_at(&found.symbols, "_int_malloc") != Some(nameless.int_malloc)
    {
        return Ok((Located::nothing(&elf, build_id, UNSURE), None));
    }
    let mp = malloc_par(&elf, &found.symbols);
    let main_arena = object_at(&found.symbols, "main_arena");
    let arena_layout = main_arena.map_or(ArenaLayout::Unknown, |vaddr| {
        infer::arena_layout(&elf, machine, vaddr).unwrap_or(ArenaLayout::Unknown)
    });
    notes.extend(inferred.notes.iter().cloned());
    let mut scan = Scan::new(&elf, machine, &found.symbols, mp, &mut notes);
    let named = found.internals_by != Source::Exports;
    if glibc {
        scan.sweep_unnamed();
    }
    scan.entries(glibc && named, &inferred.unidentified, sysmalloc);
    scan.branches(glibc && named);
    let (mut hooks, functions, mut missing) = scan.finish();
    let told = if glibc { told::hooks(&elf, machine, &usdt, mp) } else { told::Told::default() };
    if told::tell_of_raises(&told.hooks) {
        for hook in &mut hooks {
            hook.cookie = hook.cookie.with_raises_told();
        }
    }
    notes.extend(told.notes);
    hooks.extend(told.hooks);
    hooks.sort_by_key(|hook| (hook.depth, hook.file_offset, hook.role));
    if glibc
        && !named
        && let Some(why) = &found.why_no_internals
    {
        let told = inferred.unidentified.iter().find(|one| one.name == "_int_malloc");
        let why = told.map_or_else(|| why.clone(), |told| format!("{why}; nor does its code tell: {}", told.why));
        missing.push(Missing { depth: Depth::Arena, what: "_int_malloc".into(), why: why.clone() });
        missing.push(Missing { depth: Depth::Sysmalloc, what: "sysmalloc and the slow path".into(), why: why.clone() });
    }
    if named {
        missing.extend(inferred.unidentified.into_iter().map(|one| Missing {
            depth: if one.name == "_int_malloc" { Depth::Arena } else { Depth::Sysmalloc },
            what: one.name.into(),
            why: format!("not identified in this stripped libc: {}", one.why),
        }));
    }
    if !glibc {
        notes.push("Calls between public functions are seen only in those functions themselves.".into());
        let why = "this allocator is not glibc's: its internals are not known";
        for (depth, what) in [(Depth::Arena, "arena"), (Depth::Sysmalloc, "slow path")] {
            missing.push(Missing { depth, what: what.into(), why: why.into() });
        }
    }
    let lacking = nameless.into_iter().flat_map(|nameless| nameless.unidentified);
    missing.extend(lacking.map(|one| Missing {
        depth: Depth::Call,
        what: one.name.into(),
        why: format!("not identified in this program without symbols: {}", one.why),
    }));
    missing.sort_by(|a, b| (a.depth, &a.what).cmp(&(b.depth, &b.what)));
    let located = Located {
        kind,
        build_id,
        machine: elf.machine(),
        hooks,
        functions,
        objects: objects(&elf, &found.symbols),
        mp,
        main_arena,
        arena_layout,
        usdt,
        located_by: found.internals_by,
        missing,
        notes,
    };
    Ok((located, made))
}

fn static_probes<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, notes: &mut Vec<String>) -> Vec<UsdtProbe> {
    let mut probes = usdt::read(elf).unwrap_or_else(|error| {
        notes.push(format!("The static probes were not read: {error}."));
        Vec::new()
    });
    probes.retain(|probe| probe.provider == "libc" && probe.name.starts_with("memory_"));
    probes
}

/// Adds to the symbols what no table tells and the code itself does; also the inference, where it was made anew.
fn complete<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    machine: Machine,
    found: &mut Found,
    (kind, usdt): (&AllocatorKind, &[UsdtProbe]),
    before: Option<&Inference>,
) -> (Inference, Option<Inference>) {
    let functions = found.internals_by == Source::Exports;
    let before = before.filter(|before| functions && infer::plausible(elf, machine, before));
    let anew = before.is_none();
    let mut inferred = match before {
        Some(before) => before.clone(),
        None => infer::infer(elf, machine, &found.symbols, usdt, kind.version(), functions),
    };
    let made = (anew && functions).then(|| inferred.clone());
    found.symbols.append(&mut inferred.symbols);
    if functions && found.symbols.iter().any(|symbol| symbol.name == "_int_malloc") {
        found.internals_by = Source::Inferred;
    }
    (inferred, made)
}

/// Where two ways to tell `_int_malloc` differ.
const UNSURE: &str =
    "it is a static program without symbols, and what calls _int_malloc does not fit what has its texts";

struct Found {
    symbols: Vec<Symbol>,
    internals_by: Source,
    why_no_internals: Option<String>,
}

impl Found {
    fn nameless(nameless: &infer::Nameless) -> Self {
        let why = Some("this program is stripped".to_owned());
        Self { symbols: nameless.symbols.clone(), internals_by: Source::Exports, why_no_internals: why }
    }
}

/// The exported symbols, and the internal ones from the nearest table that has them.
fn gather<'data, 'debug, R: ReadRef<'data>, D: ReadRef<'debug>>(
    elf: &Elf<'data, R>,
    build_id: Option<&BuildId>,
    debug: Option<D>,
    notes: &mut Vec<String>,
) -> Result<Found, ElfError> {
    let mut symbols = symbols::read(elf, Table::Exported, Source::Exports, glibc::is_wanted)?.unwrap_or_default();
    let mut lacking = Vec::new();
    let mut found = |table: Vec<Symbol>, source| {
        let table = glibc::without_strangers(table);
        let internals =
            table.iter().any(|symbol| symbol.name == "main_arena" || symbol.name.starts_with("_int_malloc"));
        symbols.extend(table);
        internals.then_some(source)
    };
    let mut internals_by = None;
    match symbols::read(elf, Table::Full, Source::Symtab, glibc::is_wanted) {
        Err(error) => lacking.push(format!("unusable .symtab ({error})")),
        Ok(None) => lacking.push("no .symtab".to_owned()),
        Ok(Some(table)) => {
            internals_by = found(table, Source::Symtab);
            if internals_by.is_none() {
                lacking.push("nothing of malloc in .symtab".to_owned());
            }
        }
    }
    if internals_by.is_none() {
        match debug_data::symbols(elf, glibc::is_wanted) {
            None => lacking.push("no .gnu_debugdata".to_owned()),
            Some(Ok(table)) => {
                internals_by = found(table, Source::DebugData);
                if internals_by.is_none() {
                    lacking.push("nothing of malloc in .gnu_debugdata".to_owned());
                }
            }
            Some(Err(error)) => lacking.push(format!("unusable .gnu_debugdata ({error})")),
        }
    }
    if internals_by.is_none() {
        match debug {
            None => lacking.push(match build_id {
                Some(id) => format!("no debug file for build id {id}"),
                None => "no build id to find a debug file by".to_owned(),
            }),
            Some(debug) => match debug_symbols(debug, build_id) {
                Ok(table) => {
                    internals_by = found(table, Source::DebugFile);
                    if internals_by.is_none() {
                        lacking.push("nothing of malloc in its debug file".to_owned());
                    }
                }
                Err(why) => {
                    notes.push(format!("The debug file was not used: {why}."));
                    lacking.push(why);
                }
            },
        }
    }
    let why = internals_by.is_none().then(|| format!("this libc is stripped: {}", lacking.join(", ")));
    Ok(Found { symbols, internals_by: internals_by.unwrap_or(Source::Exports), why_no_internals: why })
}

fn debug_symbols<'data, R: ReadRef<'data>>(debug: R, build_id: Option<&BuildId>) -> Result<Vec<Symbol>, String> {
    let debug = Elf::parse(debug).map_err(|error| format!("its debug file is unusable: {error}"))?;
    match (build_id, debug.build_id()) {
        (Some(ours), Some(theirs)) if *ours == theirs => {}
        (Some(ours), Some(theirs)) => {
            return Err(format!("its debug file is of build id {theirs}, not {ours}"));
        }
        _ => return Err("its debug file cannot be checked without a build id".into()),
    }
    symbols::read(&debug, Table::Full, Source::DebugFile, glibc::is_wanted)
        .map_err(|error| format!("its debug file is unusable: {error}"))
        .map(Option::unwrap_or_default)
}

fn malloc_par<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, symbols: &[Symbol]) -> Option<MallocPar> {
    let vaddr = object_at(symbols, "mp_")?;
    Some(MallocPar { vaddr, layout: infer::mp_layout(elf, vaddr) })
}

fn objects<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, symbols: &[Symbol]) -> Vec<AllocatorObject> {
    let object = |name: &str| {
        let vaddr = object_at(symbols, name)?;
        let source = symbols.iter().find(|symbol| symbol.name == name)?.source;
        Some(AllocatorObject { name: name.to_owned(), vaddr, file_offset: elf.file_offset(vaddr), source })
    };
    ["mp_", "main_arena", "__morecore"].into_iter().filter_map(object).collect()
}

/// The address of the one object of that name.
fn object_at(symbols: &[Symbol], name: &str) -> Option<u64> {
    let mut places = symbols.iter().filter(|symbol| symbol.name == name).map(|symbol| symbol.vaddr);
    let first = places.next()?;
    places.all(|vaddr| vaddr == first).then_some(first)
}
