//! Every probe in Debian's builds of other allocators is where the exports, read another way, say, on an instruction that
//! the kernel can take, with the arguments in place.
#![cfg(feature = "archives")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use libc_tests::allocators::{PACKAGED, Packaged, meaning};
use libc_tests::archive::{ARCHES, Arch, versioned_package};
use libc_tests::independent::{Branch, File};
use libc_tests::sites;
use malloc_common::function::Function;
use malloc_common::site::Role;
use malloc_daemon::targets::decode::Execution;
use malloc_daemon::targets::{Located, analyse};

const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// The library of a package: the file itself, not a link to it.
fn library(unpacked: &Path, packaged: Packaged) -> Option<PathBuf> {
    let mut folders = vec![unpacked.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let (path, kind) = (entry.path(), entry.file_type().ok()?);
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && ((name.starts_with(packaged.library) && name.contains(".so"))
                    || (packaged.kind == "musl" && name == "libc.so"))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found.into_iter().next()
}

/// What is wrong with a result, sentence by sentence, and how many things were compared.
struct Judge<'a> {
    file: &'a File,
    located: &'a Located,
    kind: &'a str,
    branches: Vec<Branch>,
    targets: BTreeSet<u64>,
    compared: usize,
    wrong: Vec<String>,
}

impl Judge<'_> {
    fn check(&mut self, right: bool, what: impl FnOnce() -> String) {
        self.compared += 1;
        if !right {
            self.wrong.push(what());
        }
    }

    /// The functions that the names at each exported address stand for.
    fn expected(&self) -> BTreeMap<u64, BTreeSet<Function>> {
        let named = self.file.exports.iter().map(|(vaddr, names)| {
            (*vaddr, names.iter().filter_map(|name| meaning(self.kind, name)).collect::<BTreeSet<_>>())
        });
        named.filter(|(_, functions)| !functions.is_empty()).collect()
    }

    fn judge(&mut self) {
        let expected = self.expected();
        let (mut entries, mut transfers) = (BTreeMap::new(), BTreeSet::new());
        for hook in &self.located.hooks {
            match hook.role {
                Role::Call(function) => {
                    let entry = hook.vaddr - hook.offset_in_symbol;
                    entries.insert(entry, function);
                    let at = (entry, hook.vaddr);
                    let faults = sites::faults(self.file, &self.targets, at, function.arguments(), &hook.symbol);
                    self.compared += 1;
                    self.wrong.extend(faults);
                    let known = expected.get(&entry).is_none_or(|functions| functions.contains(&function));
                    self.check(known, || format!("{} is counted as {}", hook.symbol, function.name()));
                    let exported = self.file.exports.get(&entry).is_some_and(|names| names.contains(&hook.symbol));
                    self.check(exported, || format!("{} is not exported at {entry:#x}", hook.symbol));
                }
                Role::Transfer(function) => {
                    transfers.insert(hook.vaddr);
                    let branch = self.file.branch(hook.vaddr);
                    if let Some((branch, meant)) =
                        branch.and_then(|b| Some((b, expected.get(&self.file.destination(b.to))?)))
                    {
                        let right = !branch.conditional && meant.contains(&function);
                        self.check(right, || {
                            format!("the transfer at {:#x} is none to {}", hook.vaddr, function.name())
                        });
                    }
                }
                role => self.check(false, || format!("{role:?} is none of its roles")),
            }
            let (offset, emulated) = (self.file.offset(hook.vaddr), self.file.is_emulated(hook.vaddr));
            self.check(offset == Some(hook.file_offset), || format!("{:#x} lies elsewhere", hook.vaddr));
            let told = matches!(hook.execution, Execution::Emulated(_));
            self.check(told == emulated, || {
                format!("{}+{:#x} is told as {:?}", hook.symbol, hook.offset_in_symbol, hook.execution)
            });
        }
        for (vaddr, functions) in &expected {
            // One that only jumps to another of the same meaning is counted there.
            let mut at = *vaddr;
            let relayed = (0..4).any(|_| {
                at = self.relayed(at).unwrap_or(at);
                at != *vaddr && entries.get(&at).is_some_and(|function| functions.contains(function))
            });
            let counted = entries.get(vaddr).is_some_and(|function| functions.contains(function));
            let names = &self.file.exports[vaddr];
            self.check(counted || relayed, || format!("{names:?} is not probed"));
        }
        self.transfers(&entries, &transfers);
    }

    /// Where a function leads that does nothing but jump, behind a landing pad perhaps.
    fn relayed(&self, vaddr: u64) -> Option<u64> {
        let pads = [&[0xf3, 0x0f, 0x1e, 0xfa], &0xd503_245f_u32.to_le_bytes()];
        let at = if pads.iter().any(|pad| self.file.code(vaddr, 4) == *pad) { vaddr + 4 } else { vaddr };
        let jump = self.file.branch(at).filter(|branch| !branch.conditional && !branch.call)?;
        Some(self.file.destination(jump.to))
    }

    /// In an allocator's own library each direct branch from its code to a probed entry is a transfer, but for those of
    /// relays, which are not probed, and of functions that hand a product on.
    fn transfers(&mut self, entries: &BTreeMap<u64, Function>, transfers: &BTreeSet<u64>) {
        if self.kind == "musl" {
            return;
        }
        let owner = |at: u64| self.file.exports.range(..=at).next_back().map(|(start, _)| *start);
        let hands_on = |at: u64| {
            owner(at).is_some_and(|start| {
                let names = &self.file.exports[&start];
                let multiplies = names.iter().any(|name| name.contains("reallocarr") || name.contains("reallocn"));
                multiplies || (meaning_of(self.kind, names) && !entries.contains_key(&start))
            })
        };
        let lacking: Vec<_> = self
            .branches
            .iter()
            .filter(|branch| entries.contains_key(&self.file.destination(branch.to)) && !branch.conditional)
            .filter(|branch| !transfers.contains(&branch.from) && !hands_on(branch.from))
            // A loop back to a function's own entry is no call.
            .filter(|branch| owner(branch.from) != Some(branch.to))
            .copied()
            .collect();
        self.check(lacking.is_empty(), || format!("{lacking:x?} are transfers that are not seen"));
    }
}

