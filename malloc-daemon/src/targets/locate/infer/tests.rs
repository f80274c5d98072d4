//! What is told of a stripped libc in miniature, whose functions do as much as the rules ask for, and what is refused.

use malloc_common::depth::Depth;
use malloc_common::site::{ArenaLayout, MpLayout, PtRegsWord, Role};
use object::elf;
use proptest::prelude::*;

use crate::targets::decode::{Emulation, Execution};
use crate::targets::fixture::{BASE, File, Function, Symtab, Visibility, branch, libc, note};
use crate::targets::locate::{Located, locate};
use crate::targets::symbols::Source;

const TEXT: u64 = BASE + 0x200;
/// Where `next` and `attached_threads` lie in an arena of glibc 2.36.
const NEXT: u64 = 2160;
const ATTACHED: usize = 2176;
/// Where fields lie in `mp_` of glibc 2.36.
const THRESHOLD: u64 = 16;
const N_MMAPS: u64 = 60;
const N_MMAPS_MAX: u64 = 64;

/// Where the pointer `__morecore` lies, and the slot that holds its address.
const MORECORE: u64 = BASE + 0x18;
const MORECORE_SLOT: u64 = BASE + 0x20;

/// One piece of code.
#[derive(Clone, Copy)]
enum Op {
    Call(&'static str),
    Jump(&'static str),
    /// Reads the field of `mp_` at so many bytes.
    Read(u64),
    /// Compares the first argument with the threshold.
    Compare,
    /// Compares a register that is no argument with the threshold.
    CompareOther,
    /// Makes `main_arena` the first argument.
    MainArena,
    /// Calls through the pointer `__morecore`, which it reaches by way of its slot.
    Morecore,
    /// So many instructions that do nothing.
    Nops(usize),
}
use Op::{Call, Compare, CompareOther, Jump, MainArena, Morecore, Nops, Read};

type Row = (&'static str, Visibility, Vec<Op>);

fn rows() -> Vec<Row> {
    use Visibility::{Exported, Internal};
    let exported = |name, ops| (name, Exported, ops);
    let internal = |name, ops| (name, Internal, ops);
    vec![
        internal("munmap_chunk", vec![Read(N_MMAPS), Jump("munmap")]),
        internal("alloc_new_heap", vec![Call("mmap"), Call("munmap"), Call("mprotect")]),
        internal("new_heap", vec![Call("alloc_new_heap"), Call("alloc_new_heap")]),
        internal("sysmalloc_mmap", vec![Read(N_MMAPS), Call("mmap")]),
        internal("__glibc_morecore", vec![Call("sbrk")]),
        internal("systrim", vec![Call("__glibc_morecore"), Call("__glibc_morecore")]),
        internal("_int_free", vec![Call("systrim"), Call("munmap"), Call("madvise")]),
        internal(
            "sysmalloc",
            vec![
                Compare,
                Read(N_MMAPS_MAX),
                Call("sysmalloc_mmap"),
                Call("__glibc_morecore"),
                Call("new_heap"),
                Nops(200),
            ],
        ),
        internal("_int_malloc", vec![Call("sysmalloc"), Nops(1600)]),
        exported("malloc", vec![MainArena, Call("_int_malloc")]),
        exported("free", vec![Call("_int_free"), Jump("munmap_chunk")]),
        exported("realloc", vec![Call("_int_malloc"), Call("mremap"), Jump("free")]),
        exported("calloc", vec![Call("_int_malloc")]),
        exported("malloc_trim", vec![Call("systrim")]),
        exported("mmap", vec![Nops(1)]),
        exported("munmap", vec![Nops(1)]),
        exported("mremap", vec![Nops(1)]),
        exported("mprotect", vec![Nops(1)]),
        exported("madvise", vec![Nops(1)]),
        exported("sbrk", vec![Nops(1)]),
    ]
}

/// The rows with those of `name` changed.
fn with(name: &str, ops: Vec<Op>) -> Vec<Row> {
    let mut rows = rows();
    rows.iter_mut().find(|(known, ..)| *known == name).expect("a known name").2 = ops;
    rows
}

fn length(ops: &[Op]) -> u64 {
    let each = ops.iter().map(|op| match op {
        Call(_) | Jump(_) => 5,
        Read(_) => 6,
        Compare | CompareOther | MainArena => 7,
        Morecore => 9,
        Nops(count) => *count as u64,
    });
    each.sum::<u64>() + 1
}

/// The file: the data's addresses depend on the code's length alone, so they are read from a first draft.
fn file(rows: &[Row]) -> File {
    let draft = assemble(rows, 0, 0);
    let found = locate(&*draft.bytes(Symtab::Kept), None).expect("a libc");
    assemble(rows, found.mp.expect("mp_").vaddr, found.main_arena.expect("main_arena"))
}

fn assemble(rows: &[Row], mp: u64, main_arena: u64) -> File {
    let mut starts = Vec::new();
    let mut at = TEXT;
    for (name, visibility, ops) in rows {
        starts.push((*name, *visibility, at, length(ops)));
        at += length(ops).next_multiple_of(16);
    }
    let place = |name: &str| starts.iter().find(|(known, ..)| *known == name).expect("a known name").2;
    let mut text = Vec::new();
    for ((_, _, ops), (_, _, start, _)) in rows.iter().zip(&starts) {
        text.resize((start - TEXT) as usize, 0x90);
        for op in ops {
            let at = TEXT + text.len() as u64;
            text.extend(match op {
                Call(name) => branch(&[0xe8], at, place(name)),
                Jump(name) => branch(&[0xe9], at, place(name)),
                Read(field) => branch(&[0x8b, 0x05], at, mp + field),
                Compare => branch(&[0x48, 0x39, 0x3d], at, mp + THRESHOLD),
                CompareOther => branch(&[0x48, 0x39, 0x1d], at, mp + THRESHOLD),
                MainArena => branch(&[0x48, 0x8d, 0x3d], at, main_arena),
                Morecore => [branch(&[0x48, 0x8b, 0x05], at, MORECORE_SLOT), vec![0xff, 0x10]].concat(),
                Nops(count) => vec![0x90; *count],
            });
        }
        text.push(0xc3);
    }
    let mut arena = vec![0; 2200];
    arena[ATTACHED] = 1;
    let mini = libc();
    let mp_bytes = mini.objects.into_iter().find(|(name, _)| *name == "mp_").expect("mp_");
    let functions = starts.iter();
    File {
        text,
        functions: functions
            .map(|(name, visibility, vaddr, size)| Function {
                name,
                vaddr: *vaddr,
                size: *size,
                visibility: *visibility,
            })
            .collect(),
        objects: vec![mp_bytes, ("main_arena", arena)],
        relative: vec![(main_arena + NEXT, main_arena)],
        extra: vec![(".eh_frame", elf::SHT_PROGBITS, frames(&starts))],
        ..libc()
    }
}

/// One entry a function, with plain addresses.
fn frames(starts: &[(&str, Visibility, u64, u64)]) -> Vec<u8> {
    // Length 12, id 0, version 1, no augmentation, code by 1, data by -8, return address 16, padding.
    let mut table = vec![12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0, 0, 0];
    for (_, _, start, size) in starts {
        table.extend(20u32.to_le_bytes());
        table.extend((table.len() as u32).to_le_bytes());
        table.extend(start.to_le_bytes());
        table.extend(size.to_le_bytes());
    }
    table.extend([0; 4]);
    table
}

/// A libc in miniature whose internal functions have to be inferred.
pub fn stripped_miniature() -> Vec<u8> {
    file(&rows()).bytes(Symtab::Stripped)
}

fn told(rows: &[Row]) -> Located {
    locate(&*file(rows).bytes(Symtab::Stripped), None).expect("a libc")
}

fn places(located: &Located) -> Vec<(Role, u64, u64)> {
    located.hooks.iter().map(|hook| (hook.role, hook.file_offset, hook.cookie.0)).collect()
}

fn lacks(located: &Located) -> Vec<(&str, &str)> {
    located.missing.iter().map(|missing| (missing.what.as_str(), missing.why.as_str())).collect()
}

fn has(located: &Located, role: Role) -> bool {
    located.hooks.iter().any(|hook| hook.role == role)
}

#[test]
fn a_stripped_libc_gives_the_probes_that_its_symbols_give() {
    let named = locate(&*file(&rows()).bytes(Symtab::Kept), None).expect("a libc");
    let told = told(&rows());
    assert_eq!(lacks(&told), []);
    assert_eq!(places(&told), places(&named));
    assert_eq!((told.mp, told.main_arena), (named.mp, named.main_arena));
    assert_eq!((told.arena_layout, named.arena_layout), (ArenaLayout::From227, ArenaLayout::From227));
    assert_eq!(told.mp.map(|mp| mp.layout), Some(MpLayout::From235));
    assert_eq!((told.located_by, named.located_by), (Source::Inferred, Source::Symtab));
    let sources = |name: &str| told.functions.iter().find(|one| one.name == name).map(|one| one.source);
    assert_eq!((sources("sysmalloc"), sources("malloc")), (Some(Source::Inferred), Some(Source::Exports)));
}

#[test]
fn what_malloc_does_not_call_with_the_main_arena_is_not_int_malloc() {
    let told = told(&with("malloc", vec![Nops(7), Call("_int_malloc")]));
    assert_eq!(told.located_by, Source::Exports);
    assert!(told.hooks.iter().all(|hook| hook.depth == Depth::Call));
    assert!(lacks(&told).iter().all(|(_, why)| why.contains("malloc is not seen to call what fits its rule")));
    assert_eq!(told.missing.len(), 2);
}

#[test]
fn what_compares_something_else_with_the_threshold_is_not_sysmalloc() {
    let mut ops = rows().into_iter().find(|(name, ..)| *name == "sysmalloc").expect("sysmalloc").2;
    ops[0] = CompareOther;
    let told = told(&with("sysmalloc", ops));
    assert!(!has(&told, Role::Sysmalloc) && !has(&told, Role::MapChunk) && !has(&told, Role::Grow));
    assert!(has(&told, Role::Arena) && has(&told, Role::MunmapChunk));
    assert!(lacks(&told).iter().any(|(what, why)| *what == "sysmalloc" && why.contains("first argument")));
}

#[test]
fn of_two_functions_that_fit_one_rule_neither_is_taken() {
    let mut rows = with("free", vec![Call("_int_free"), Call("other"), Jump("munmap_chunk")]);
    rows.insert(0, ("other", Visibility::Internal, vec![Read(N_MMAPS), Jump("munmap")]));
    let told = told(&rows);
    assert!(!has(&told, Role::MunmapChunk));
    let why = "not identified in this stripped libc: 2 functions fit its rule";
    assert!(lacks(&told).contains(&("munmap_chunk", why)), "{:?}", lacks(&told));
}

#[test]
fn a_sysmalloc_that_is_a_part_of_int_malloc_is_told_as_inlined() {
    let ops = vec![
        CompareOther,
        Read(N_MMAPS_MAX),
        Call("sysmalloc_mmap"),
        Call("__glibc_morecore"),
        Call("new_heap"),
        Nops(1600),
    ];
    let mut rows = with("_int_malloc", ops);
    rows.retain(|(name, ..)| *name != "sysmalloc");
    let told = told(&rows);
    let hook = told.hooks.iter().find(|hook| hook.role == Role::Sysmalloc).expect("its comparison");
    // The comparison is followed by a read of mp_, a call takes the place of the branch.
    assert_eq!((hook.symbol.as_str(), hook.offset_in_symbol), ("_int_malloc", 7 + 6));
    assert_eq!(hook.cookie.word(), PtRegsWord::x86_64(3), "nb is in rbx");
    assert_eq!(hook.execution, Execution::Emulated(Emulation::Call));
    assert!(hook.cookie.mp(hook.vaddr).is_some());
    assert!(has(&told, Role::MapChunk) && has(&told, Role::Grow) && has(&told, Role::Trim));
    assert_eq!(lacks(&told), []);
    let named = locate(&*file(&rows).bytes(Symtab::Kept), None).expect("a libc");
    assert_eq!(places(&named), places(&told), "symbols say as little of it");
    assert!(told.notes.iter().any(|note| note.contains("compares the threshold at 0x")), "{:?}", told.notes);
}

#[test]
fn an_arena_that_fits_twice_is_none() {
    let mut file = file(&rows());
    let main_arena = file.relative[0].1;
    file.objects.push(("twin", file.objects[1].1.clone()));
    // 2200 bytes are a multiple of the eight that objects are laid out by.
    file.relative.push((main_arena + 2200 + NEXT, main_arena + 2200));
    let told = locate(&*file.bytes(Symtab::Stripped), None).expect("a libc");
    assert_eq!(told.main_arena, None);
    assert_eq!(told.located_by, Source::Exports);
    assert!(lacks(&told).iter().all(|(_, why)| why.contains("main_arena is not known: 2 places fit")));
}

#[test]
fn growth_through_a_pointer_is_probed_with_symbols_and_without() {
    let mut rows = with("systrim", vec![Morecore, Morecore]);
    let ops = vec![Compare, Read(N_MMAPS_MAX), Call("sysmalloc_mmap"), Morecore, Call("new_heap"), Nops(200)];
    rows.iter_mut().find(|(name, ..)| *name == "sysmalloc").expect("sysmalloc").2 = ops;
    rows.retain(|(name, ..)| *name != "__glibc_morecore");
    let mut file = file(&rows);
    let functions = &mut file.functions;
    functions.push(Function { name: "__morecore", vaddr: MORECORE, size: 8, visibility: Visibility::Exported });
    file.slots = vec![(MORECORE_SLOT, "__morecore")];
    let told = locate(&*file.bytes(Symtab::Stripped), None).expect("a libc");
    let named = locate(&*file.bytes(Symtab::Kept), None).expect("a libc");
    assert_eq!((lacks(&told), lacks(&named)), (Vec::new(), Vec::new()));
    assert_eq!(places(&told), places(&named));
    let stepped = |role| {
        let of_role = told.hooks.iter().filter(move |hook| hook.role == role);
        of_role.map(|hook| (hook.symbol.as_str(), hook.execution.clone())).collect::<Vec<_>>()
    };
    let call = Execution::SingleStepped("call".into());
    assert_eq!(stepped(Role::Grow), [("sysmalloc", call.clone())]);
    assert_eq!(stepped(Role::Trim), [("systrim", call.clone()), ("systrim", call)]);
}

#[test]
fn a_static_probe_bears_a_function_out_or_contradicts_it() {
    let with_probe_in = |name: &str| {
        let mut file = file(&rows());
        let place = file.functions.iter().find(|function| function.name == name).expect("a known name").vaddr;
        file.extra.push((".note.stapsdt", elf::SHT_NOTE, note(place + 2, "libc\0memory_sbrk_more\08@%rax\0")));
        locate(&*file.bytes(Symtab::Stripped), None).expect("a libc")
    };
    let borne_out = with_probe_in("sysmalloc");
    let source = borne_out.functions.iter().find(|one| one.name == "sysmalloc").map(|one| one.source);
    assert_eq!((source, borne_out.usdt.len()), (Some(Source::Usdt), 1));
    let contradicted = with_probe_in("systrim");
    assert!(!has(&contradicted, Role::Sysmalloc) && !has(&contradicted, Role::MapChunk));
    assert!(lacks(&contradicted).iter().any(|(what, why)| *what == "sysmalloc" && why.contains("contradict")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_damage_makes_the_inference_panic_or_name_code_outside_the_file(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(&rows()).bytes(Symtab::Stripped);
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(found) = locate(&*bytes, None) {
            prop_assert!(found.hooks.iter().all(|hook| hook.file_offset < bytes.len() as u64));
        }
    }
}
