//! What is found in a libc in miniature, and that no file makes the search fail but by a value.

use std::io::Write as _;

use lzma_rust2::{XzOptions, XzWriter};
use malloc_common::function::Function as F;
use object::elf as raw;
use proptest::prelude::*;

use super::*;
use crate::targets::decode::Emulation;
use crate::targets::elf::{build_id, debug_link, interpreter};
use crate::targets::fixture::{File, Function, Symtab, Visibility, address, branch, libc};

fn located(file: &File, symtab: Symtab) -> Located {
    locate(&*file.bytes(symtab), None).expect("a libc")
}

fn hooks(located: &Located, depth: Depth) -> Vec<(Role, String)> {
    let of_depth = located.hooks.iter().filter(|hook| hook.depth == depth);
    of_depth.map(|hook| (hook.role, format!("{}+{}", hook.symbol, hook.offset_in_symbol))).collect()
}

fn named(hooks: &[(Role, &str)]) -> Vec<(Role, String)> {
    hooks.iter().map(|(role, place)| (*role, (*place).to_owned())).collect()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).expect("a writer");
    writer.write_all(bytes).expect("memory");
    writer.finish().expect("memory")
}

#[test]
fn symbols_give_the_whole_slow_path() {
    let found = located(&libc(), Symtab::Kept);
    assert_eq!(found.kind, AllocatorKind::Glibc { version: Some("2.36".into()) });
    assert_eq!(found.located_by, Source::Symtab);
    let want = [
        (Role::MunmapChunk, "munmap_chunk+4"),
        (Role::UnmapChunk, "munmap_chunk+4"),
        (Role::NewHeap, "new_heap+0"),
        (Role::MapHeap, "new_heap+1"),
        (Role::UnmapHeap, "new_heap+6"),
        (Role::MapChunk, "sysmalloc_mmap.constprop.0+1"),
        (Role::Systrim, "systrim.constprop.0+0"),
        (Role::Trim, "systrim.constprop.0+1"),
        (Role::UnmapHeap, "_int_free+6"),
        (Role::Sysmalloc, "sysmalloc+0"),
        (Role::Grow, "sysmalloc+6"),
        (Role::RemapChunk, "realloc+6"),
    ];
    assert_eq!(hooks(&found, Depth::Sysmalloc), named(&want));
    assert_eq!(hooks(&found, Depth::Arena), named(&[(Role::Arena, "_int_malloc+3")]));
    assert_eq!((found.missing, found.notes), (Vec::new(), Vec::new()));
}

#[test]
fn a_call_between_counted_functions_is_a_transfer_and_one_from_reallocarray_is_not() {
    let want = [
        (Role::Call(F::Malloc), "malloc+0"),
        (Role::Transfer(F::Malloc), "_mid_memalign.constprop.0+6"),
        (Role::Call(F::Free), "free+3"),
        (Role::Transfer(F::Free), "__malloc_arena_thread_freeres+0"),
        (Role::Call(F::Realloc), "realloc+0"),
        (Role::Transfer(F::Malloc), "realloc+1"),
        (Role::Transfer(F::Free), "realloc+11"),
        (Role::Call(F::Memalign), "memalign+0"),
        (Role::Call(F::Valloc), "valloc+4"),
        (Role::Call(F::Pvalloc), "pvalloc+0"),
        (Role::Call(F::Calloc), "calloc+0"),
        (Role::Call(F::PosixMemalign), "posix_memalign+0"),
    ];
    assert_eq!(hooks(&located(&libc(), Symtab::Kept), Depth::Call), named(&want));
}

#[test]
fn a_stripped_libc_gives_the_same_calls_and_says_why_there_is_no_more() {
    let (whole, stripped) = (located(&libc(), Symtab::Kept), located(&libc(), Symtab::Stripped));
    let calls = |found: &Located| -> Vec<(Role, u64)> {
        let calls = found.hooks.iter().filter(|hook| hook.depth == Depth::Call);
        calls.map(|hook| (hook.role, hook.file_offset)).collect()
    };
    assert_eq!(calls(&stripped), calls(&whole));
    assert!(stripped.hooks.iter().all(|hook| hook.depth == Depth::Call));
    assert_eq!(stripped.located_by, Source::Exports);
    // The parameters are told by their values, for which no code is looked at.
    assert_eq!(stripped.mp, whole.mp);
    let why = "this libc is stripped: no .symtab, no .gnu_debugdata, no debug file for build id 93ac61ec; \
               nor does its code tell: main_arena is not known: no place fits its signature";
    let depths: Vec<_> = stripped.missing.iter().map(|missing| (missing.depth, missing.why.as_str())).collect();
    assert_eq!(depths, [(Depth::Sysmalloc, why), (Depth::Arena, why)]);
}

