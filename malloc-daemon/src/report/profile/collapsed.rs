//! Folded stacks: a line each, the outermost frame first, then its weight; what flame graphs are drawn from.

use std::collections::BTreeMap;

use super::{Weight, cut_of, name_of, told};
use crate::aggregate::model::{Snapshot, Stack};
use crate::report::printable;

/// One line for each stack of each name, by name and stack; lines that stand for nothing are left out.
///
/// The weights of a name sum to its crossings (or their bytes): what no stack stands for is a line of its own.
#[must_use]
pub fn collapsed(snapshot: &Snapshot, weight: Weight) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |line: String, calls: u64, bytes: u64| {
        let sum = lines.entry(line).or_default();
        *sum = sum.saturating_add(if weight == Weight::Calls { calls } else { bytes });
    };
    for told in told(snapshot) {
        let root = part(&printable(&told.process.comm, 32));
        for share in told.stacks {
            add(folded(&root, &share.stack), share.calls, share.bytes);
        }
        add(format!("{root};[no stack]"), told.rest.0, told.rest.1);
    }
    let lines = lines.iter().filter(|(_, weight)| **weight > 0);
    lines.map(|(line, weight)| format!("{line} {weight}\n")).collect()
}

fn folded(root: &str, stack: &Stack) -> String {
    let mut line = root.to_owned();
    let outermost = cut_of(stack).into_iter();
    for name in outermost.chain(stack.frames.iter().rev().map(name_of)) {
        line.push(';');
        line.push_str(&part(&name));
    }
    line
}

/// A semicolon separates frames, so none may have one.
fn part(name: &str) -> String {
    name.replace(';', ":")
}
