//! The rule over the eBPF object: its maps and programs are those that `malloc_common::maps` lists.
use std::{collections::BTreeSet, fs};

use anyhow::Result;
use malloc_common::maps::{MAP_NAMES, PROGRAM_NAMES};

use super::Violation;
use crate::{ebpf::object::Shape, workspace::Workspace};

/// Compares the committed object with the lists.
pub fn check(workspace: &Workspace) -> Result<Vec<Violation>> {
    let object = workspace.committed_object();
    let path = workspace.relative(&object).display().to_string();
    let Ok(bytes) = fs::read(&object) else {
        return Ok(vec![Violation::new(&path, 1, "names", "build it with `cargo xtask ebpf` and commit it")]);
    };
    Ok(compare(&path, &Shape::of(&bytes)?, MAP_NAMES, PROGRAM_NAMES))
}

fn compare(path: &str, shape: &Shape, maps: &[&str], programs: &[&str]) -> Vec<Violation> {
    let built_maps = shape.maps.iter().map(String::as_str).collect();
    let built_programs = shape.programs.keys().map(String::as_str).collect();
    let mut violations = differences(path, "map", &built_maps, maps);
    violations.extend(differences(path, "program", &built_programs, programs));
    violations
}

fn differences(path: &str, what: &str, built: &BTreeSet<&str>, listed: &[&str]) -> Vec<Violation> {
    let listed: BTreeSet<_> = listed.iter().copied().collect();
    let unlisted = built
        .difference(&listed)
        .map(|name| format!("list {what} {name} in malloc-common/src/maps.rs: the object has it"));
    let absent = listed.difference(built).map(|name| {
        format!(
            "write {what} {name} in malloc-ebpf and run `cargo xtask ebpf`, or drop it from malloc-common/src/maps.rs"
        )
    });
    unlisted.chain(absent).map(|remedy| Violation::new(path, 1, "names", remedy)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_only_one_of_object_and_list_are_reported() {
        let shape = Shape {
            programs: [("malloc_call".to_owned(), 20)].into(),
            maps: ["CALLS".to_owned(), "SPARE".to_owned()].into(),
            btf: true,
        };
        assert!(compare("o", &shape, &["SPARE", "CALLS"], &["malloc_call"]).is_empty());
        let found = compare("o", &shape, &["CALLS", "LOST"], &["malloc_call", "free_call"]);
        let named = |name: &str| found.iter().filter(|violation| violation.remedy.contains(name)).count();
        assert_eq!((found.len(), named("SPARE"), named("LOST"), named("free_call")), (3, 1, 1, 1));
    }
}
