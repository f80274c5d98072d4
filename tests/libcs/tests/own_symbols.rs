//! Other allocators, judged by the symbols of their own builds. What a distribution's library is stripped of, the archive of
//! the same source package still has; mimalloc, whose packages hold no archive, is built from its source.
//!
//! - The archive is linked whole into a library or program of its own, which is located in with its full symbol table and
//!   after `strip`: the same probes, cookies and version. Each entry is held against the full table as `nm` prints it: the
//!   probe lies in the function of its name. Each transfer lies in a function of that table, and branches to a probed entry.
//! - jemalloc's archive holds the very objects of Debian's library: for each function that is probed in the stripped library, the
//!   archive has one of that name, that length and those bytes, fields left out that the linker fills.
//!
//! Not compared: the code of Debian's libraries of gperftools, since libtool compiles an archive's objects apart from a
//! library's, and of mimalloc. Their probes are held against their exports.
#![cfg(feature = "archives")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libc_tests::archive::{ARCHES, versioned_package, workplace};
use libc_tests::compare::places;
use libc_tests::independent::File;
use malloc_common::site::Role;
use malloc_daemon::targets::{Located, analyse};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, SymbolKind};

const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// One allocator's archive in a package of Debian's.
#[derive(Clone, Copy)]
struct Archive {
    kind: &'static str,
    package: &'static str,
    file: &'static str,
    flags: &'static [&'static str],
}

/// How a library is linked of it.
const LIBRARY: [&str; 1] = ["-shared"];

const ARCHIVES: [Archive; 2] = [
    Archive { kind: "jemalloc", package: "libjemalloc-dev", file: "libjemalloc_pic.a", flags: &LIBRARY },
    // Its objects are for executables; exporting all of it leaves what `strip` leaves of a library.
    Archive {
        kind: "tcmalloc",
        package: "libgoogle-perftools-dev",
        file: "libtcmalloc_minimal.a",
        flags: &["-pie", "-rdynamic"],
    },
];

/// mimalloc's source as its crate has it: its own names alone, and those of the C library, too.
const MIMALLOCS: [&[&str]; 4] = [&[], &["override"], &["v2"], &["v2", "override"]];

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{:?}: {}", command.get_program(), told.lines().last().unwrap_or_default())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Links the archive whole; the result, and the same without symbols.
fn linked(path: &Path, flags: &[&str], place: &Path) -> Result<[PathBuf; 2], String> {
    let (main, whole, stripped) = (place.join("main.c"), place.join("whole"), place.join("stripped"));
    // A library exports the allocator's functions alone.
    let program = if flags == LIBRARY { "" } else { "int main(void) { return 0; }\n" };
    fs::write(&main, program).map_err(|error| error.to_string())?;
    let mut linker = Command::new("c++");
    linker.args(flags).arg("-o").arg(&whole).args(["-x", "c"]).arg(&main).args(["-x", "none"]);
    linker.arg("-Wl,--whole-archive").arg(path).arg("-Wl,--no-whole-archive");
    // A later release's archive may ask for what this one's libraries lack: nothing is run.
    run(linker.args(["-Wl,--unresolved-symbols=ignore-all", "-lpthread", "-ldl", "-lm"]))?;
    run(Command::new("strip").arg(&whole).arg("-o").arg(&stripped))?;
    Ok([whole, stripped])
}

/// The functions of a full symbol table, as `nm` prints it: address, size, name.
fn functions(path: &Path) -> Result<Vec<(u64, u64, String)>, String> {
    let text = run(Command::new("nm").args(["--print-size", "--defined-only"]).arg(path))?;
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    Ok(text
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [vaddr, size, "T" | "t" | "W" | "w" | "i", name] = words[..] else { return None };
            Some((number(vaddr)?, number(size)?, name.to_owned()))
        })
        .collect())
}

/// What is wrong with what is told of a library that has its symbols.
fn against_symbols(located: &Located, file: &File, functions: &[(u64, u64, String)]) -> (usize, Vec<String>) {
    let (mut compared, mut wrong) = (0, Vec::new());
    let mut check = |holds: bool, what: String| {
        compared += 1;
        if !holds {
            wrong.push(what);
        }
    };
    let holding = |vaddr: u64| functions.iter().filter(move |(start, size, _)| (*start..start + size).contains(&vaddr));
    let entries: BTreeSet<u64> = located
        .hooks
        .iter()
        .filter(|hook| matches!(hook.role, Role::Call(_)))
        .map(|hook| hook.vaddr - hook.offset_in_symbol)
        .collect();
    for hook in &located.hooks {
        let entry = hook.vaddr - hook.offset_in_symbol;
        match hook.role {
            Role::Call(_) => {
                let named = holding(hook.vaddr).any(|(start, _, name)| *start == entry && *name == hook.symbol);
                check(named, format!("the probe at {:#x} is not in {}", hook.vaddr, hook.symbol));
            }
            Role::Transfer(_) => {
                let to = file.branch(hook.vaddr).map(|branch| file.destination(branch.to));
                let leads = to.is_some_and(|to| entries.contains(&to));
                check(leads, format!("the branch at {:#x} leads to no entry", hook.vaddr));
                check(holding(hook.vaddr).next().is_some(), format!("{:#x} is in no function", hook.vaddr));
            }
            role => check(false, format!("{role:?} is none of its roles")),
        }
    }
    (compared, wrong)
}

