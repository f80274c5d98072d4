//! What is told of a static program without symbols is what the symbols of the same program say, or not told at all.
#![cfg(feature = "archives")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libc_tests::compare::{Verdict, functions};
use libc_tests::linked::{PROGRAMS, Pair, WAYS, archives, pair};
use malloc_common::site::Role;
use malloc_daemon::targets::locate::{AllocatorFunction, defines_malloc, evidence};
use malloc_daemon::targets::symbols::Name;
use malloc_daemon::targets::{Depth, Located, analyse, elf};

/// For an unoptimized build beside others.
const LIMIT: Duration = Duration::from_secs(10);

/// What is told in every build looked at.
const TOLD: [&str; 10] =
    ["malloc", "free", "calloc", "realloc", "mmap", "munmap", "mprotect", "madvise", "mremap", "sbrk"];

/// What is told, or said to be unidentified.
const FAMILY: [&str; 5] = ["memalign", "aligned_alloc", "posix_memalign", "valloc", "pvalloc"];

fn with_another_build_id(stripped: &[u8]) -> Vec<u8> {
    let id = elf::build_id(stripped).expect("a build id");
    let mut copy = stripped.to_vec();
    let at = copy.windows(id.as_bytes().len()).position(|bytes| bytes == id.as_bytes()).expect("the build id");
    copy[at..at + id.as_bytes().len()].iter_mut().for_each(|byte| *byte ^= 0xff);
    copy
}

fn place(located: &Located, name: &str) -> Option<u64> {
    let is_it = |one: &&AllocatorFunction| one.name == name || one.aliases.iter().any(|alias| alias == name);
    located.functions.iter().find(is_it).map(|function| function.vaddr)
}

/// What the kernel would be told: place, role, cookie, depth of the stack.
fn hooks(located: &Located, kept: impl Fn(Role) -> bool) -> BTreeSet<(u64, String, u64, u32)> {
    let hooks = located.hooks.iter().filter(|hook| kept(hook.role));
    hooks.map(|hook| (hook.file_offset, format!("{:?}", hook.role), hook.cookie.0, hook.pushed_bytes)).collect()
}

/// Whether a hook is of a function that is said to be unidentified.
fn is_left_out(role: Role, told: &Located) -> bool {
    match role {
        Role::Call(function) | Role::Transfer(function) => lacks(told, function.name()),
        _ => false,
    }
}

fn lacks(told: &Located, name: &str) -> bool {
    told.missing.iter().any(|missing| missing.depth == Depth::Call && missing.what == name)
}

/// Every name that is told and is none of its address's, by the symbols.
fn misnamed(told: &Located, truth: &Located) -> Vec<String> {
    let bases = |one: &AllocatorFunction| -> BTreeSet<String> {
        let names = std::iter::once(&one.name).chain(&one.aliases);
        names.map(|name| Name::parse(name).base.to_owned()).collect()
    };
    let real: BTreeMap<u64, BTreeSet<String>> = truth.functions.iter().map(|one| (one.vaddr, bases(one))).collect();
    let mut wrong = Vec::new();
    for one in &told.functions {
        // Of two relays nothing tells which is which: their name says both.
        let right = bases(one).iter().all(|name| {
            real.get(&one.vaddr).is_some_and(|real| name.split(" or ").any(|either| real.contains(either)))
        });
        if !right {
            wrong.push(format!("{} at {:#x}", one.name, one.vaddr));
        }
    }
    wrong
}

