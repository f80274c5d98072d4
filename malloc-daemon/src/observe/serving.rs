//! Finds the allocator that serves a process among the files that it maps.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::census::{Found, Serving};
use super::files::{Files, Known, MappedFile};
use crate::host::file::{FileKey, Root};
use crate::host::link_map;
use crate::host::maps::Mapping;
use crate::host::process::{self, Pid};
use crate::targets::discover::{self, CandidateKind};
use crate::targets::{Contents, ElfFacts};

/// Why a static program without symbols is not probed.
pub(super) const HIDDEN: &str = "it is a static program without symbols: what in it is malloc cannot be told";
/// After every place in a dynamic linker's list.
const OUT_OF_ORDER: usize = 1 << 16;

/// A library serves `malloc` by its name; the loader, which has a `malloc` of its own for its start, does not.
pub fn may_serve(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    CandidateKind::of_library(&name).is_some() || !name.windows(3).any(|part| part == b".so")
}

/// The allocator of a process: the first of the executable, another allocator's library, the C library that defines
/// `malloc`. Files not seen before are admitted, and `attach` is called for the one that serves.
pub fn serving(pid: Pid, files: &mut Files, attach: &mut dyn FnMut(&mut Files, FileKey)) -> Found {
    let maps = match process::maps(pid) {
        Ok(Some(maps)) => maps,
        Ok(None) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let code: Vec<_> = maps.iter().filter(|mapping| mapping.is_executable_file()).collect();
    let executable = process::exe(pid).ok().flatten().map(|exe| exe.path);
    let is_executable = |mapping: &Mapping| executable.as_deref() == Some(mapping.path().as_path());
    let mut why = None;
    for mapping in &code {
        if files.known(&place(mapping)).is_none()
            && let Err(error) = look_into(pid, mapping, is_executable(mapping), files)
        {
            why = Some(error);
        }
    }
    // The dynamic linker takes the first definition in its list. A static executable has none of its own.
    let order: Vec<_> = link_map::search_order(pid)
        .into_iter()
        .filter_map(|address| maps.iter().find(|m| (m.start..m.end).contains(&address)))
        .map(|mapping| (mapping.device, mapping.inode))
        .collect();
    let turn_of = |mapping: &Mapping, otherwise: usize| match is_executable(mapping) {
        true => 0,
        false => 1 + order.iter().position(|inode| *inode == (mapping.device, mapping.inode)).unwrap_or(otherwise),
    };
    let mut found: Vec<(usize, Serving)> = Vec::new();
    let mut strangers: Vec<(usize, String)> = Vec::new();
    for mapping in &code {
        let key = match files.known(&place(mapping)) {
            Some(Known::Allocator(key)) => key,
            Some(Known::Stranger) => {
                strangers.push((turn_of(mapping, 0), mapping.path().display().to_string()));
                continue;
            }
            _ => continue,
        };
        files.used(&key, (mapping.device, mapping.inode));
        files.shapes.learn(mapping.offset, mapping.end - mapping.start, key);
        if found.iter().any(|(_, held)| held.key == key) {
            continue;
        }
        let is_libc = files.get(&key).is_some_and(|p| p.located.kind.is_libc());
        // Where the list cannot be read, an allocator beside the C library was brought to serve instead of it.
        let turn = turn_of(mapping, OUT_OF_ORDER + usize::from(is_libc));
        let (mapped_at, mapped_offset) = (mapping.start, mapping.offset);
        found.push((turn, Serving { key, mapped_at, mapped_offset, also_mapped: Vec::new(), in_front: Vec::new() }));
    }
    found.sort_by_key(|(turn, _)| *turn);
    // All of them: an executable's own allocator may serve beside the C library's, and one that does not serve is
    // not entered.
    for (_, serving) in &found {
        attach(files, serving.key);
    }
    let also_mapped: Vec<FileKey> = found.iter().skip(1).map(|(_, serving)| serving.key).collect();
    match (found.into_iter().next(), strangers.first(), why) {
        (Some((turn, serving)), ..) => {
            let in_front = strangers.into_iter().filter(|(its, _)| *its < turn).map(|(_, path)| path).collect();
            Ok(Some(Serving { also_mapped, in_front, ..serving }))
        }
        (None, _, Some(why)) => Err(why),
        (None, Some((_, path)), None) => Err(format!("its malloc is that of {path}, which is no allocator known here")),
        (None, None, None) => match code.iter().find(|mapping| is_executable(mapping)) {
            Some(mapping) if hides_its_functions(pid, mapping) => Err(HIDDEN.to_owned()),
            _ => Ok(None),
        },
    }
}

fn hides_its_functions(pid: Pid, mapping: &Mapping) -> bool {
    matches!(discover::open_mapping(pid, mapping), Ok(Some(file)) if Contents.hides_its_functions(&file))
}

/// Learns what a mapped file is: the executable and what is called like an allocator may serve whatever they hold, any
/// other library only when its content shows which allocator it is. What merely defines `malloc` may well pass its
/// calls on to the one behind it, which counts them.
fn look_into(pid: Pid, mapping: &Mapping, is_executable: bool, files: &mut Files) -> Result<(), String> {
    let name = mapping.file_name();
    // The dynamic linker of glibc has a malloc for its own start, also where it was told to run the program and is the
    // executable.
    let is_linker = name.windows(3).any(|part| part == b".so")
        && [&b"ld-"[..], b"ld64.", b"ld.so"].iter().any(|start| name.starts_with(start));
    let by_name = CandidateKind::of_library(name).is_some() || (is_executable && !is_linker);
    let mut known = Known::Nothing;
    if by_name || !is_linker {
        match discover::open_mapping(pid, mapping) {
            Ok(Some(file)) if files.get(&file.key).is_some() => known = Known::Allocator(file.key),
            Ok(Some(file)) if Contents.defines_malloc(&file) => {
                if by_name || Contents.is_known_allocator(&file) {
                    let key = files.admit(file, Root::Process(pid)).map_err(|error| error.to_string())?;
                    known = Known::Allocator(key);
                } else {
                    known = Known::Stranger;
                }
            }
            Ok(Some(_)) => {}
            // The process or the mapping is gone: nothing was learnt.
            Ok(None) => return Ok(()),
            Err(error) if by_name => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    files.remember(place(mapping), known);
    Ok(())
}

fn place(mapping: &Mapping) -> MappedFile {
    MappedFile { device: mapping.device, inode: mapping.inode, path: mapping.path.clone() }
}
