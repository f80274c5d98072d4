//! The public functions by calls.

use std::cmp::Reverse;

use super::{Style, heading, push};
use crate::aggregate::model::{FunctionCount, Process};
use crate::report::escape::printable;
use crate::report::units::{bytes, count};

/// Writes the section; nothing when calls are not measured or none was made.
pub(super) fn render(out: &mut String, process: &Process, style: Style) {
    let called = |function: &&FunctionCount| function.calls > 0 || function.failed > Some(0);
    let mut functions: Vec<&FunctionCount> = process.functions.iter().flatten().filter(called).collect();
    if functions.is_empty() {
        return;
    }
    functions.sort_by_key(|function| (Reverse(function.calls), function.function));
    let named: Vec<(String, &FunctionCount)> =
        functions.into_iter().map(|function| (full_name(process, function.function.name()), function)).collect();
    let width = named.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(24);
    let title =
        format!("{:<w$}{:>13}{:>12}{:>12}{:>10}", "Functions", "calls", "bytes", "mean", "failed", w = width + 2);
    heading(out, &title, style);
    for (name, function) in named {
        // A dash: the column has no meaning for this function.
        let dash = || "-".to_owned();
        let mean = function.bytes.and_then(|bytes| bytes.checked_div(function.calls));
        push(
            out,
            &format!(
                "  {name:<width$}{:>13}{:>12}{:>12}{:>10}",
                count(function.calls),
                function.bytes.map_or_else(dash, bytes),
                mean.map_or_else(dash, bytes),
                function.failed.map_or_else(dash, count)
            ),
        );
    }
}

/// `memalign (aligned_alloc)`: names of the same code cannot be told apart.
fn full_name(process: &Process, name: &str) -> String {
    let aliases = process.allocator.iter().flat_map(|allocator| &allocator.aliases).filter(|(of, _)| of == name);
    let aliases: Vec<String> = aliases.flat_map(|(_, names)| names).map(|alias| printable(alias, 40)).collect();
    if aliases.is_empty() { name.to_owned() } else { format!("{name} ({})", aliases.join(", ")) }
}