#[test]
fn a_debug_file_serves_only_the_file_of_its_build_id() {
    let stripped = libc().bytes(Symtab::Stripped);
    let found = locate(&*stripped, Some(&*libc().bytes(Symtab::Kept))).expect("a libc");
    assert_eq!(found.located_by, Source::DebugFile);
    assert_eq!(found.hooks, located(&libc(), Symtab::Kept).hooks);

    let other = File { build_id: vec![1, 2, 3, 4], ..libc() };
    let found = locate(&*stripped, Some(&*other.bytes(Symtab::Kept))).expect("a libc");
    assert_eq!(found.located_by, Source::Exports);
    assert_eq!(found.notes, ["The debug file was not used: its debug file is of build id 01020304, not 93ac61ec."]);
}

#[test]
fn compressed_debug_data_serves_as_a_symbol_table() {
    let file = File { debug_data: Some(compressed(&libc().bytes(Symtab::Kept))), ..libc() };
    let found = located(&file, Symtab::Stripped);
    assert_eq!(found.located_by, Source::DebugData);
    assert_eq!(found.hooks, located(&libc(), Symtab::Kept).hooks);

    let broken = File { debug_data: Some(b"\xfd7zXZ\0 and no more".to_vec()), ..libc() };
    let found = located(&broken, Symtab::Stripped);
    assert_eq!(found.located_by, Source::Exports);
    assert!(found.missing.iter().all(|missing| missing.why.contains("unusable .gnu_debugdata")));
}

#[test]
fn the_slow_path_finds_its_parameters() {
    let found = located(&libc(), Symtab::Kept);
    let mp = found.mp.expect("mp_");
    assert_eq!(mp.layout, MpLayout::From235);
    for hook in &found.hooks {
        let wants = matches!(hook.role, Role::Sysmalloc | Role::MunmapChunk | Role::MapChunk | Role::UnmapChunk);
        assert_eq!(hook.cookie.mp(hook.vaddr), wants.then_some((mp.layout, mp.vaddr)), "{hook:?}");
        assert_eq!(hook.cookie.role(), Some(hook.role));
    }
}

#[test]
fn a_site_past_a_reservation_knows_the_way_back_to_the_return_address() {
    let found = located(&libc(), Symtab::Kept);
    let hook = found.hooks.iter().find(|hook| hook.role == Role::MunmapChunk).expect("munmap_chunk");
    assert_eq!((hook.pushed_bytes, &hook.execution), (8, &Execution::Emulated(Emulation::Jmp)));
    let hook = found.hooks.iter().find(|hook| hook.role == Role::Call(F::Pvalloc)).expect("pvalloc");
    assert_eq!((hook.pushed_bytes, &hook.execution), (0, &Execution::SingleStepped("xor".into())));
}

#[test]
fn dear_probes_are_left_out_and_told_of() {
    let mut found = located(&libc(), Symtab::Kept);
    let before = found.hooks.len();
    assert!(found.hooks.iter().any(Hook::is_dear), "the entry of pvalloc is stepped over");
    found.leave_stepped();
    assert!(!found.hooks.iter().any(Hook::is_dear));
    let left = found.uncounted().find(|missing| missing.what == "pvalloc").expect("pvalloc");
    assert!(left.why.contains("--stepped"), "{}", left.why);
    let dear_malloc = Hook {
        execution: Execution::SingleStepped("endbr64".into()),
        ..found.hooks.iter().find(|hook| hook.role == Role::Call(F::Malloc)).expect("malloc").clone()
    };
    assert!(found.hooks.iter().any(|hook| hook.role == Role::Transfer(F::Malloc)));
    found.hooks.retain(|hook| hook.role != Role::Call(F::Malloc));
    found.hooks.push(dear_malloc);
    found.leave_stepped();
    assert!(found.hooks.iter().all(|hook| hook.role != Role::Transfer(F::Malloc)), "it would count below zero");
    assert!(found.hooks.len() < before);
}

#[test]
fn names_of_one_address_are_one_function() {
    let found = located(&libc(), Symtab::Kept);
    let aliases = |name| {
        let function = found.functions.iter().find(|function| function.name == name).expect(name);
        function.aliases.clone()
    };
    assert_eq!(aliases("malloc"), ["__libc_malloc"]);
    assert_eq!(aliases("memalign"), ["aligned_alloc"]);
    assert_eq!(aliases("free"), ["cfree"]);
    assert!(found.hooks.iter().all(|hook| hook.role != Role::Call(F::AlignedAlloc)));
}

#[test]
fn a_transfer_that_may_not_be_taken_is_reported_and_not_probed() {
    let mut file = libc();
    let at = address(17); // posix_memalign
    let code = branch(&[0x0f, 0x84], at, address(8)); // je malloc
    let start = (at - address(0)) as usize;
    file.text[start..start + code.len()].copy_from_slice(&code);
    file.functions.iter_mut().find(|function| function.vaddr == at).expect("posix_memalign").size = 6;
    let found = located(&file, Symtab::Kept);
    assert!(found.hooks.iter().all(|hook| hook.vaddr != at || hook.role == Role::Call(F::PosixMemalign)));
    assert!(found.missing.iter().any(|m| m.depth == Depth::Call && m.what == "posix_memalign+0x0"));
}

