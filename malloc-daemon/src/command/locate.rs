//! `locate`: where the allocator of a file or a process is, and where probes go.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use object::ReadCache;
use rustix::io::Errno;

use super::subject::handle;
use super::{INCOMPLETE, write_output};
use crate::cli::Locate;
use crate::host::HostError;
use crate::host::debug_files::debug_file;
use crate::host::file::{FileError, Root, TargetFile, open_in_root};
use crate::host::process::{self, Pid};
use crate::report::locate::{self as report, OtherFile, Process, Subject};
use crate::report::printable;
use crate::targets::discover::{Candidate, candidates};
use crate::targets::locate::{Evidence, evidence};
use crate::targets::symbols::Source;
use crate::targets::{Contents, ElfError, Located};

/// Characters of a path or a sentence that a process chose.
const LONG: usize = 1024;

/// Looks and reports.
pub fn run(args: &Locate) -> anyhow::Result<ExitCode> {
    let (subject, located, evidence) = match (&args.what.file, args.what.pid) {
        (Some(path), _) => of_file(path)?,
        (None, Some(pid)) => of_process(pid)?,
        (None, None) => bail!("name a file or a process"),
    };
    let document = report::document(&subject, &located, &evidence);
    let bytes = if args.json { report::json(&document) } else { report::text(&document).into_bytes() };
    write_output(Path::new("-"), &bytes)?;
    Ok(if document.complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

fn of_file(path: &Path) -> anyhow::Result<(Subject, Located, Evidence)> {
    let absolute = std::path::absolute(path).with_context(|| format!("{}: no such path", path.display()))?;
    let file = open_in_root(Root::Host, &absolute).map_err(|error| cannot_open(path, error))?;
    let file = file.with_context(|| format!("there is no file {}; name a library or an executable", path.display()))?;
    let shown = Contents.show(&file, Root::Host);
    let (located, evidence) = shown.map_err(|error| anyhow!("{}", refusal(path, &error)))?;
    if located.hooks.is_empty() {
        let why = located.missing.first().map(|missing| missing.why.clone());
        let advice = why
            .filter(|_| Contents.hides_its_functions(&file))
            .unwrap_or_else(|| "name the file that does, usually the libc that it loads".to_owned());
        bail!("{} defines no malloc by any table; {advice}", path.display());
    }
    let subject =
        Subject { path: absolute.display().to_string(), debug_file: used(&located, Root::Host), process: None };
    Ok((subject, located, evidence))
}

fn of_process(pid: u32) -> anyhow::Result<(Subject, Located, Evidence)> {
    // Held to the end: the number cannot pass to another process meanwhile.
    let _held = handle(pid)?;
    let gone = || anyhow!("process {pid} has ended");
    let stat = process::stat(Pid(pid))?.ok_or_else(gone)?;
    if stat.state.has_ended() {
        return Err(gone());
    }
    let found = candidates(Pid(pid))?.ok_or_else(gone)?;
    if found.files.is_empty() {
        if let Some(unseen) = found.unseen.first() {
            bail!("{}", printable(&unseen.to_string(), LONG));
        }
        bail!("process {pid} has no program of its own: it is a part of the kernel, or is ending");
    }
    let root = Root::Process(Pid(pid));
    let mut serving = Vec::new();
    let mut other_files: Vec<OtherFile> =
        found.unseen.iter().map(|unseen| other(&unseen.reason.to_string(), "it cannot be opened")).collect();
    let mut refused = None;
    for candidate in found.files {
        let path = candidate.path.display().to_string();
        match Contents.locate(&candidate.file, root) {
            Ok(located) if !located.hooks.is_empty() => serving.push((candidate, located)),
            Ok(_) => other_files.push(other(&path, "it defines no malloc")),
            Err(error) => {
                refused.get_or_insert_with(|| refusal(&candidate.path, &error));
                other_files.push(other(&path, &error.to_string()));
            }
        }
    }
    let files = serving.len();
    let Some(chosen) = chosen(&serving) else {
        match (refused, found.unseen.first()) {
            (Some(refusal), _) => bail!("process {pid}: {refusal}"),
            (None, Some(unseen)) => bail!("{}", printable(&unseen.to_string(), LONG)),
            (None, None) => bail!("process {pid} maps no file that is known to define malloc; depth syscall shows it"),
        }
    };
    let (candidate, located) = serving.swap_remove(chosen);
    other_files
        .extend(serving.iter().map(|(rest, _)| other(&rest.path.display().to_string(), "the chosen one serves")));
    let process = Process {
        pid,
        comm: stat.comm,
        deleted: candidate.deleted,
        why: why(files, &located).to_owned(),
        load_bias: load_bias(&candidate, &located),
        other_files,
    };
    let debug_file = used(&located, root);
    let evidence = evidence(&ReadCache::new(candidate.file.reader()), &located)?;
    let subject = Subject { path: candidate.path.display().to_string(), debug_file, process: Some(process) };
    Ok((subject, located, evidence))
}

/// An allocator of another kind serves instead of the C library's, wherever it lies: as the observer has it.
fn chosen(serving: &[(Candidate, Located)]) -> Option<usize> {
    let rank = |located: &Located| located.kind.is_libc();
    serving.iter().enumerate().min_by_key(|(index, (_, located))| (rank(located), *index)).map(|(index, _)| index)
}

fn why(files: usize, located: &Located) -> &'static str {
    match (files, &located.kind) {
        (1, _) => "the only file it maps that defines malloc",
        (_, kind) if kind.is_libc() => "the first of several that it maps",
        _ => "an allocator that is not the C library's serves before it",
    }
}

fn load_bias(candidate: &Candidate, located: &Located) -> u64 {
    let Some(hook) = located.hooks.first() else { return 0 };
    let start = candidate.mapped_at.wrapping_sub(candidate.mapped_offset);
    start.wrapping_add(hook.file_offset).wrapping_sub(hook.vaddr)
}

fn other(path: &str, why: &str) -> OtherFile {
    OtherFile { path: path.to_owned(), why: why.to_owned() }
}

/// The debug file that told of the internals: found again where it was found before.
fn used(located: &Located, root: Root) -> Option<String> {
    let id = located.build_id.as_ref().filter(|_| located.located_by == Source::DebugFile)?;
    let file: TargetFile = debug_file(&id.to_string(), root).ok()??;
    Some(file.path.display().to_string())
}

fn cannot_open(path: &Path, error: FileError) -> anyhow::Error {
    let path = path.display();
    match error {
        FileError::NotRegular { .. } => anyhow!("{path} is not a regular file; name a library or an executable"),
        FileError::Host(HostError::Read { source, .. }) if Errno::from_io_error(&source) == Some(Errno::LOOP) => {
            anyhow!("{path} leads through a link that is not followed; name the file that it leads to")
        }
        // The cause stands in its text already.
        error => anyhow!("{error}"),
    }
}

fn refusal(path: &Path, error: &ElfError) -> String {
    let path = printable(&path.display().to_string(), LONG);
    match error {
        ElfError::NotElf => format!("{path} is no ELF file; name a library or an executable"),
        ElfError::ThirtyTwoBit => format!("{path} is a 32-bit program; only 64-bit programs are supported"),
        ElfError::UnsupportedMachine { .. } => format!("{path}: {error}; only x86_64 and aarch64 are decoded"),
        ElfError::Malformed { .. } => format!("{path}: {error}; it may be truncated, so install it anew"),
        ElfError::TooLarge { .. } | ElfError::TooSlow { .. } => format!("{path}: {error}"),
    }
}
