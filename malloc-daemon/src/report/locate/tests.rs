//! Holds the text and the JSON of `locate` to their golden files.

use malloc_common::function::Function as Public;
use malloc_common::site::{ArenaLayout, Cookie};
use proptest::prelude::*;

use super::*;
use crate::report::escape::is_unsafe;
use crate::targets::AllocatorKind;
use crate::targets::BuildId;
use crate::targets::locate::{Check, MallocPar, Missing};
use crate::targets::symbols::Source;
use crate::targets::usdt::{Argument, Place, UsdtProbe};

fn hook(role: Role, symbol: &str, at: (u64, u64), execution: Execution, mp: Option<i32>) -> Hook {
    let cookie = Cookie::new(role);
    Hook {
        role,
        symbol: symbol.to_owned(),
        offset_in_symbol: at.1,
        vaddr: at.0 + at.1,
        file_offset: at.0 + at.1 - 0x1000,
        cookie: mp.map_or(cookie, |distance| cookie.with_mp(MpLayout::From235, distance)),
        execution,
        pushed_bytes: 0,
        depth: Depth::of(role),
    }
}

fn function(name: &str, vaddr: u64, size: u64, aliases: &[&str], source: Source) -> AllocatorFunction {
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    AllocatorFunction { name: name.to_owned(), vaddr, size, file_offset: vaddr - 0x1000, aliases, source }
}

fn object(name: &str, vaddr: u64, file_offset: Option<u64>) -> AllocatorObject {
    AllocatorObject { name: name.to_owned(), vaddr, file_offset, source: Source::DebugFile }
}

fn argument(place: Place) -> Argument {
    Argument { bytes: 8, signed: false, place }
}

fn static_probe(name: &str, vaddr: u64, arguments: Vec<Result<Argument, String>>) -> UsdtProbe {
    let (provider, name) = ("libc".to_owned(), name.to_owned());
    UsdtProbe { provider, name, vaddr, file_offset: vaddr - 0x1000, semaphore: None, arguments }
}

fn evidence() -> Evidence {
    let check = |of: &str, what, holds| Check { of: of.to_owned(), what, holds };
    let texts = ["push r15", "call 0x11c000", "push r14", "endbr64"];
    Evidence {
        instructions: texts.map(str::to_owned).to_vec(),
        checks: vec![
            check("mp_", "its initial values are those of exactly one layout", true),
            check("_int_malloc", "malloc calls it with main_arena", false),
        ],
    }
}

fn libc() -> Located {
    Located {
        kind: AllocatorKind::Glibc { version: Some("2.36".to_owned()) },
        build_id: Some(BuildId::new(vec![0x93, 0xac, 0x01])),
        machine: object::elf::EM_X86_64.0,
        hooks: vec![
            hook(Role::Sysmalloc, "sysmalloc", (0x96b20, 0), Execution::Emulated(Emulation::Push), Some(0x13_c820)),
            hook(Role::MapChunk, "sysmalloc_mmap", (0x96a10, 0x4c), Execution::Emulated(Emulation::Call), Some(-0x40)),
            hook(Role::Arena, "_int_malloc", (0x97630, 2), Execution::Emulated(Emulation::Push), None),
            hook(Role::Call(Public::Malloc), "malloc", (0x98ef0, 0), Execution::SingleStepped("endbr64".into()), None),
            hook(Role::Transfer(Public::Free), "realloc", (0x99a00, 9), Execution::Emulated(Emulation::Jmp), None),
        ],
        functions: vec![
            function("sysmalloc", 0x96b20, 1955, &[], Source::DebugFile),
            function("malloc", 0x98ef0, 417, &["__libc_malloc", "__malloc"], Source::Exports),
            function("free", 0x99400, 0, &["cfree"], Source::Exports),
        ],
        objects: vec![object("mp_", 0x1d_3340, Some(0x1d_2340)), object("main_arena", 0x1d_2c60, None)],
        mp: Some(MallocPar { vaddr: 0x1d_3340, layout: MpLayout::From235 }),
        main_arena: Some(0x1d_2c60),
        arena_layout: ArenaLayout::From227,
        usdt: vec![
            static_probe("memory_sbrk_more", 0x96c00, vec![Ok(argument(Place::Register("rax".to_owned())))]),
            static_probe(
                "memory_mallopt_top_pad",
                0x9a000,
                vec![
                    Ok(argument(Place::Memory { base: "rsp".to_owned(), index: None, displacement: 16 })),
                    Err("8@16+mp_(%rip)".to_owned()),
                ],
            ),
        ],
        located_by: Source::DebugFile,
        missing: Vec::new(),
        notes: Vec::new(),
    }
}

