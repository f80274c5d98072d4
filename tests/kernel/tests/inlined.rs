//! Proves what stands for the entry of a `sysmalloc` that the build made a part of `_int_malloc`.
#![cfg(feature = "real-kernel")]

use kernel_tests::daemon::record_program;
use kernel_tests::libcs;
use kernel_tests::process::run;
use kernel_tests::tracefs::Probes;
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use libc_tests::sysmalloc::places;

/// Counts by the kernel's own probes, without the daemon, at both places in libcs that have both.
#[test]
fn the_comparison_is_passed_once_for_each_entry_of_sysmalloc_with_the_same_nb() {
    for libc in libcs::all() {
        let suite = libc.suite;
        let bytes = std::fs::read(libc.file()).expect("a libc");
        let (entries, comparisons) = places(&bytes);
        assert_eq!(entries.len(), 1, "{suite}");
        assert!(!comparisons.is_empty(), "{suite}");
        assert!(comparisons.iter().all(|place| place.emulated), "{suite}: {comparisons:?}");
        let mut probes = Probes::new(suite);
        probes.add("entry", &libc.file(), entries[0].file_offset, entries[0].nb);
        for (index, place) in comparisons.iter().enumerate() {
            probes.add(&format!("comparison{index}"), &libc.file(), place.file_offset, place.nb);
        }
        probes.enable();
        for (name, arguments) in
            [("sizes", &[][..]), ("trim", &["32"]), ("crossings_storm", &["50"]), ("functions", &[])]
        {
            let ended = run(libc.command(name, arguments).stdin(std::process::Stdio::null()));
            assert!(ended.status.success(), "{suite}, {name}: {}", ended.stderr);
            let seen = probes.seen(Truth::parse_all(&ended.stdout)[0].pid);
            let of = |entry: bool| -> Vec<u64> {
                let mine = seen.iter().filter(|(name, _)| (name == "entry") == entry);
                mine.map(|(_, nb)| *nb).collect()
            };
            assert!(of(true).len() >= 2, "{suite}, {name}: {seen:?}");
            assert_eq!(of(true), of(false), "{suite}, {name}: entries, and comparisons");
        }
    }
}

// CROSS-1, COUNT-1: an allocator of the same shape, compiled with -O2, whose sysmalloc has no symbol of its own.
#[test]
fn an_inlined_sysmalloc_is_counted_where_it_compares_the_threshold() {
    let program = victim::program_with("inlined", "inlined", "cc".as_ref(), &["-O2", "-rdynamic"]);
    let recording = record_program(&program.expect("a compiler"), &[]);
    let (truth, image) = recording.only();
    assert!(image.0["not_measured"].as_array().is_some_and(Vec::is_empty), "{}", image.0["not_measured"]);
    assert_eq!(image.number("/funnel/sysmalloc/calls"), truth.fact("sysmalloc_calls"));
    assert_eq!(image.number("/funnel/sysmalloc/bytes"), truth.fact("sysmalloc_bytes"));
    assert_eq!(image.number("/funnel/arena/calls"), truth.fact("arena_calls"));
    assert_eq!(image.number("/crossings/calls"), truth.fact("crossings"));
    assert_eq!(image.number("/syscalls/brk/by_origin/growth"), truth.fact("growths"));
    assert_eq!(image.number("/threshold/bytes"), 131_072);
}
