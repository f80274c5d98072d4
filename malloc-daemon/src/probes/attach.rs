//! Attaches loaded programs; dropping what it returns detaches them.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::perf_event::{PerfEventConfig, PerfEventLink, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::trace_point::TracePointLink;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{PerfEvent, Program, ProgramError, RawTracePoint, TracePoint, UProbe};

use super::object::Object;
use super::syscall::{Site, attach_multi_uprobe};

/// Which processes a probe counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every process that maps the file, now or later.
    AllProcesses,
    /// One process, not its children.
    Process(u32),
}

/// The probes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProbes {
    /// A path by which the kernel finds the file now.
    pub file: PathBuf,
    /// Program name and its sites.
    pub programs: Vec<(&'static str, Vec<Site>)>,
    /// Which processes.
    pub scope: Scope,
}

/// Why a probe is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object has no such program.
    #[error("the eBPF object has no program {0}")]
    NoProgram(String),
    /// The kernel refuses a uprobe.
    #[error("cannot attach {program} to {file}: {error}")]
    Uprobe {
        /// Program.
        program: String,
        /// File.
        file: String,
        /// The kernel's answer.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel refuses a tracepoint.
    #[error("cannot attach {program} to the tracepoint {tracepoint}: {error}{}", refusal(error))]
    Tracepoint {
        /// Program.
        program: String,
        /// Tracepoint.
        tracepoint: String,
        /// The kernel's answer.
        error: Box<ProgramError>,
    },
    /// The kernel refuses a perf event.
    #[error("cannot count page faults: {0}")]
    Faults(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl AttachError {
    /// Whether the process the probes were for has ended.
    #[must_use]
    pub fn is_of_an_ended_process(&self) -> bool {
        let Self::Uprobe { error, .. } = self else { return false };
        let code = match error.downcast_ref::<io::Error>() {
            Some(error) => error.raw_os_error(),
            None => match error.downcast_ref::<ProgramError>() {
                Some(ProgramError::SyscallError(failed)) => failed.io_error.raw_os_error(),
                _ => None,
            },
        };
        code == Some(rustix::io::Errno::SRCH.raw_os_error())
    }
}

/// What the system said, with the remedy for a refusal that `CAP_PERFMON` does not help against.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::SyscallError(failed) = error else { return String::new() };
    let remedy = if failed.io_error.kind() == io::ErrorKind::PermissionDenied {
        "; where kernel.perf_event_paranoid is above 2, set it to 2 or run with CAP_SYS_ADMIN"
    } else {
        ""
    };
    format!(": {}{remedy}", failed.io_error)
}

/// An attached group of probes.
#[derive(Debug)]
#[allow(dead_code, reason = "held for their drop: closing a link detaches it")]
pub enum Attached {
    /// One link per program, each with many sites.
    Multi(Vec<OwnedFd>),
    /// One link per site.
    Single(Vec<UProbeLink>),
    /// Tracepoints.
    Tracepoints(Vec<TracePointLink>),
    /// Raw tracepoints.
    Raw(Vec<aya::programs::raw_trace_point::RawTracePointLink>),
    /// Perf events, one on each processor.
    Perf(Vec<PerfEventLink>),
}

/// Attaches the probes of one file.
///
/// # Errors
///
/// See [`AttachError`]; what was attached before the error is detached.
pub fn attach_file(object: &mut Object, probes: &FileProbes) -> Result<Attached, AttachError> {
    touch(probes);
    if object.multi.is_empty() { attach_single(object, probes) } else { attach_multi(&object.multi, probes) }
}

/// Reads one byte of every page that gets a probe: a probe that goes into a page that is not in the page cache
/// made the kernel warn once (6.18, ext4).
fn touch(probes: &FileProbes) {
    use std::os::unix::fs::FileExt;
    if let Ok(file) = std::fs::File::open(&probes.file) {
        for site in probes.programs.iter().flat_map(|(_, sites)| sites) {
            let _ = file.read_at(&mut [0], site.file_offset);
        }
    }
}

fn uprobe_error(program: &str, file: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AttachError {
    AttachError::Uprobe { program: program.to_owned(), file: file.display().to_string(), error: error.into() }
}

/// The programs whose links hold many sites, for a thread that attaches and detaches by itself.
#[derive(Debug)]
pub struct MultiPrograms(BTreeMap<&'static str, OwnedFd>);

impl MultiPrograms {
    /// Of a loaded object; `None` where the kernel has no such links.
    #[must_use]
    pub fn of(object: &Object) -> Option<Self> {
        let fds = object.multi.iter().map(|(name, fd)| Some((*name, fd.try_clone().ok()?)));
        fds.collect::<Option<BTreeMap<_, _>>>().filter(|programs| !programs.is_empty()).map(Self)
    }

    /// Attaches the probes of one file.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]; what was attached before the error is detached.
    pub fn attach(&self, probes: &FileProbes) -> Result<Attached, AttachError> {
        attach_multi(&self.0, probes)
    }
}

/// Links detached at one time: each waits for the kernel's readers, about 30 ms for a link with many sites and 100 ms for
/// one with a single site (Linux 6.18), and the waits overlap.
const DETACHERS: usize = 32;

/// Detaches many links together; those of one file one after the other, the last that was attached first.
pub fn detach_all(attached: Vec<Attached>) {
    let mut files: Vec<Vec<Link>> = Vec::new();
    let mut rest = Vec::new();
    for one in attached {
        match one {
            Attached::Multi(links) => files.push(links.into_iter().map(Link::Multi).collect()),
            Attached::Single(links) => files.extend(links.into_iter().map(|link| vec![Link::Single(link)])),
            other => rest.push(other),
        }
    }
    let each = files.len().div_ceil(DETACHERS).max(1);
    std::thread::scope(|scope| {
        while !files.is_empty() {
            let mut some = files.split_off(files.len().saturating_sub(each));
            let detach = move || {
                for links in &mut some {
                    while links.pop().is_some() {}
                }
            };
            // Without a thread it is done here.
            let _ = std::thread::Builder::new().name("detach".to_owned()).spawn_scoped(scope, detach);
        }
    });
    drop(rest);
}

#[allow(dead_code, reason = "held for their drop")]
enum Link {
    Multi(OwnedFd),
    Single(UProbeLink),
}

fn attach_multi(programs: &BTreeMap<&'static str, OwnedFd>, probes: &FileProbes) -> Result<Attached, AttachError> {
    let pid = match probes.scope {
        Scope::AllProcesses => None,
        Scope::Process(pid) => Some(pid),
    };
    let mut links = Vec::new();
    for (name, sites) in probes.programs.iter().filter(|(_, sites)| !sites.is_empty()) {
        let program = programs.get(name).ok_or_else(|| AttachError::NoProgram((*name).to_owned()))?;
        let link = attach_multi_uprobe(program.as_fd(), &probes.file, sites, pid)
            .map_err(|error| uprobe_error(name, &probes.file, error))?;
        links.push(link);
    }
    Ok(Attached::Multi(links))
}

fn attach_single(object: &mut Object, probes: &FileProbes) -> Result<Attached, AttachError> {
    let scope = match probes.scope {
        Scope::AllProcesses => UProbeScope::AllProcesses,
        Scope::Process(pid) => UProbeScope::OneProcess(
            NonZeroU32::new(pid)
                .ok_or_else(|| uprobe_error("uprobe", &probes.file, io::Error::from(io::ErrorKind::InvalidInput)))?,
        ),
    };
    let mut links = Vec::new();
    for (name, sites) in &probes.programs {
        let program: &mut UProbe = object
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| AttachError::NoProgram((*name).to_owned()))?;
        for site in sites {
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(site.file_offset),
                cookie: Some(site.cookie),
            };
            let link = program
                .attach(point, &probes.file, scope)
                .and_then(|id| program.take_link(id))
                .map_err(|error| uprobe_error(name, &probes.file, error))?;
            links.push(link);
        }
    }
    Ok(Attached::Single(links))
}

/// The system calls by which memory comes and goes.
pub const SYSCALLS: &[&str] = &["mmap", "munmap", "mremap", "brk"];

/// Attaches the tracepoints of these system calls, two of each. Needs a mounted tracefs.
///
/// # Errors
///
/// See [`AttachError`].
pub fn attach_syscalls(object: &mut Object, syscalls: &[&str]) -> Result<Attached, AttachError> {
    let mut links = Vec::new();
    // Returns first: an entry whose return is not seen would leave a state behind.
    for edge in ["exit", "enter"] {
        for syscall in syscalls {
            let name = format!("{edge}_{syscall}");
            let tracepoint = format!("sys_{name}");
            let program: &mut TracePoint = object
                .ebpf
                .program_mut(&name)
                .and_then(|program| program.try_into().ok())
                .ok_or_else(|| AttachError::NoProgram(name.clone()))?;
            let link =
                program.attach("syscalls", &tracepoint).and_then(|id| program.take_link(id)).map_err(|error| {
                    AttachError::Tracepoint {
                        program: name.clone(),
                        tracepoint: format!("syscalls/{tracepoint}"),
                        error: Box::new(error),
                    }
                })?;
            links.push(link);
        }
    }
    Ok(Attached::Tracepoints(links))
}

/// Attaches the programs that follow the life of processes.
///
/// # Errors
///
/// See [`AttachError`].
pub fn attach_processes(object: &mut Object) -> Result<Attached, AttachError> {
    let mut links = Vec::new();
    for (name, tracepoint) in
        [("task_exit", "sched_process_exit"), ("task_exec", "sched_process_exec"), ("task_fork", "sched_process_fork")]
    {
        let program: &mut RawTracePoint = object
            .ebpf
            .program_mut(name)
            .and_then(|program: &mut Program| program.try_into().ok())
            .ok_or_else(|| AttachError::NoProgram(name.to_owned()))?;
        let link = program.attach(tracepoint).and_then(|id| program.take_link(id)).map_err(|error| {
            AttachError::Tracepoint {
                program: name.to_owned(),
                tracepoint: tracepoint.to_owned(),
                error: Box::new(error),
            }
        })?;
        links.push(link);
    }
    Ok(Attached::Raw(links))
}

/// Attaches the program that counts page faults of mapped chunks, on every processor that is online.
///
/// # Errors
///
/// See [`AttachError`].
pub fn attach_faults(object: &mut Object) -> Result<Attached, AttachError> {
    let program: &mut PerfEvent = object
        .ebpf
        .program_mut("fault")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| AttachError::NoProgram("fault".to_owned()))?;
    let cpus = aya::util::online_cpus().map_err(|(_, error)| AttachError::Faults(Box::new(error)))?;
    let mut links = Vec::new();
    for cpu in cpus {
        let event = PerfEventConfig::Software(SoftwareEvent::PageFaults);
        let link = program
            .attach(event, PerfEventScope::AllProcessesOneCpu { cpu }, SamplePolicy::Period(1), false)
            .and_then(|id| program.take_link(id))
            .map_err(|error| AttachError::Faults(Box::new(error)))?;
        links.push(link);
    }
    Ok(Attached::Perf(links))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_first_is_told_from_a_probe_that_is_refused() {
        let error =
            |errno: rustix::io::Errno| uprobe_error("call", Path::new("/lib/libc.so.6"), io::Error::from(errno));
        assert!(error(rustix::io::Errno::SRCH).is_of_an_ended_process());
        assert!(!error(rustix::io::Errno::INVAL).is_of_an_ended_process());
        assert!(!AttachError::NoProgram("call".to_owned()).is_of_an_ended_process());
    }
}
