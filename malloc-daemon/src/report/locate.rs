//! What `locate` found in one file: the document, as JSON and as text.

mod static_probes;
mod text;

use malloc_common::depth::Depth;
use malloc_common::site::{MpLayout, Role};
use serde::Serialize;

use super::json::{self, document::SCHEMA_VERSION};
use crate::targets::decode::{Emulation, Execution, Machine};
use crate::targets::elf::machine_name;
use crate::targets::locate::{AllocatorFunction, AllocatorObject, Evidence};
use crate::targets::{Hook, Located};

use static_probes::static_probe;
pub use static_probes::{StaticArgument, StaticProbe};
pub use text::text;

/// Depths that need probes in the file; `syscall` needs none.
const PROBED: [Depth; 3] = [Depth::Sysmalloc, Depth::Arena, Depth::Call];

/// What to do about a libc that does not name its internal functions.
pub const STRIPPED_REMEDY: &str =
    "Install the libc's debug symbols: libc6-dbg (Debian, Ubuntu), or `dnf debuginfo-install glibc` (Fedora).";

/// What was looked at, beside the content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The file, for people.
    pub path: String,
    /// The debug file that told of the internals.
    pub debug_file: Option<String>,
    /// The process whose allocator it is.
    pub process: Option<Process>,
}

/// The process that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// The name it chose for itself.
    pub comm: String,
    /// The path no longer leads to the file it maps.
    pub deleted: bool,
    /// Why this file and no other serves its `malloc`: a clause.
    pub why: String,
    /// What to add to an address of the file for the address in the process.
    pub load_bias: u64,
    /// Other files it maps that were looked at.
    pub other_files: Vec<OtherFile>,
}

/// A mapped file that does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherFile {
    /// The file.
    pub path: String,
    /// Why it does not serve: a clause.
    pub why: String,
}

/// `locate --json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// The file.
    pub path: String,
    /// `null` when a file was asked for.
    pub process: Option<Process>,
    /// No depth lacks anything.
    pub complete: bool,
    /// Whose allocator it is.
    pub allocator: Allocator,
    /// `x86_64` or `aarch64`
    pub machine: String,
    /// The file is of this machine's kind. What is shown of another is where the probes would go there.
    pub can_be_probed_here: bool,
    /// The allocator's parameters; `null`: not found.
    pub mp: Option<Mp>,
    /// Address of `main_arena` in the file's own numbering; `null`: not found.
    pub main_arena: Option<u64>,
    /// `mp_`, `main_arena` and, up to glibc 2.33, the pointer `__morecore`: those that were found.
    pub objects: Vec<Object>,
    /// What must be so if the names are right, and whether it is.
    pub checks: Vec<CrossCheck>,
    /// The allocator's functions, by address.
    pub functions: Vec<Function>,
    /// `sysmalloc`, `arena` and `call`: what each adds to those before it.
    pub depths: Vec<DepthProbes>,
    /// The static probes that the allocator was built with, whether a depth uses them or not.
    pub static_probes: Vec<StaticProbe>,
    /// What else a reader should know, a sentence each.
    pub notes: Vec<String>,
}

/// Whose allocator it is and how it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allocator {
    /// `glibc` or `unknown`
    pub kind: &'static str,
    /// `2.36`
    pub version: Option<String>,
    /// Hexadecimal.
    pub build_id: Option<String>,
    /// `symtab`, `debug_data`, `debug_file`, `usdt`, `inferred` or `exports`
    pub located_by: &'static str,
    /// The debug file that was used.
    pub debug_file: Option<String>,
}

/// `mp_`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mp {
    /// In the file's own numbering.
    pub address: u64,
    /// `glibc_2.23_to_2.34`, `glibc_2.35_to_2.42`, `glibc_2.43` or `unknown`
    pub layout: &'static str,
}

/// A variable of the allocator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Object {
    /// `mp_`, `main_arena` or `__morecore`
    pub name: String,
    /// In the file's own numbering.
    pub address: u64,
    /// Where in the file its first byte lies; `null`: it is not in the file.
    pub file_offset: Option<u64>,
    /// What told of it, as in `located_by`.
    pub source: &'static str,
}

/// One thing that was checked by the file itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CrossCheck {
    /// The function or object.
    pub of: String,
    /// What must be so: a clause.
    pub what: &'static str,
    /// Whether it is.
    pub holds: bool,
}

/// A function of the allocator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// As its table spells it.
    pub name: String,
    /// Other names of the same address.
    pub aliases: Vec<String>,
    /// In the file's own numbering.
    pub address: u64,
    /// `null`: no table tells.
    pub size_bytes: Option<u64>,
    /// Where in the file its first byte lies.
    pub file_offset: u64,
    /// The table that told of it, as in `located_by`.
    pub source: &'static str,
}

/// The probes that one depth adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DepthProbes {
    /// `sysmalloc`, `arena` or `call`
    pub depth: &'static str,
    /// It lacks nothing of its own.
    pub complete: bool,
    /// Its probes.
    pub hooks: Vec<Probe>,
    /// What it lacks.
    pub missing: Vec<Lack>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// What it stands for.
    pub role: &'static str,
    /// The public function, of the roles `call` and `transfer`.
    pub function: Option<&'static str>,
    /// The function the instruction lies in.
    pub symbol: String,
    /// Bytes from that function's start.
    pub offset_in_symbol: u64,
    /// In the file's own numbering.
    pub address: u64,
    /// Where in the file the instruction lies.
    pub file_offset: u64,
    /// `emulated`, or `single_stepped`, which is about ten times as dear.
    pub execution: &'static str,
    /// Its kind where it is emulated, else its mnemonic.
    pub instruction: String,
    /// The instruction as an assembler would take it.
    pub disassembly: String,
    /// Bytes from the instruction to `mp_`; `null`: the probe does not read it.
    pub mp_distance: Option<i64>,
}

