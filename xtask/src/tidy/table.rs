//! Which rule holds where. A path that ends in `/` stands for everything below it.
use std::collections::BTreeSet;

/// Modules without files, sockets, clocks or the kernel: they give the same answer everywhere.
pub const PURE: &[&str] = &[
    "malloc-common/src/",
    "malloc-daemon/src/aggregate.rs",
    "malloc-daemon/src/aggregate/",
    "malloc-daemon/src/arenas/",
    "malloc-daemon/src/history/batch.rs",
    "malloc-daemon/src/history/codec.rs",
    "malloc-daemon/src/history/record.rs",
    "malloc-daemon/src/history/row.rs",
    "malloc-daemon/src/history/tiers.rs",
    "malloc-daemon/src/history/time.rs",
    "malloc-daemon/src/budget/",
    "malloc-daemon/src/probes/verdict.rs",
    "malloc-daemon/src/report.rs",
    "malloc-daemon/src/report/",
    "malloc-daemon/src/targets/decode.rs",
    "malloc-daemon/src/targets/decode/",
    "malloc-daemon/src/targets/elf.rs",
    "malloc-daemon/src/targets/locate.rs",
    "malloc-daemon/src/targets/locate/",
    "malloc-daemon/src/targets/sites.rs",
    "malloc-daemon/src/targets/symbols.rs",
];

/// What a pure module does not name, as the start of a path.
pub const IMPURE_ROOTS: &[&str] = &["std::fs", "std::net", "tokio", "aya"];

/// What a pure module does not name, anywhere in a path.
pub const IMPURE_PARTS: &[&str] = &["Instant::now", "SystemTime"];

/// Crates that only some places may use.
pub const CONFINED: &[(&[&str], &[&str])] = &[
    (
        &["aya", "aya_obj"],
        &["malloc-daemon/src/probes/", "malloc-daemon/src/probes.rs", "malloc-daemon/src/collect/bpf.rs"],
    ),
    // The store's library is no format of ours: what lies in it is encoded beside it.
    (&["redb"], &["malloc-daemon/src/history/"]),
    (
        &["serde", "serde_json"],
        &[
            "malloc-daemon/src/report/",
            "malloc-daemon/src/report.rs",
            "malloc-daemon/src/config/",
            "malloc-daemon/src/http/tests.rs",
            "malloc-daemon/src/http/tests/",
            "tests/",
            "xtask/",
        ],
    ),
];

/// Where standard output and standard error are written to. The rest returns what it has to say.
pub const PRINTING: &[&str] = &[
    "malloc-daemon/benches/",
    "malloc-daemon/src/command/",
    "malloc-daemon/src/command.rs",
    "malloc-daemon/src/main.rs",
    "tests/",
    "xtask/",
];

/// The system calls that no crate wraps.
const SYSCALL_MODULE: &str = "malloc-daemon/src/probes/syscall.rs";

/// Where `unsafe` may be written. Victim programs free twice and write past ends on purpose.
pub const UNSAFE: &[&str] = &[
    "malloc-ebpf/",
    "malloc-common/src/abi.rs",
    SYSCALL_MODULE,
    // One call that no crate wraps: parameters of the C library's allocator.
    "malloc-daemon/src/own_memory.rs",
    // Functions written in assembly: their attribute is unsafe.
    "malloc-daemon/src/probes/calibration.rs",
    "tests/programs/",
    "malloc-daemon/tests/symbols/programs/",
];

/// Lines above which a file needs an entry in `LONG_FILES`.
pub const LONGEST: usize = 500;

/// Files longer than that, each with its reason.
pub const LONG_FILES: &[(&str, &str)] = &[
    (
        "malloc-daemon/src/aggregate/scenarios.rs",
        "one scenario for each rule of counting, read as a list; parts of it would have to repeat what sets the stage",
    ),
    (
        "malloc-daemon/src/collect/sim.rs",
        "one implementation of one trait, method by method, over the same collections",
    ),
];

/// The map of the tree.
pub const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// The named guarantees.
pub const CONTRACT: &str = "docs/contract.md";

/// Folders that the map's paths may be relative to, besides the root.
pub const PATH_BASES: &[&str] =
    &["", "malloc-daemon/src/", "malloc-daemon/", "malloc-common/src/", "malloc-ebpf/src/", "docs/"];

/// Whether `path` lies in one of `places`.
pub fn lies_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| if place.ends_with('/') { path.starts_with(place) } else { path == *place })
}

/// Whether the whole file is test code.
pub fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// Folders that the map must name: `malloc-*/src/*/`, `tests/*/`, `packaging/`, `xtask/`.
pub fn source_folders(paths: &[String]) -> BTreeSet<String> {
    paths.iter().filter_map(|path| source_folder(path)).collect()
}

fn source_folder(path: &str) -> Option<String> {
    let (folder, _) = path.rsplit_once('/')?;
    match folder.split('/').collect::<Vec<_>>()[..] {
        [first, "src", module, ..] if first.starts_with("malloc-") => Some(format!("{first}/src/{module}/")),
        ["tests", second, ..] => Some(format!("tests/{second}/")),
        [first @ ("packaging" | "xtask"), ..] => Some(format!("{first}/")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_with_a_slash_covers_what_is_below_and_no_sibling() {
        assert!(lies_in("malloc-daemon/src/report/json.rs", PURE));
        assert!(lies_in("malloc-daemon/src/targets/elf.rs", PURE));
        assert!(!lies_in("malloc-daemon/src/targets/discover.rs", PURE));
        assert!(!lies_in("malloc-daemon/src/reporter/json.rs", PURE));
    }

    #[test]
    fn folders_of_sources_are_named_once_at_their_first_level() {
        let paths = [
            "README.md",
            "malloc-daemon/src/lib.rs",
            "malloc-daemon/src/targets/locate/x.rs",
            "tests/kernel/src/lib.rs",
            "tests/kernel/Cargo.toml",
            "xtask/src/tidy/table.rs",
            "docs/contract.md",
        ];
        let folders = source_folders(&paths.map(str::to_owned));
        assert_eq!(folders.into_iter().collect::<Vec<_>>(), ["malloc-daemon/src/targets/", "tests/kernel/", "xtask/"]);
    }
}