fn meaning_of(kind: &str, names: &[String]) -> bool {
    names.iter().any(|name| meaning(kind, name).is_some())
}

/// `1.2.3` of `1.2.3-1`, `2.10` of `2.10-1+b2`, `2.0.9` of `2.0.9+ds-2`.
fn upstream(version: &str) -> &str {
    version.split(['-', '+', '~']).next().unwrap_or(version)
}

fn look(suite: &str, arch: Arch, packaged: Packaged) -> Result<(String, usize, Vec<String>), String> {
    let name = if suite == "bookworm" { packaged.bookworm } else { packaged.later };
    let (unpacked, version) = versioned_package(suite, arch, name)?;
    let path = library(&unpacked, packaged).ok_or("the package has no such library")?;
    let file = File::read(&path)?;
    let located = analyse(&*file.bytes, None).map_err(|error| error.to_string())?;
    let mut judge = Judge {
        file: &file,
        located: &located,
        kind: packaged.kind,
        branches: file.branches(),
        targets: sites::targets(&file),
        compared: 0,
        wrong: Vec::new(),
    };
    judge.check(located.kind.name() == packaged.kind, || format!("it is told as {:?}", located.kind));
    let told = located.version().map(str::to_owned);
    judge.check(told.as_deref().is_none_or(|told| upstream(&version).starts_with(told)), || {
        format!("it is told as version {told:?} of {version}")
    });
    judge.judge();
    let line =
        format!("{version}, told as {}, {} hooks", told.as_deref().unwrap_or("unidentified"), located.hooks.len());
    Ok((line, judge.compared, judge.wrong))
}

#[test]
fn the_probes_of_other_allocators_are_where_their_exports_say() {
    let mut failures = Vec::new();
    for (suite, arch) in SUITES.iter().flat_map(|suite| ARCHES.map(|arch| (*suite, arch))) {
        for packaged in PACKAGED {
            let column = format!("{} {suite}-{}", packaged.kind, arch.name);
            match look(suite, arch, packaged) {
                Ok((line, compared, wrong)) => {
                    println!("{column}: {line}, {} of {compared} items right", compared - wrong.len());
                    failures.extend(wrong.into_iter().map(|wrong| format!("{column}: {wrong}")));
                }
                Err(why) => failures.push(format!("{column} was not run: {why}")),
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
