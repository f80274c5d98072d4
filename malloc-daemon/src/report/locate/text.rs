//! `locate` for people: what was found first, then the functions, then the probes by depth.

use std::fmt::Write;

use super::{DepthProbes, Document, Probe, STRIPPED_REMEDY, StaticArgument};
use crate::report::escape::printable;

/// Characters of a name out of a file: symbols of C++ are longer, glibc's are not.
const NAME: usize = 64;
/// Characters of a path or a sentence.
const LONG: usize = 1024;
/// Columns between two columns.
const GAP: usize = 2;

/// The document as aligned text.
#[must_use]
pub fn text(document: &Document) -> String {
    let mut out = String::new();
    line(&mut out, &printable(&document.path, LONG));
    out.push('\n');
    facts(&mut out, document);
    if !document.functions.is_empty() {
        out.push('\n');
        functions(&mut out, document);
    }
    if !document.checks.is_empty() {
        out.push('\n');
        checks(&mut out, document);
    }
    for depth in &document.depths {
        out.push('\n');
        probes(&mut out, depth);
    }
    if !document.static_probes.is_empty() {
        out.push('\n');
        static_probes(&mut out, document);
    }
    if document.depths.iter().flat_map(|depth| &depth.hooks).any(is_stepped) {
        out.push('\n');
        line(&mut out, "!  single-stepped: the kernel runs a copy of the instruction, and a hit costs about ten times");
        line(
            &mut out,
            "   as much as one on an instruction that it emulates. Public functions and _int_malloc are probed",
        );
        line(&mut out, "   there only with --stepped.");
    }
    if document.allocator.kind == "glibc" && document.allocator.located_by == "exports" {
        out.push('\n');
        line(&mut out, STRIPPED_REMEDY);
    }
    if !document.notes.is_empty() {
        out.push('\n');
        line(&mut out, "Notes");
        for note in &document.notes {
            line(&mut out, &format!("  {}", printable(note, LONG)));
        }
    }
    out
}

fn facts(out: &mut String, document: &Document) {
    let mut rows = Vec::new();
    let mut fact = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(process) = &document.process {
        fact("process", format!("{} ({})", process.pid, printable(&process.comm, NAME)));
        fact(
            "chosen",
            format!("{}{}", printable(&process.why, LONG), if process.deleted { "; deleted since" } else { "" }),
        );
        fact("loaded at", format!("addresses below + {:#x}", process.load_bias));
        for other in &process.other_files {
            fact("not chosen", format!("{}: {}", printable(&other.path, LONG), printable(&other.why, LONG)));
        }
    }
    let allocator = &document.allocator;
    let or_unknown =
        |value: &Option<String>| value.as_ref().map_or_else(|| "unknown".to_owned(), |v| printable(v, 160));
    fact(
        "allocator",
        match allocator.kind {
            "glibc" => format!("glibc, version {}", or_unknown(&allocator.version)),
            "unknown" => "not glibc: only its public functions are known".to_owned(),
            kind => format!("{kind}, version {}: only its public functions are probed", or_unknown(&allocator.version)),
        },
    );
    fact(
        "machine",
        match document.can_be_probed_here {
            true => document.machine.clone(),
            false => format!("{}: it cannot be probed on this machine, which is of another kind", document.machine),
        },
    );
    fact("build id", allocator.build_id.as_ref().map_or_else(|| "none".to_owned(), |id| printable(id, 160)));
    if allocator.kind == "glibc" {
        fact(
            "internals",
            match (allocator.located_by, &allocator.debug_file) {
                ("symtab", _) => "found by the file's own symbol table (.symtab)".to_owned(),
                ("debug_data", _) => "found by the file's compressed symbol table (.gnu_debugdata)".to_owned(),
                ("debug_file", Some(path)) => format!("found by its debug file {}", printable(path, LONG)),
                ("debug_file", None) => "found by its debug file".to_owned(),
                ("usdt" | "inferred", _) => "found by what the code does: the file is stripped".to_owned(),
                _ => "not found: the file names its exported functions alone".to_owned(),
            },
        );
        fact(
            "mp_",
            match &document.mp {
                None => "not found: thresholds are not read".to_owned(),
                Some(mp) => format!("{:#x}{}, {}", mp.address, object(document, "mp_"), layout(mp.layout)),
            },
        );
        fact(
            "main_arena",
            match document.main_arena {
                None => "not found".to_owned(),
                Some(at) => format!("{at:#x}{}", object(document, "main_arena")),
            },
        );
    }
    table(out, &rows, &[false, false]);
}

fn object(document: &Document, name: &str) -> String {
    let Some(object) = document.objects.iter().find(|object| object.name == name) else { return String::new() };
    let place = object.file_offset.map_or_else(|| "not in the file".to_owned(), |at| format!("file offset {at:#x}"));
    format!(", {place}, found by {}", object.source)
}

