//! A copy of this machine's libc that no debug file belongs to gives the probes that its symbols give.
#![cfg(feature = "archives")]

use libc_tests::compare::places;
use malloc_daemon::targets::{Located, analyse, elf, locate};

const PLACES: [&str; 4] =
    ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"];

fn libc() -> Vec<u8> {
    PLACES.iter().find_map(|path| std::fs::read(path).ok()).expect("a libc.so.6")
}

/// The debug file of `libc`, which its distribution installs by its build id.
fn debug_file(libc: &[u8]) -> Vec<u8> {
    let id = elf::build_id(libc).expect("a build id").to_string();
    let (front, rest) = id.split_at(2);
    let path = format!("/usr/lib/debug/.build-id/{front}/{rest}.debug");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; install the libc's debug symbols"))
}

fn with_another_build_id(libc: &[u8]) -> Vec<u8> {
    let id = elf::build_id(libc).expect("a build id");
    let mut copy = libc.to_vec();
    let at = copy.windows(id.as_bytes().len()).position(|bytes| bytes == id.as_bytes()).expect("the build id");
    copy[at..at + id.as_bytes().len()].iter_mut().for_each(|byte| *byte ^= 0xff);
    copy
}

fn roles(located: &Located) -> usize {
    located.hooks.iter().filter(|hook| hook.depth < malloc_daemon::targets::Depth::Call).count()
}

#[test]
fn a_copy_without_symbols_has_the_same_hooks() {
    let libc = libc();
    let debug = debug_file(&libc);
    let named = locate(&*libc, Some(&*debug)).expect("a libc");
    assert_eq!(named.located_by.name(), "debug_file");
    let copy = with_another_build_id(&libc);
    let told = locate(&*copy, Some(&*debug)).expect("a libc");
    assert_eq!(told.located_by.name(), "inferred");
    assert_ne!(told.build_id, named.build_id);
    assert!(roles(&told) > 10, "{:?}", told.missing);
    assert_eq!(places(&told), places(&named));
    assert_eq!((told.mp, told.main_arena, told.arena_layout), (named.mp, named.main_arena, named.arena_layout));
    assert_eq!(told.missing, named.missing);
}

/// xorshift: the same damage in every run.
struct Damage(u64);

impl Damage {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }
}

#[test]
fn damage_makes_no_search_fail_but_by_a_value_nor_run_long() {
    const ROUNDS: usize = 60;
    let libc = libc();
    let mut damage = Damage(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let mut copy = libc.clone();
        // From single bytes to one in five hundred.
        for _ in 0..1usize << (round % 13) {
            let at = damage.next() % copy.len();
            copy[at] = damage.next() as u8;
        }
        if round % 3 == 0 {
            copy.truncate(damage.next() % libc.len());
        }
        let started = std::time::Instant::now();
        if let Ok(found) = analyse(&*copy, None) {
            assert!(found.hooks.iter().all(|hook| hook.file_offset < copy.len() as u64));
        }
        assert!(started.elapsed().as_secs() < 5, "round {round} took {:?}", started.elapsed());
    }
}
