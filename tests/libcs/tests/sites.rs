//! Every entry probe of every libc lies where another disassembler and a table written by hand say.
#![cfg(feature = "archives")]

use std::collections::BTreeMap;

use libc_tests::archive::{ARCHES, SUITES, build_at};
use libc_tests::independent::File;
use libc_tests::sites;
use malloc_common::site::Role;
use malloc_daemon::targets::analyse;
use malloc_daemon::targets::decode::{Emulation, Execution};

/// Debian's package versions for x86-64, and where each function's probe belongs, told by disassembling it with another
/// program: the distance from its entry and the kind of instruction. `-` is the entry itself, on which the kernel steps: an
/// argument is overwritten before the first instruction that would do.
const TABLE: [(&str, &str); 5] = [
    (
        "2.31-13+deb11u11",
        "malloc+7:push calloc+0:push realloc+0:push free+17:jcc memalign+4:jmp posix_memalign+0:push valloc+6:push \
         pvalloc+6:push _int_malloc+0:push sysmalloc+0:push munmap_chunk+29:jcc",
    ),
    (
        "2.36-9+deb12u14",
        "malloc+0:push calloc+0:push realloc+0:push free+3:jcc memalign+7:jcc posix_memalign+7:push valloc+7:push \
         pvalloc+7:push _int_malloc+3:jcc sysmalloc+0:push munmap_chunk+29:jcc",
    ),
    (
        "2.41-12+deb13u5",
        "malloc+0:push calloc+0:push realloc+0:push free+3:jcc memalign+7:jcc aligned_alloc+0:push \
         posix_memalign+7:push valloc+7:push pvalloc+7:push _int_malloc+3:jcc sysmalloc+0:push munmap_chunk+29:jcc",
    ),
    (
        "2.43-7",
        "malloc+3:jcc calloc+6:jcc realloc+6:jcc free+3:jcc memalign+0:jmp aligned_alloc+7:jcc posix_memalign+23:jcc \
         valloc+0:- pvalloc+0:- _int_malloc+0:push sysmalloc+0:push munmap_chunk+10:jcc",
    ),
    (
        "2.44-3",
        "malloc+7:jcc calloc+10:jcc realloc+10:jcc free+7:jcc memalign+11:jcc aligned_alloc+17:jcc \
         posix_memalign+13:jcc valloc+0:- pvalloc+0:- _int_malloc+0:push sysmalloc+0:push munmap_chunk+10:jcc",
    ),
];

fn role(role: Role) -> Option<(&'static str, usize)> {
    Some(match role {
        Role::Call(function) => (function.name(), function.arguments()),
        Role::Arena => ("_int_malloc", 2),
        Role::Sysmalloc => ("sysmalloc", 2),
        Role::MunmapChunk => ("munmap_chunk", 1),
        Role::Systrim => ("systrim", 2),
        Role::NewHeap => ("new_heap", 2),
        _ => return None,
    })
}

fn kind(execution: &Execution) -> &'static str {
    match execution {
        Execution::Emulated(Emulation::Push) => "push",
        Execution::Emulated(Emulation::Nop) => "nop",
        Execution::Emulated(Emulation::Jmp) => "jmp",
        Execution::Emulated(Emulation::Jcc) => "jcc",
        Execution::Emulated(Emulation::Call) => "call",
        Execution::Emulated(Emulation::Adr) => "adr",
        Execution::Emulated(Emulation::Br) => "br",
        Execution::SingleStepped(_) => "-",
    }
}

#[test]
fn every_entry_probe_lies_where_a_listing_and_the_table_say() {
    let (mut failures, mut by_table, mut by_listing) = (Vec::new(), 0, 0);
    for (suite, arch) in SUITES.iter().flat_map(|suite| ARCHES.map(|arch| (*suite, arch))) {
        let column = format!("{suite}-{}", arch.name);
        let (path, version) = match build_at(suite, arch) {
            Ok(build) => build,
            // The archives keep the oldest no longer than they like.
            Err(why) if suite == SUITES[0] => {
                println!("not run: {column}: {why}");
                continue;
            }
            Err(why) => {
                failures.push(format!("{column} was not run: {why}"));
                continue;
            }
        };
        let file = File::read(&path).expect("binutils read it");
        let located = analyse(&*file.bytes, None).expect("a libc");
        let targets = sites::targets(&file);
        let mut seen = BTreeMap::new();
        for hook in &located.hooks {
            let Some((name, arguments)) = role(hook.role) else { continue };
            // Where sysmalloc is inlined, its hook is no entry.
            if hook.role == Role::Sysmalloc && hook.cookie.word().is_some() {
                continue;
            }
            let entry = hook.vaddr - hook.offset_in_symbol;
            let faults = sites::faults(&file, &targets, (entry, hook.vaddr), arguments, name);
            failures.extend(faults.into_iter().map(|fault| format!("{column}: {fault}")));
            if file.is_emulated(hook.vaddr) != (kind(&hook.execution) != "-") {
                failures.push(format!("{column}: {name} is told as {:?}", hook.execution));
            }
            by_listing += 1;
            seen.insert(name, format!("{name}+{}:{}", hook.offset_in_symbol, kind(&hook.execution)));
        }
        let line = seen.values().cloned().collect::<Vec<_>>().join(" ");
        println!("{column} {version}: {line}");
        for required in ["malloc", "calloc", "realloc", "free", "posix_memalign", "_int_malloc"] {
            if !seen.contains_key(required) {
                failures.push(format!("{column}: {required} has no probe"));
            }
        }
        if let Some((_, table)) = TABLE.iter().find(|(known, _)| *known == version && arch == ARCHES[0]) {
            for wanted in table.split_whitespace() {
                let name = wanted.split('+').next().expect("a name");
                if seen.get(name).is_none_or(|told| told != wanted) {
                    failures.push(format!("{column}: {:?}, and the table has {wanted}", seen.get(name)));
                }
                by_table += 1;
            }
        }
    }
    println!("{by_listing} sites compared with the listing, {by_table} with the table");
    assert!(by_listing > 100, "{by_listing} sites were looked at");
    assert!(failures.is_empty(), "{failures:#?}");
}