fn layout(name: &str) -> String {
    match name.strip_prefix("glibc_") {
        Some(versions) => format!("layout of glibc {}", versions.replace('_', " ")),
        None => "layout unknown: thresholds are not read".to_owned(),
    }
}

fn functions(out: &mut String, document: &Document) {
    line(out, &format!("Functions: {}", document.functions.len()));
    let mut rows = vec![row(["NAME", "ADDRESS", "BYTES", "FILE OFFSET", "FOUND BY", "ALIASES"])];
    for function in &document.functions {
        let aliases: Vec<String> = function.aliases.iter().map(|alias| printable(alias, NAME)).collect();
        rows.push(vec![
            printable(&function.name, NAME),
            format!("{:#x}", function.address),
            function.size_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
            format!("{:#x}", function.file_offset),
            function.source.to_owned(),
            aliases.join(" "),
        ]);
    }
    table(out, &rows, &[false, true, true, true, false, false]);
}

fn checks(out: &mut String, document: &Document) {
    let failed = document.checks.iter().filter(|check| !check.holds).count();
    let state = if failed == 0 { "all hold".to_owned() } else { format!("{failed} FAILED") };
    line(out, &format!("Cross-checks by the file itself: {}, {state}", document.checks.len()));
    let mut rows = Vec::new();
    for check in &document.checks {
        let verdict = if check.holds { "holds" } else { "FAILED" };
        rows.push(row([&printable(&check.of, NAME), verdict, check.what]));
    }
    table(out, &rows, &[false, false, false]);
}

fn probes(out: &mut String, depth: &DepthProbes) {
    let state = if depth.complete { "" } else { ", incomplete" };
    let plural = if depth.hooks.len() == 1 { "probe" } else { "probes" };
    line(out, &format!("Depth {}: {} {plural}{state}", depth.depth, depth.hooks.len()));
    if !depth.hooks.is_empty() {
        let mut rows = vec![row(["ROLE", "INSTRUCTION AT", "FILE OFFSET", "INSTRUCTION", "COST", "TO MP_"])];
        rows.extend(depth.hooks.iter().map(probe));
        table(out, &rows, &[false, false, true, false, false, true]);
    }
    for lack in &depth.missing {
        line(out, &format!("  missing: {}: {}", printable(&lack.what, NAME), printable(&lack.why, LONG)));
    }
}

fn probe(probe: &Probe) -> Vec<String> {
    let mnemonic = printable(&probe.instruction, 16);
    vec![
        probe.function.map_or_else(|| probe.role.to_owned(), |function| format!("{} {function}", probe.role)),
        format!("{}+{:#x}", printable(&probe.symbol, NAME), probe.offset_in_symbol),
        format!("{:#x}", probe.file_offset),
        if probe.disassembly.is_empty() { mnemonic } else { printable(&probe.disassembly, NAME) },
        if is_stepped(probe) { "single-stepped !".to_owned() } else { "emulated".to_owned() },
        probe.mp_distance.map_or_else(
            || "-".to_owned(),
            |distance| format!("{}{:#x}", if distance < 0 { '-' } else { '+' }, distance.unsigned_abs()),
        ),
    ]
}

fn static_probes(out: &mut String, document: &Document) {
    line(out, &format!("Static probes of the allocator: {}", document.static_probes.len()));
    let mut rows = vec![row(["NAME", "ADDRESS", "FILE OFFSET", "ARGUMENTS"])];
    for probe in &document.static_probes {
        let arguments: Vec<String> = probe.arguments.iter().map(argument).collect();
        rows.push(vec![
            printable(&probe.name, NAME),
            format!("{:#x}", probe.address),
            format!("{:#x}", probe.file_offset),
            arguments.join(" "),
        ]);
    }
    table(out, &rows, &[false, true, true, false]);
}

fn argument(argument: &StaticArgument) -> String {
    match (&argument.place, &argument.unreadable) {
        (Some(place), _) => printable(place, NAME),
        (None, Some(text)) => format!("unreadable:{}", printable(text, NAME)),
        (None, None) => "unreadable".to_owned(),
    }
}

fn is_stepped(probe: &Probe) -> bool {
    probe.execution == "single_stepped"
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Rows with columns as wide as their longest cell; `right` says which are aligned to the right.
fn table(out: &mut String, rows: &[Vec<String>], right: &[bool]) {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..right.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut text = " ".repeat(GAP);
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            // Writing to a String cannot fail.
            let _ = if *right { write!(text, "{cell:>width$}") } else { write!(text, "{cell:<width$}") };
            text.push_str(&" ".repeat(GAP));
        }
        line(out, text.trim_end());
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
