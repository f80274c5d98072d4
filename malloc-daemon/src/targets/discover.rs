//! Finds the files that serve `malloc` in running processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::host::HostError;
use crate::host::file::{FileError, Root, TargetFile, open_in_root, open_map_file};
use crate::host::maps::{Device, Mapping};
use crate::host::process::{self, Pid};
use crate::targets::Contents;

/// What a file is, by its name if that tells: its content decides what can be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// `libc.so.6`, `libc-2.31.so`
    Glibc,
    /// `ld-musl-x86_64.so.1`, `libc.so`
    Musl,
    /// `libjemalloc.so.2`
    Jemalloc,
    /// `libtcmalloc.so.4`, `libtcmalloc_minimal.so.4`
    Tcmalloc,
    /// `libmimalloc.so.2`
    Mimalloc,
    /// The main executable, which may contain an allocator.
    Executable,
    /// A library of any other name whose content is a known allocator's.
    ByContent,
}

impl CandidateKind {
    /// Judges a library by its file name.
    #[must_use]
    pub fn of_library(file_name: &[u8]) -> Option<Self> {
        let shared_object = |prefix: &[u8]| {
            let rest = file_name.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.windows(3).any(|part| part == b".so"))
        };
        match file_name {
            b"libc.so.6" => Some(CandidateKind::Glibc),
            name if name.starts_with(b"libc-2.") && name.ends_with(b".so") => Some(CandidateKind::Glibc),
            b"libc.so" => Some(CandidateKind::Musl),
            _ if shared_object(b"ld-musl-") || shared_object(b"libc.musl-") => Some(CandidateKind::Musl),
            _ if shared_object(b"libjemalloc") => Some(CandidateKind::Jemalloc),
            _ if shared_object(b"libtcmalloc") => Some(CandidateKind::Tcmalloc),
            _ if shared_object(b"libmimalloc") => Some(CandidateKind::Mimalloc),
            _ => None,
        }
    }
}

/// A file that a process maps as code and that may serve `malloc`.
#[derive(Debug)]
pub struct Candidate {
    /// What its name says.
    pub kind: CandidateKind,
    /// The path from the root of the process's mount namespace.
    pub path: PathBuf,
    /// The path no longer leads to the file.
    pub deleted: bool,
    /// The file itself.
    pub file: TargetFile,
    /// The first address of its first executable mapping in that process.
    pub mapped_at: u64,
    /// The file offset seen at that address, bytes.
    pub mapped_offset: u64,
    /// Device as /proc/PID/maps shows it; on some file systems not that of the file's key.
    pub device: Device,
    /// Inode as /proc/PID/maps shows it.
    pub inode: u64,
}

/// Something that could not be looked at, so that probes may be missing there.
#[derive(Debug, thiserror::Error)]
#[error("process {pid}: {reason}")]
pub struct Unseen {
    /// The process.
    pub pid: Pid,
    /// What happened.
    pub reason: UnseenReason,
}

/// Why a process or one of its files could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum UnseenReason {
    /// The process's facts are not readable.
    #[error(transparent)]
    Process(#[from] HostError),
    /// One file is not readable.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another file lies at the path of the mapped one, and only the path may be used here.
    #[error("{} was replaced, and opening the mapped file needs CAP_CHECKPOINT_RESTORE", path.display())]
    Replaced {
        /// The path from the root of the process's mount namespace.
        path: PathBuf,
    },
}

/// The candidates of one process.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Files that can be probed, in the order of their addresses.
    pub files: Vec<Candidate>,
    /// Files that could not be opened.
    pub unseen: Vec<Unseen>,
}