/// Something a depth lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// A function's name or a few words.
    pub what: String,
    /// A clause.
    pub why: String,
}

/// The document as bytes that end with a newline.
#[must_use]
pub fn json(document: &Document) -> Vec<u8> {
    json::to_vec(document)
}

/// Puts the document together.
#[must_use]
pub fn document(subject: &Subject, located: &Located, evidence: &Evidence) -> Document {
    let checks = evidence.checks.iter();
    Document {
        schema_version: SCHEMA_VERSION,
        path: subject.path.clone(),
        process: subject.process.clone(),
        complete: located.missing.is_empty(),
        allocator: Allocator {
            kind: located.kind.name(),
            version: located.version().map(str::to_owned),
            build_id: located.build_id.as_ref().map(ToString::to_string),
            located_by: located.located_by.name(),
            debug_file: subject.debug_file.clone(),
        },
        machine: machine_name(located.machine),
        can_be_probed_here: Machine::of(located.machine) == Machine::HOST,
        mp: located.mp.map(|mp| Mp { address: mp.vaddr, layout: layout_name(mp.layout) }),
        main_arena: located.main_arena,
        objects: located.objects.iter().map(object).collect(),
        checks: checks.map(|check| CrossCheck { of: check.of.clone(), what: check.what, holds: check.holds }).collect(),
        functions: located.functions.iter().map(function).collect(),
        depths: PROBED.into_iter().map(|depth| depth_probes(depth, located, evidence)).collect(),
        static_probes: located.usdt.iter().map(static_probe).collect(),
        notes: located.notes.clone(),
    }
}

fn function(function: &AllocatorFunction) -> Function {
    Function {
        name: function.name.clone(),
        aliases: function.aliases.clone(),
        address: function.vaddr,
        size_bytes: Some(function.size).filter(|size| *size > 0),
        file_offset: function.file_offset,
        source: function.source.name(),
    }
}

fn object(object: &AllocatorObject) -> Object {
    Object {
        name: object.name.clone(),
        address: object.vaddr,
        file_offset: object.file_offset,
        source: object.source.name(),
    }
}

fn depth_probes(depth: Depth, located: &Located, evidence: &Evidence) -> DepthProbes {
    let lacks = located.missing.iter().filter(|missing| missing.depth == depth);
    let missing: Vec<Lack> = lacks.map(|lack| Lack { what: lack.what.clone(), why: lack.why.clone() }).collect();
    DepthProbes {
        depth: depth.name(),
        complete: missing.is_empty(),
        hooks: located
            .hooks
            .iter()
            .zip(evidence.instructions.iter().map(String::as_str).chain(std::iter::repeat("")))
            .filter(|(hook, _)| hook.depth == depth)
            .map(|(hook, disassembly)| probe(hook, disassembly))
            .collect(),
        missing,
    }
}

fn probe(hook: &Hook, disassembly: &str) -> Probe {
    let (role, function) = role_name(hook.role);
    let (execution, instruction) = match &hook.execution {
        Execution::Emulated(emulation) => ("emulated", emulation_name(*emulation).to_owned()),
        Execution::SingleStepped(mnemonic) => ("single_stepped", mnemonic.clone()),
    };
    Probe {
        role,
        function,
        symbol: hook.symbol.clone(),
        offset_in_symbol: hook.offset_in_symbol,
        address: hook.vaddr,
        file_offset: hook.file_offset,
        execution,
        instruction,
        disassembly: disassembly.to_owned(),
        // From address 0 the distance is the address; negative ones wrap.
        mp_distance: hook.cookie.mp(0).map(|(_, distance)| distance.cast_signed()),
    }
}

const fn role_name(role: Role) -> (&'static str, Option<&'static str>) {
    match role {
        Role::Call(function) => ("call", Some(function.name())),
        Role::Transfer(function) => ("transfer", Some(function.name())),
        Role::Arena => ("arena", None),
        Role::Sysmalloc => ("sysmalloc", None),
        Role::MunmapChunk => ("munmap_chunk", None),
        Role::Systrim => ("systrim", None),
        Role::NewHeap => ("new_heap", None),
        Role::MapChunk => ("map_chunk", None),
        Role::MapFallback => ("map_fallback", None),
        Role::MapHeap => ("map_heap", None),
        Role::UnmapChunk => ("unmap_chunk", None),
        Role::UnmapHeap => ("unmap_heap", None),
        Role::RemapChunk => ("remap_chunk", None),
        Role::Grow => ("grow", None),
        Role::Trim => ("trim", None),
        Role::Raise => ("raise", None),
        Role::Told(event) => (event.name(), None),
    }
}

const fn layout_name(layout: MpLayout) -> &'static str {
    match layout {
        MpLayout::Unknown => "unknown",
        MpLayout::Upto234 => "glibc_2.23_to_2.34",
        MpLayout::From235 => "glibc_2.35_to_2.42",
        MpLayout::From243 => "glibc_2.43",
    }
}

const fn emulation_name(emulation: Emulation) -> &'static str {
    match emulation {
        Emulation::Push => "push",
        Emulation::Nop => "nop",
        Emulation::Jmp => "jmp",
        Emulation::Jcc => "jcc",
        Emulation::Call => "call",
        Emulation::Adr => "adr",
        Emulation::Br => "br",
    }
}

#[cfg(test)]
mod tests;