/// The code of each function of an archive, and which of its bytes the linker fills.
fn code_of(archive: &Path, place: &Path) -> Result<BTreeMap<String, Vec<Option<u8>>>, String> {
    let members = place.join("members");
    fs::create_dir_all(&members).map_err(|error| error.to_string())?;
    let archive = archive.canonicalize().map_err(|error| error.to_string())?;
    run(Command::new("ar").arg("x").arg(archive).current_dir(&members))?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&members).map_err(|error| error.to_string())?.flatten() {
        let bytes = read(&entry.path())?;
        let member = ElfFile64::<LittleEndian>::parse(&*bytes).map_err(|error| error.to_string())?;
        for symbol in member.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global()) {
            let (Some(index), Ok(name)) = (symbol.section_index(), symbol.name()) else { continue };
            let section = member.section_by_index(index).map_err(|error| error.to_string())?;
            let data = section.data().map_err(|error| error.to_string())?;
            let mut code: Vec<Option<u8>> = data.iter().copied().map(Some).collect();
            for (at, relocation) in section.relocations() {
                let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
                // The linker may put a shorter way for a load or call through the table of addresses: its opcode, too.
                let (before, width) = match r_type.0 {
                    1 => (0, 8),
                    9 | 41 | 42 => (3, 4),
                    _ => (0, 4),
                };
                let at = at as usize;
                code.iter_mut().take(at + width).skip(at.saturating_sub(before)).for_each(|byte| *byte = None);
            }
            let (start, size) = (symbol.address() as usize, symbol.size() as usize);
            found.insert(name.to_owned(), code.get(start..start + size).unwrap_or_default().to_vec());
        }
    }
    Ok(found)
}

/// Compares the functions that are probed in Debian's stripped library with those of the archive.
fn against_archive(suite: &str, version: &str, archive: &Path, place: &Path) -> Result<(usize, Vec<String>), String> {
    let (unpacked, library_version) = versioned_package(suite, ARCHES[0], "libjemalloc2")?;
    if library_version != version {
        return Err(format!("the library is {library_version}, the archive {version}"));
    }
    let path = unpacked.join("usr/lib").join(ARCHES[0].triplet).join("libjemalloc.so.2");
    let (file, archived) = (File::read(&path)?, code_of(archive, place)?);
    let located = analyse(&*file.bytes, None).map_err(|error| error.to_string())?;
    let (mut compared, mut wrong) = (0, Vec::new());
    for hook in located.hooks.iter().filter(|hook| matches!(hook.role, Role::Call(_))) {
        let entry = hook.vaddr - hook.offset_in_symbol;
        compared += 1;
        let Some(code) = archived.get(&hook.symbol).filter(|code| !code.is_empty()) else {
            wrong.push(format!("the archive has no {}", hook.symbol));
            continue;
        };
        let size = located.functions.iter().find(|function| function.vaddr == entry).map(|function| function.size);
        let real = file.code(entry, code.len());
        let same =
            real.len() == code.len() && code.iter().zip(real).all(|(mine, real)| mine.is_none_or(|mine| mine == *real));
        if size != Some(code.len() as u64) || !same {
            wrong.push(format!("{} is other code in the archive ({size:?} and {} bytes)", hook.symbol, code.len()));
        }
    }
    if compared < 10 {
        wrong.push(format!("only {compared} functions are probed"));
    }
    Ok((compared, wrong))
}