/// The candidates of one process; `None` when it vanished.
///
/// # Errors
/// [`HostError`] when its mappings cannot be read.
pub fn candidates(pid: Pid) -> Result<Option<Candidates>, HostError> {
    let Some(mapped) = mapped_candidates(pid)? else { return Ok(None) };
    let mut candidates = Candidates::default();
    for (kind, mapping) in mapped {
        match open(pid, kind, &mapping) {
            Ok(Some(candidate)) => {
                if kind != CandidateKind::ByContent || Contents.is_known_allocator(&candidate.file) {
                    candidates.files.push(candidate);
                }
            }
            // Nearly all libraries are no allocators: one that cannot be opened is not told of.
            Err(reason) if kind != CandidateKind::ByContent => candidates.unseen.push(Unseen { pid, reason }),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(Some(candidates))
}

/// The first executable mapping of each file, and what its name, or its being the main executable, makes of it.
fn mapped_candidates(pid: Pid) -> Result<Option<Vec<(CandidateKind, Mapping)>>, HostError> {
    let Some(maps) = process::maps(pid)? else { return Ok(None) };
    if maps.is_empty() {
        return Ok(Some(Vec::new()));
    }
    // A zombie loses its executable before its pid.
    let executable = process::exe(pid)?.map(|exe| exe.path);
    Ok(Some(choose(maps, executable.as_deref())))
}

fn choose(maps: Vec<Mapping>, executable: Option<&Path>) -> Vec<(CandidateKind, Mapping)> {
    let mut chosen: BTreeMap<(Device, u64), (CandidateKind, Mapping)> = BTreeMap::new();
    for mapping in maps.into_iter().filter(Mapping::is_executable_file) {
        let is_main = || executable.is_some_and(|path| path == mapping.path());
        let by_name = CandidateKind::of_library(mapping.file_name());
        let kind = by_name.or_else(|| is_main().then_some(CandidateKind::Executable));
        let kind = kind.unwrap_or(CandidateKind::ByContent);
        chosen.entry((mapping.device, mapping.inode)).or_insert((kind, mapping));
    }
    let mut chosen: Vec<_> = chosen.into_values().collect();
    chosen.sort_by_key(|(_, mapping)| mapping.start);
    chosen
}

/// Opens the mapped file itself, or where that is not possible what lies at its path, if that is the same file.
///
/// # Errors
/// Why there may be a file that is not seen; `None` when the process or its mapping vanished.
pub fn open_mapping(pid: Pid, mapping: &Mapping) -> Result<Option<TargetFile>, UnseenReason> {
    match open_map_file(pid, mapping.start..mapping.end, &mapping.path()) {
        Ok(Some(file)) => Ok(Some(file)),
        // Mappings are split and joined as the process runs; the file may be there still.
        Ok(None) | Err(FileError::Host(HostError::NotPermitted { .. })) => open_by_path(pid, mapping),
        Err(error) => Err(error.into()),
    }
}

fn open(pid: Pid, kind: CandidateKind, mapping: &Mapping) -> Result<Option<Candidate>, UnseenReason> {
    let file = open_mapping(pid, mapping)?;
    Ok(file.map(|file| Candidate {
        kind,
        path: mapping.path(),
        deleted: mapping.deleted,
        file,
        mapped_at: mapping.start,
        mapped_offset: mapping.offset,
        device: mapping.device,
        inode: mapping.inode,
    }))
}

/// The kernel shows paths from the root of the mount namespace: that is the process's own root in a container and this
/// daemon's for a process that only changed its root.
fn open_by_path(pid: Pid, mapping: &Mapping) -> Result<Option<TargetFile>, UnseenReason> {
    let path = mapping.path();
    for root in [Root::Process(pid), Root::Host] {
        match open_in_root(root, &path)? {
            Some(file) if file.key.ino == mapping.inode => return Ok(Some(file)),
            _ => {}
        }
    }
    match process::identity(pid)? {
        Some(_) => Err(UnseenReason::Replaced { path }),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::host::maps::mappings;

    #[test]
    fn allocators_are_known_by_the_names_distributions_give_them() {
        use CandidateKind::{Glibc, Jemalloc, Mimalloc, Musl, Tcmalloc};
        let kind = |name: &str| CandidateKind::of_library(name.as_bytes());
        for (kind_of_it, names) in [
            (Glibc, ["libc.so.6", "libc-2.31.so"]),
            (Musl, ["ld-musl-x86_64.so.1", "libc.so"]),
            (Jemalloc, ["libjemalloc.so.2", "libjemalloc.so"]),
            (Tcmalloc, ["libtcmalloc.so.4", "libtcmalloc_minimal.so.4.5.9"]),
            (Mimalloc, ["libmimalloc.so.2.1", "libmimalloc-secure.so.3"]),
        ] {
            for name in names {
                assert_eq!(kind(name), Some(kind_of_it), "{name}");
            }
        }
        for name in ["libcap.so.2", "libc++.so.1", "libcurl.so.4", "ld-linux-x86-64.so.2", "jemalloc.txt", ""] {
            assert_eq!(kind(name), None, "{name}");
        }
    }

    #[test]
    fn each_file_with_code_is_chosen_once_and_named_where_its_name_tells() {
        let text = b"1000-2000 r--p 00000000 fe:00 1 /bin/x\n2000-3000 r-xp 00001000 fe:00 1 /bin/x\n\
            5000-6000 r-xp 00002000 fe:00 1 /bin/x\n7000-8000 r-xp 00000000 fe:00 2 /lib/libm.so.6\n\
            8000-9000 r-xp 00000000 fe:00 3 /lib/libc.so.6\n9000-a000 r-xp 00000000 00:00 0 [vdso]\n";
        let chosen = choose(mappings(text).collect(), Some(Path::new("/bin/x")));
        let seen: Vec<_> = chosen.iter().map(|(kind, mapping)| (*kind, mapping.start, mapping.offset)).collect();
        let known = [
            (CandidateKind::Executable, 0x2000, 0x1000),
            (CandidateKind::ByContent, 0x7000, 0),
            (CandidateKind::Glibc, 0x8000, 0),
        ];
        assert_eq!(seen, known);
    }

    #[test]
    fn a_running_program_is_served_by_the_libc_it_maps() {
        let own = Pid(std::process::id());
        let candidates = candidates(own).unwrap().unwrap();
        let executable = candidates.files.iter().find(|file| file.kind == CandidateKind::Executable).unwrap();
        assert_eq!(executable.path, std::env::current_exe().unwrap());
        let libc = candidates.files.iter().find(|file| file.kind == CandidateKind::Glibc).unwrap();
        assert_eq!(libc.file.key.ino, libc.inode);
    }

    #[test]
    fn a_path_serves_only_while_it_leads_to_the_mapped_inode() {
        let own = Pid(std::process::id());
        let maps = process::maps(own).unwrap().unwrap();
        let mut libc = maps.into_iter().find(|mapping| mapping.file_name() == b"libc.so.6").unwrap();
        assert_eq!(open_by_path(own, &libc).unwrap().unwrap().key.ino, libc.inode);
        libc.inode += 1;
        assert!(matches!(open_by_path(own, &libc), Err(UnseenReason::Replaced { .. })));
        assert!(open_by_path(Pid(u32::MAX), &libc).unwrap().is_none());
    }

    #[test]
    fn a_program_deleted_while_it_runs_is_still_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deleted-cat");
        // By another process: nothing can execute what a forked child of a test beside this one holds open for writing.
        assert!(Command::new("cp").args(["--", "/bin/cat"]).arg(&path).status().unwrap().success());
        let mut child = Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // The answer shows that it is mapped: spawn returns in the middle of exec.
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        input.write_all(b"x").unwrap();
        output.read_exact(&mut [0]).unwrap();
        std::fs::remove_file(&path).unwrap();
        let candidates = candidates(Pid(child.id())).unwrap().unwrap();
        drop(input);
        child.wait().unwrap();
        if rustix::process::geteuid().is_root() {
            let executable = candidates.files.iter().find(|file| file.kind == CandidateKind::Executable);
            let executable = executable.unwrap_or_else(|| panic!("{candidates:?}"));
            assert!(executable.deleted && executable.path == path);
            assert_eq!(executable.file.key.size, std::fs::metadata("/bin/cat").unwrap().len());
        } else {
            assert!(matches!(candidates.unseen[0].reason, UnseenReason::Replaced { .. }));
        }
    }
}