/// What is wrong, sentence by sentence, and how many items are right.
fn judge(pair: &Pair, may_be_unknown: bool) -> (usize, Vec<String>) {
    let truth = analyse(&*pair.whole, None).expect("a program");
    assert_eq!(truth.located_by.name(), "symtab");
    let copy = with_another_build_id(&pair.stripped);
    let started = Instant::now();
    let told = analyse(&*copy, None).expect("a program");
    let took = started.elapsed();
    if may_be_unknown && told.hooks.is_empty() {
        println!("  unidentified: {}", told.missing[0].why);
        return (0, Vec::new());
    }
    let mut wrong = Vec::new();
    let mut right = 0;
    let mut check = |holds: bool, what: String| if holds { right += 1 } else { wrong.push(what) };
    check(took < LIMIT, format!("it took {took:?}"));
    check(defines_malloc(&*copy), "it is not seen to define malloc".to_owned());
    check(analyse(&*pair.stripped, None).map(|one| one.hooks) == Ok(told.hooks.clone()), "the build id matters".into());
    check(
        told.located_by.name() == "inferred",
        format!("it is told by {}: {:?}", told.located_by.name(), told.missing),
    );
    if told.hooks.is_empty() {
        return (right, wrong);
    }
    for name in TOLD {
        let (mine, real) = (place(&told, name), place(&truth, name));
        check(mine.is_some() && mine == real, format!("{name} is told to be at {mine:x?} and is at {real:x?}"));
    }
    check(told.mp == truth.mp && told.mp.is_some(), format!("mp_ is told as {:x?}, not {:x?}", told.mp, truth.mp));
    check(
        told.main_arena == truth.main_arena,
        format!("main_arena: {:x?}, not {:x?}", told.main_arena, truth.main_arena),
    );
    check(told.arena_layout == truth.arena_layout, format!("arenas: {:?}", told.arena_layout));
    for (name, verdict) in functions(&told, &truth) {
        check(verdict != Verdict::Wrong, format!("{name} is {}", verdict.word()));
        if verdict == Verdict::Unidentified {
            println!("  {name} is unidentified");
        }
    }
    for name in FAMILY {
        let (mine, real) = (place(&told, name), place(&truth, name));
        // Up to glibc 2.37 one is the other's address.
        let right = if mine.is_some() { mine == real } else { lacks(&told, name) };
        check(right, format!("{name} is told to be at {mine:x?} and is at {real:x?}"));
        if mine.is_none() {
            println!("  {name} is unidentified: {:?}", told.missing.iter().find(|missing| missing.what == name));
        }
    }
    let misnamed = misnamed(&told, &truth);
    check(misnamed.is_empty(), format!("misnamed: {misnamed:?}"));
    let (mine, real) = (hooks(&told, |_| true), hooks(&truth, |role| !is_left_out(role, &told)));
    let (more, less): (Vec<_>, Vec<_>) = (mine.difference(&real).collect(), real.difference(&mine).collect());
    check(more.is_empty(), format!("there are more hooks: {more:x?}"));
    check(less.is_empty(), format!("there are fewer hooks: {less:x?}"));
    let checks = evidence(&*copy, &told).expect("a program").checks;
    let failing: Vec<_> = checks.iter().filter(|check| !check.holds).collect();
    check(checks.len() >= 12 && failing.is_empty(), format!("of {} cross-checks fail {failing:?}", checks.len()));
    (right, wrong)
}

#[test]
fn a_static_program_without_symbols_is_told_as_its_symbols_say() {
    let mut failures = Vec::new();
    let mut suites = vec![("this machine".to_owned(), None)];
    for suite in ["bullseye", "bookworm", "trixie", "sid"] {
        match archives(suite) {
            Ok((folder, version)) => suites.push((format!("{suite} ({version})"), Some(folder))),
            // Its release is archived one day, and the others are there.
            Err(why) if suite == "bullseye" => println!("not run: {suite}: {why}"),
            Err(why) => failures.push(format!("{suite} was not run: {why}")),
        }
    }
    for (suite, folder) in &suites {
        for (program, way) in PROGRAMS.iter().flat_map(|program| WAYS.map(|way| (*program, way))) {
            let column = format!("{program} {} of {suite}", way[0]);
            let name = suite.split(' ').next().unwrap_or_default();
            match pair(program, way, folder.as_deref(), name) {
                Ok(pair) => {
                    let (right, wrong) = judge(&pair, name == "bullseye");
                    println!("{column}: {right} items right, {} wrong", wrong.len());
                    failures.extend(wrong.into_iter().map(|wrong| format!("{column}: {wrong}")));
                }
                Err(why) => failures.push(format!("{column} was not linked: {why}")),
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_program_without_one_of_the_marks_is_told_unknown() {
    let whole = pair("prints", WAYS[0], None, "spoilt").expect("a static libc").stripped;
    let head: Vec<u8> = [0x2_0000_u64, 0x2_0000, 0x2_0000, 8].iter().flat_map(|word| word.to_le_bytes()).collect();
    for mark in [&b"malloc(): corrupted top size"[..], b"realloc(): invalid pointer", b"munmap_chunk(): invalid", &head]
    {
        let mut spoilt = whole.clone();
        let at = spoilt.windows(mark.len()).position(|bytes| bytes == mark).expect("the mark");
        spoilt[at] ^= 0x20;
        let told = analyse(&*spoilt, None).expect("a program");
        assert!(told.hooks.is_empty() && told.functions.is_empty() && !defines_malloc(&*spoilt));
        assert!(told.missing[0].why.contains("no glibc is found in it"), "{:?}", told.missing);
    }
    assert!(!analyse(&*whole, None).expect("a program").hooks.is_empty());
}

/// xorshift: the same damage in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[test]
fn damage_to_a_program_moves_no_probe_off_its_file_and_takes_no_long_time() {
    let whole = pair("prints", WAYS[1], None, "damaged").expect("a static libc").stripped;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for round in 0..12 {
        let mut copy = whole.clone();
        for _ in 0..1usize << round {
            let at = next(&mut state) % copy.len();
            copy[at] = next(&mut state) as u8;
        }
        let started = Instant::now();
        if let Ok(found) = analyse(&*copy, None) {
            assert!(found.hooks.iter().all(|hook| hook.file_offset < copy.len() as u64));
        }
        assert!(started.elapsed() < LIMIT, "round {round} took {:?}", started.elapsed());
    }
}