#[test]
fn a_call_through_the_linkage_table_is_followed() {
    let mut file = libc();
    let (realloc, stub, slot) = (address(12), address(22), address(24));
    // endbr64; jmp [slot]
    let stub_code = [&[0xf3, 0x0f, 0x1e, 0xfa][..], &branch(&[0xff, 0x25], stub + 4, slot)].concat();
    file.text.extend(stub_code);
    let at = (realloc + 1 - address(0)) as usize;
    file.text[at..at + 5].copy_from_slice(&branch(&[0xe8], realloc + 1, stub));
    let transfer = |file: &File| located(file, Symtab::Kept).hooks.iter().any(|hook| hook.vaddr == realloc + 1);
    assert!(!transfer(&file));
    file.slots = vec![(slot, "malloc")];
    assert!(transfer(&file));
}

#[test]
fn a_function_of_another_source_file_is_not_taken_for_the_allocators() {
    let mut file = libc();
    file.text.extend([0x53, 0xc3]);
    let place = address(22);
    file.strangers = vec![Function { name: "systrim", vaddr: place, size: 2, visibility: Visibility::Internal }];
    assert!(located(&file, Symtab::Kept).hooks.iter().all(|hook| hook.vaddr != place));
    file.functions.append(&mut file.strangers);
    assert!(located(&file, Symtab::Kept).hooks.iter().any(|hook| hook.vaddr == place));
}

#[test]
fn a_function_the_build_inlines_is_missing() {
    let mut file = libc();
    file.functions.retain(|function| function.name != "sysmalloc");
    let found = located(&file, Symtab::Kept);
    assert!(found.hooks.iter().all(|hook| hook.role != Role::Sysmalloc));
    assert!(found.missing.iter().any(|missing| missing.what == "sysmalloc" && missing.why.contains("inlines")));
}

#[test]
fn a_file_without_malloc_has_no_hooks() {
    let mut file = libc();
    file.functions.retain(|function| function.name != "malloc" && function.name != "__libc_malloc");
    let bytes = file.bytes(Symtab::Kept);
    assert!(!defines_malloc(&*bytes));
    assert_eq!(locate(&*bytes, None).expect("an ELF file").hooks, []);
    assert!(defines_malloc(&*libc().bytes(Symtab::Stripped)));
}

#[test]
fn what_a_file_says_of_itself_is_read() {
    let bytes = libc().bytes(Symtab::Stripped);
    assert_eq!(build_id(&*bytes).map(|id| id.to_string()).as_deref(), Some("93ac61ec"));
    assert_eq!(interpreter(&*bytes).as_deref(), Some(&b"/lib64/ld.so"[..]));
    let link = debug_link(&*bytes).expect("a link");
    assert_eq!((link.file_name.as_slice(), link.crc32), (&b"mini.debug"[..], 0x0102_0304));
}

#[test]
fn files_that_cannot_be_looked_into_are_told_apart() {
    let error = |bytes: &[u8]| locate(bytes, None).expect_err("an error");
    let good = libc().bytes(Symtab::Kept);
    assert_eq!(error(b""), ElfError::NotElf);
    assert_eq!(error(b"#!/bin/sh\necho hello, world\n"), ElfError::NotElf);
    assert_eq!(error(&good[..100]), ElfError::Malformed { what: "program headers" });
    let mut small = good.clone();
    small[4] = 1;
    assert_eq!(error(&small), ElfError::ThirtyTwoBit);
    let arm = File { machine: raw::EM_AARCH64.0, ..libc() }.bytes(Symtab::Kept);
    assert_eq!(error(&arm).to_string(), "unsupported architecture: aarch64");
    assert!(build_id(&*arm).is_some());
}

fn look_everywhere(bytes: &[u8]) {
    let _ = (defines_malloc(bytes), build_id(bytes), debug_link(bytes), interpreter(bytes));
    if let Ok(found) = locate(bytes, Some(bytes)) {
        assert!(found.hooks.len() <= HOOK_LIMIT);
        assert!(found.hooks.iter().all(|hook| hook.file_offset < bytes.len() as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_file_makes_the_search_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = libc().bytes(Symtab::Kept);
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        look_everywhere(&bytes);
    }

    #[test]
    fn no_header_makes_the_search_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..6),
    ) {
        let good = libc().bytes(Symtab::Kept);
        // The section headers end the file; the file header and the segments begin it.
        let words: Vec<usize> = (16..0x1f0).step_by(8).chain((good.len() - 18 * 64..good.len() - 8).step_by(8)).collect();
        let mut bytes = good;
        for (at, value) in changes {
            let at = *at.get(&words);
            bytes[at..at + 8].copy_from_slice(&(value >> (value % 64)).to_le_bytes());
        }
        look_everywhere(&bytes);
    }
}
