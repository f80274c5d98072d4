//! Whom a command is about: a command started behind a gate, or a process that runs already.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use malloc_common::depth::Depth;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid as RawPid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::aggregate::model::Verdict;
use crate::host::process::{self, Pid};
use crate::observe::{Expected, Observer};
use crate::targets::Contents;
use crate::targets::command_files::{CommandError, Surroundings, command_files};

use super::GATE;

/// A command that waits behind its gate.
pub struct Gated {
    child: Child,
    gate: UnixStream,
}

/// Probes the files that a command will map; returns what will serve it, as far as that can be told.
pub fn probe_command(observer: &mut Observer, words: &[OsString]) -> anyhow::Result<Option<Expected>> {
    let (program, arguments) = words.split_first().context("no command is given")?;
    let environment: Vec<_> = std::env::vars_os().collect();
    let directory = std::env::current_dir().context("the working directory is gone")?;
    let surroundings = Surroundings { environment: &environment, directory: &directory };
    let files = match command_files(program, arguments, surroundings, &Contents) {
        Ok(files) => files,
        Err(
            error @ (CommandError::NotFound { .. }
            | CommandError::NotExecutable { .. }
            | CommandError::TooManyLevels { .. }),
        ) => return Err(error.into()),
        // The libraries are not known beforehand: the command is followed as it maps them, and the report says so.
        Err(error) => {
            observer.note(
                format!("{} before its start", program.display()),
                Depth::Sysmalloc,
                Verdict::Broken(error.to_string()),
            );
            return Ok(None);
        }
    };
    let mut serving = None;
    for path in files.executables.iter().chain(&files.libraries) {
        match observer.probe_path(path) {
            Ok(key) => serving = serving.or(key),
            Err(error) => {
                observer.note(path.display().to_string(), Depth::Sysmalloc, Verdict::Unsupported(error.to_string()));
            }
        }
    }
    let untold = || files.executables.last().and_then(|program| observer.untold(program)).map(Err);
    Ok(serving.map(Ok).or_else(untold))
}

impl Gated {
    /// Starts the command behind a gate, where it waits before its first instruction.
    pub fn start(words: &[OsString]) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("this program's own file is gone")?;
        let name = format!("malloc-daemon-gate-{}-{:x}", std::process::id(), crate::collect::boot_ns());
        let address = SocketAddr::from_abstract_name(&name).context("no socket")?;
        let listener = UnixListener::bind_addr(&address).context("no socket")?;
        let mut child =
            Command::new(own).args([GATE, &name, "--"]).args(words).spawn().context("cannot start a process")?;
        let process = handle(child.id())?;
        loop {
            let mut fds =
                [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("cannot wait for the command's process: {error}"),
            }
            if !fds[0].revents().contains(PollFlags::IN) {
                if fds[1].revents().contains(PollFlags::IN) {
                    let status = child.wait().context("the command is gone")?;
                    bail!("the command's process ended before it could start: {status}");
                }
                continue;
            }
            let (mut gate, _) = listener.accept().context("no connection from the command's process")?;
            // Abstract names are open to everybody on the machine.
            let peer =
                rustix::net::sockopt::socket_peercred(&gate).context("no connection from the command's process")?;
            if u32::try_from(peer.pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == child.id()) {
                gate.read_exact(&mut [0]).context("the command's process is gone")?;
                return Ok(Self { child, gate });
            }
        }
    }

    /// Its process id: the same before and after it becomes the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens the gate.
    pub fn open(mut self) -> anyhow::Result<Child> {
        self.gate.write_all(&[1]).context("the command's process is gone")?;
        Ok(self.child)
    }
}

/// Why watching ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process did.
    Process,
    /// The time is over.
    Time,
    /// The user or the system asked.
    Signal(i32),
}

/// Signals, as something that can be waited for.
pub struct Signals {
    streams: Vec<(i32, UnixStream)>,
}

impl Signals {
    /// Catches these signals from now on.
    pub fn catch(signals: &[i32]) -> anyhow::Result<Self> {
        let mut streams = Vec::new();
        for signal in signals {
            let (read, write) = UnixStream::pair().context("no socket pair")?;
            signal_hook::low_level::pipe::register(*signal, write).context("cannot catch signals")?;
            read.set_nonblocking(true).context("no socket pair")?;
            streams.push((*signal, read));
        }
        Ok(Self { streams })
    }

    /// The signals that came since the last call.
    pub fn came(&mut self) -> Vec<i32> {
        let mut buffer = [0; 64];
        self.streams
            .iter_mut()
            .filter_map(|(signal, stream)| stream.read(&mut buffer).is_ok_and(|n| n > 0).then_some(*signal))
            .collect()
    }
}

/// Watches a process until it ends, the time is over, or a signal that `ends` says ends it; calls `f` whenever events
/// wait and at least once in `tick`.
pub fn watch(
    observer: &mut Observer,
    process: Option<BorrowedFd<'_>>,
    signals: &mut Signals,
    deadline: Option<Instant>,
    tick: Duration,
    ends: &dyn Fn(i32) -> bool,
    f: &mut dyn FnMut(&mut Observer) -> bool,
) -> anyhow::Result<Ended> {
    loop {
        let due = observer.look_at_new().map_or(tick, |ns| Duration::from_nanos(ns).min(tick));
        let left = deadline.map_or(due, |deadline| deadline.saturating_duration_since(Instant::now()).min(due));
        let wait = Timespec::try_from(left).context("the time is too long")?;
        let process_ended = {
            let mut fds: Vec<_> =
                observer.wait_fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            fds.extend(
                signals.streams.iter().map(|(_, stream)| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)),
            );
            fds.extend(process.map(|process| PollFd::from_borrowed_fd(process, PollFlags::IN)));
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => bail!("cannot wait for events: {error}"),
            }
            process.is_some() && fds.last().is_some_and(|fd| fd.revents().contains(PollFlags::IN))
        };
        if f(observer) {
            return Ok(Ended::Time);
        }
        if process_ended {
            return Ok(Ended::Process);
        }
        if let Some(signal) = signals.came().into_iter().find(|signal| ends(*signal)) {
            return Ok(Ended::Signal(signal));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Ended::Time);
        }
    }
}

/// A handle that becomes readable when the process ends.
pub fn handle(pid: u32) -> anyhow::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(RawPid::from_raw).with_context(|| format!("{pid} is no process id"))?;
    if process::stat(Pid(pid)).ok().flatten().is_some_and(|stat| stat.state.has_ended()) {
        bail!("process {pid} has ended");
    }
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(fd),
        // A thread is INVAL, from 6.18 on NOENT.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
            match process::status(Pid(pid)) {
                Ok(Some(status)) if status.tgid != Pid(pid) => {
                    bail!("{pid} is a thread of process {}; name that", status.tgid)
                }
                _ => bail!("there is no process {pid}"),
            }
        }
        Err(error) => bail!("cannot watch process {pid}: {error}"),
    }
}

/// Passes a signal on to the command.
pub fn forward(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).ok().and_then(RawPid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
        // The command may just have ended: there is nobody to tell then.
        let _ = kill_process(pid, signal);
    }
}

/// The exit status that a shell would show for the command.
pub fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}