/// Locates in what is linked of an archive, with its symbols and without; what was compared, for people.
fn judged(kind: &str, path: &Path, flags: &[&str], place: &Path) -> Result<(String, Vec<String>), String> {
    let [whole, stripped] = linked(path, flags, place)?;
    let (named, bare) = (File::read(&whole)?, read(&stripped)?);
    let truth = analyse(&*named.bytes, None).map_err(|error| error.to_string())?;
    let told = analyse(&*bare, None).map_err(|error| error.to_string())?;
    let (compared, mut wrong) = against_symbols(&told, &named, &functions(&whole)?);
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    check(told.kind.name() == kind, format!("it is told as {:?}", told.kind));
    check(told.kind == truth.kind, format!("{:?} with symbols, {:?} without", truth.kind, told.kind));
    check(compared > 12, format!("only {compared} things are told"));
    let (mine, real): (BTreeSet<_>, BTreeSet<_>) =
        (places(&told).into_iter().collect(), places(&truth).into_iter().collect());
    check(mine == real, format!("without symbols other probes: {:x?}", mine.symmetric_difference(&real)));
    let version = told.version().unwrap_or("unidentified");
    Ok((format!("told as {version}, {} probes, {compared} held against its symbols", told.hooks.len()), wrong))
}

fn anew(place: &Path) -> Result<(), String> {
    // What an earlier run left may be of another version.
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place).map_err(|error| error.to_string())
}

fn look(suite: &str, archive: Archive) -> Result<(String, Vec<String>), String> {
    let (unpacked, version) = versioned_package(suite, ARCHES[0], archive.package)?;
    let path = unpacked.join("usr/lib").join(ARCHES[0].triplet).join(archive.file);
    let place = unpacked.join("judged");
    anew(&place)?;
    let (line, mut wrong) = judged(archive.kind, &path, archive.flags, &place)?;
    let mut line = format!("{version}: {line}");
    if archive.kind == "jemalloc" {
        let (functions, more) = against_archive(suite, &version, &path, &place)?;
        line += &format!(", {functions} functions against Debian's library");
        wrong.extend(more);
    }
    Ok((line, wrong))
}

/// Builds the package around mimalloc with these features; where its archive lies.
fn mimalloc(features: &[&str], place: &Path) -> Result<PathBuf, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs/mimalloc-victim/Cargo.toml");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--release", "--message-format=json", "--manifest-path"]).arg(manifest);
    cargo.args(["--features", &features.join(",")]).arg("--target-dir").arg(place);
    let told = run(&mut cargo)?;
    let messages = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = |message: &serde_json::Value| {
        let of = message["package_id"].as_str()?.contains("libmimalloc-sys");
        let folder = message["out_dir"].as_str()?;
        of.then(|| Path::new(folder).join("libmimalloc.a")).filter(|archive| archive.exists())
    };
    messages.filter_map(|message| built(&message)).next().ok_or_else(|| "cargo tells no archive".to_owned())
}

fn look_into_mimalloc(features: &[&str]) -> Result<(String, Vec<String>), String> {
    let place = workplace().join("mimalloc");
    let archive = mimalloc(features, &place)?;
    let judgement = place.join("judged");
    anew(&judgement)?;
    judged("mimalloc", &archive, &LIBRARY, &judgement)
}

#[test]
fn what_a_static_program_calls_of_its_allocator_is_the_programs() {
    let place = workplace().join("mimalloc-static");
    let archive = mimalloc(&[], &place.join("built")).unwrap();
    let (main, program) = (place.join("main.c"), place.join("program"));
    let source = "void *mi_malloc(unsigned long); void mi_free(void *); int main(void) { mi_free(mi_malloc(9)); }\n";
    fs::write(&main, source).unwrap();
    run(Command::new("cc").arg("-static-pie").arg("-o").arg(&program).arg(&main).arg(&archive)).unwrap();
    let located = analyse(&*read(&program).unwrap(), None).unwrap();
    assert_eq!(located.kind.name(), "mimalloc");
    let own = functions(&program).unwrap().into_iter().find(|(_, _, name)| name == "main").unwrap();
    let in_main = |vaddr: u64| (own.0..own.0 + own.1).contains(&vaddr);
    let within: Vec<_> = located.hooks.iter().filter(|hook| in_main(hook.vaddr)).collect();
    assert!(within.is_empty(), "{within:?}");
    assert!(located.hooks.iter().any(|hook| matches!(hook.role, Role::Transfer(_))), "its inner calls are not");
}

#[test]
fn what_is_told_of_other_allocators_is_what_the_symbols_of_their_builds_say() {
    let mut failures = Vec::new();
    let packaged = SUITES.iter().flat_map(|suite| ARCHIVES.map(|archive| (*suite, archive)));
    let looked = packaged
        .map(|(suite, archive)| (format!("{} of {suite}", archive.kind), look(suite, archive)))
        .chain(MIMALLOCS.map(|features| (format!("mimalloc with {features:?}"), look_into_mimalloc(features))));
    for (column, result) in looked {
        match result {
            Ok((line, wrong)) => {
                println!("{column}: {line}, {} wrong", wrong.len());
                failures.extend(wrong.into_iter().map(|wrong| format!("{column}: {wrong}")));
            }
            Err(why) => failures.push(format!("{column} was not run: {why}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
