//! Where an entry probe belongs, told from a listing by another disassembler, and what is wrong with a chosen place.

use std::collections::BTreeSet;

use crate::independent::File;

/// Every address that a direct branch of the file leads to.
#[must_use]
pub fn targets(file: &File) -> BTreeSet<u64> {
    file.branches().into_iter().map(|branch| branch.to).collect()
}

/// The first instruction of the entry block that the kernel emulates, with the first `arguments` registers as they came and
/// no branch to it or past the entry; the entry where there is none.
#[must_use]
pub fn expected(file: &File, targets: &BTreeSet<u64>, entry: u64, arguments: usize) -> u64 {
    let mut at = entry;
    while let Some(next) = file.next(at) {
        if file.is_emulated(at) {
            let reached = targets.range(entry + 1..next.max(entry + 1)).next().is_some();
            return if reached { entry } else { at };
        }
        if file.leaves(at) || file.writes_argument(at, arguments) || file.moves_stack_unknown(at) {
            break;
        }
        at = next;
    }
    entry
}

/// What is wrong with a probe at `site` that stands for the entry of the function `name` at `entry`.
#[must_use]
pub fn faults(
    file: &File,
    targets: &BTreeSet<u64>,
    (entry, site): (u64, u64),
    arguments: usize,
    name: &str,
) -> Vec<String> {
    let mut faults = Vec::new();
    let Some(before) = file.between(entry, site) else {
        return vec![format!("{name}+{:#x} is no instruction", site.wrapping_sub(entry))];
    };
    for vaddr in before {
        if file.writes_argument(vaddr, arguments) {
            faults.push(format!("{name}: an argument is lost at {vaddr:#x}: {}", file.text(vaddr)));
        }
        if file.leaves(vaddr) {
            faults.push(format!("{name}: control leaves at {vaddr:#x}: {}", file.text(vaddr)));
        }
    }
    let end = file.next(site).unwrap_or(site + 1);
    if site != entry {
        let reached: Vec<_> = targets.range(entry + 1..end).collect();
        if !reached.is_empty() {
            faults.push(format!("{name}: branches lead to {reached:x?}, behind the entry and not past the probe"));
        }
    }
    let right = expected(file, targets, entry, arguments);
    if site != right {
        faults.push(format!("{name}+{:#x} is taken where +{:#x} is the first", site - entry, right - entry));
    }
    faults
}