fn stripped() -> Located {
    let why = "this libc is stripped: no .symtab, no debug file for build id 93ac01".to_owned();
    let mut located = libc();
    located.hooks.retain(|hook| hook.depth == Depth::Call);
    located.functions.retain(|function| function.source == Source::Exports);
    (located.mp, located.main_arena, located.located_by) = (None, None, Source::Exports);
    (located.objects, located.machine) = (Vec::new(), object::elf::EM_AARCH64.0);
    located.missing = vec![
        Missing { depth: Depth::Sysmalloc, what: "sysmalloc and the slow path".to_owned(), why: why.clone() },
        Missing { depth: Depth::Arena, what: "_int_malloc".to_owned(), why },
    ];
    located.notes = vec!["The debug file was not used: its debug file is of build id 00ff, not 93ac01.".to_owned()];
    located
}

fn of_file() -> Subject {
    let debug_file = Some("/usr/lib/debug/.build-id/93/ac01.debug".to_owned());
    Subject { path: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(), debug_file, process: None }
}

fn of_process() -> Subject {
    let executable = OtherFile { path: "/usr/bin/sleep".to_owned(), why: "it defines no malloc".to_owned() };
    let process = Process {
        pid: 4242,
        comm: "sleep".to_owned(),
        deleted: true,
        why: "it is the only file with malloc that the process maps".to_owned(),
        load_bias: 0x7f2e_ffdf_9000,
        other_files: vec![executable],
    };
    Subject { debug_file: None, process: Some(process), ..of_file() }
}

#[test]
fn a_whole_libc_is_shown_with_every_probe() {
    insta::assert_snapshot!(text(&document(&of_file(), &libc(), &evidence())));
}

#[test]
fn a_stripped_libc_shows_what_each_depth_lacks_and_why() {
    insta::assert_snapshot!(text(&document(&of_process(), &stripped(), &Evidence::default())));
}

#[test]
fn the_json_says_the_same() {
    insta::assert_snapshot!(
        serde_json::to_string_pretty(&document(&of_process(), &stripped(), &Evidence::default())).unwrap()
    );
    let whole: serde_json::Value = serde_json::from_slice(&json(&document(&of_file(), &libc(), &evidence()))).unwrap();
    assert_eq!(whole["complete"], true);
    assert_eq!(whole["depths"][0]["hooks"][1]["mp_distance"], -0x40);
    assert_eq!(whole["depths"][2]["hooks"][0]["execution"], "single_stepped");
    assert_eq!(whole["functions"][2]["size_bytes"], serde_json::Value::Null);
}

proptest! {
    #[test]
    fn no_name_out_of_a_file_reaches_the_terminal_raw(name in any::<String>()) {
        let (mut subject, mut located) = (of_process(), stripped());
        subject.path.clone_from(&name);
        let process = subject.process.as_mut().unwrap();
        (process.comm, process.why, process.other_files[0].path) = (name.clone(), name.clone(), name.clone());
        located.kind = AllocatorKind::Glibc { version: Some(name.clone()) };
        located.functions[0].aliases.push(name.clone());
        located.functions[0].name.clone_from(&name);
        located.hooks[0].symbol.clone_from(&name);
        (located.missing[0].what, located.missing[0].why) = (name.clone(), name.clone());
        located.notes.push(name.clone());
        located.usdt[0].name.clone_from(&name);
        located.usdt[1].arguments[1] = Err(name.clone());
        located.usdt[1].arguments[0] = Ok(argument(Place::Register(name.clone())));
        let mut seen = evidence();
        (seen.checks[0].of, seen.instructions[0]) = (name.clone(), name.clone());
        let document = document(&subject, &located, &seen);
        let json = String::from_utf8(json(&document)).unwrap();
        for out in [text(&document), json] {
            prop_assert!(!out.chars().any(|letter| letter != '\n' && is_unsafe(letter)), "{}", out);
        }
    }
}
