//! `record`: one command, one process, or all of them, then a report.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use malloc_common::depth::Depth;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::subject::{Ended, Gated, Signals, forward, handle, probe_command, shell_status, watch};
use super::{INCOMPLETE, recording, stderr_style, stdout_style, write_output};
use crate::aggregate::model::{End, Process, Snapshot};
use crate::cli::{Record, RecordFormat, Weight};
use crate::observe::{Observer, Selection};
use crate::report::{json, profile, text};

/// Rows of ended processes are collected, and free again, at least this often.
const TICK: Duration = Duration::from_millis(200);

/// Records and reports.
pub fn run(args: &Record) -> anyhow::Result<ExitCode> {
    check(args)?;
    // Before anything else: a report that cannot be written must not cost a recording.
    if let Some(output) = args.output.as_deref().filter(|output| *output != std::path::Path::new("-")) {
        std::fs::File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    }
    let mut signals = Signals::catch(&[SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    match (&args.whom.pid, args.whom.all) {
        (Some(pid), _) => {
            let depth = args.depth.unwrap_or(Depth::Call);
            let process = handle(*pid)?;
            let mut observer = Observer::start(recording(depth, Selection::Chosen, false, args.stepped))?;
            if depth > Depth::Syscall
                && let Err(why) = observer.probe_process(*pid, depth)
            {
                eprintln!("malloc-daemon: process {pid}: {why}; its system calls alone are recorded");
            }
            observer.choose(*pid)?;
            let name = crate::host::process::stat(crate::host::process::Pid(*pid)).ok().flatten();
            let name = name.map_or_else(String::new, |stat| format!(" ({})", crate::report::printable(&stat.comm, 64)));
            eprintln!("malloc-daemon: recording process {pid}{name} at depth {depth}; Ctrl-C ends it");
            let deadline = args.duration.map(|duration| Instant::now() + duration);
            watch_and_collect(&mut observer, Some(process.as_fd()), &mut signals, deadline)?;
            finish(args, &last(&mut observer))
        }
        (None, true) => {
            let depth = args.depth.unwrap_or(Depth::Sysmalloc);
            let mut observer = Observer::start(recording(depth, Selection::Everything, false, args.stepped))?;
            observer.probe_everything(&|| false)?;
            eprintln!("malloc-daemon: recording all processes at depth {depth}; Ctrl-C ends it");
            let deadline = args.duration.map(|duration| Instant::now() + duration);
            watch_and_collect(&mut observer, None, &mut signals, deadline)?;
            finish(args, &last(&mut observer))
        }
        (None, false) => command(args, &mut signals),
    }
}

/// What cannot be written is said before anything is recorded.
fn check(args: &Record) -> anyhow::Result<()> {
    let profile = matches!(args.format, RecordFormat::Collapsed | RecordFormat::Pprof);
    if profile && args.depth == Some(Depth::Syscall) {
        bail!("crossings are not told apart at depth syscall: ask for --depth sysmalloc or a deeper one");
    }
    if args.weight == Weight::Bytes && args.format != RecordFormat::Collapsed {
        bail!("--weight is for --format collapsed: the other formats have both");
    }
    let to_terminal = args.output.as_deref().is_none_or(|output| output == std::path::Path::new("-"));
    if args.format == RecordFormat::Pprof && to_terminal && std::io::stdout().is_terminal() {
        bail!("a profile is no text for a terminal: name a file with --output FILE");
    }
    Ok(())
}

/// The snapshot to report, with the stacks that were still being named.
fn last(observer: &mut Observer) -> Snapshot {
    observer.drain_events(&mut |_| {});
    observer.finish_naming();
    // Last of all: a heap is told as it is when the counts end.
    observer.collect();
    observer.finish_heaps();
    observer.collect()
}

fn watch_and_collect(
    observer: &mut Observer,
    process: Option<std::os::fd::BorrowedFd<'_>>,
    signals: &mut Signals,
    deadline: Option<Instant>,
) -> anyhow::Result<Ended> {
    let mut last = Instant::now();
    watch(observer, process, signals, deadline, TICK, &|_| true, &mut |observer| {
        observer.drain_events(&mut |_| {});
        // Not at every event: a build executes hundreds of programs a second.
        if last.elapsed() >= TICK {
            last = Instant::now();
            observer.collect();
        }
        false
    })
}

fn command(args: &Record, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let depth = args.depth.unwrap_or(Depth::Call);
    let mut observer = Observer::start(recording(depth, Selection::Chosen, false, args.stepped))?;
    let serving = match depth {
        Depth::Syscall => None,
        _ => probe_command(&mut observer, &args.whom.command)?,
    };
    let gated = Gated::start(&args.whom.command)?;
    let pid = gated.pid();
    if let Some(serving) = serving {
        observer.expect(pid, serving);
    }
    let process = handle(pid)?;
    observer.follow(pid)?;
    let mut child = gated.open()?;
    // The command's own time: attaching may take seconds.
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    loop {
        match watch_and_collect(&mut observer, Some(process.as_fd()), signals, deadline)? {
            Ended::Process => break,
            // The terminal sends these to the command as well; it decides what they mean.
            Ended::Signal(SIGINT | SIGQUIT) => {}
            Ended::Signal(signal) => forward(&child, signal),
            // The command runs on; the report covers its time up to here.
            Ended::Time => {
                report(args, &without_gate(last(&mut observer), pid))?;
                drop(observer);
                return Ok(ExitCode::from(shell_status(child.wait().context("the command is gone")?)));
            }
        }
    }
    let status = child.wait().context("the command is gone")?;
    report(args, &without_gate(last(&mut observer), pid))?;
    Ok(ExitCode::from(shell_status(status)))
}

/// Leaves out the image that waited behind the gate: it is this program, not the command.
fn without_gate(mut snapshot: Snapshot, pid: u32) -> Snapshot {
    let own = |process: &Arc<Process>| process.id.pid == pid;
    if let Some(first) = snapshot.processes.iter().position(own)
        && snapshot.processes[first].ended == Some(End::Replaced)
        && !snapshot.processes[first].exec_seen
        && snapshot.processes.iter().filter(|process| own(process)).count() > 1
    {
        snapshot.processes.remove(first);
        snapshot.complete = snapshot.losses.is_empty() && snapshot.processes.iter().all(|process| process.complete);
    }
    snapshot
}

fn finish(args: &Record, snapshot: &Snapshot) -> anyhow::Result<ExitCode> {
    report(args, snapshot)?;
    Ok(if snapshot.complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

fn report(args: &Record, snapshot: &Snapshot) -> anyhow::Result<()> {
    let to_file = args.output.clone();
    match args.format {
        RecordFormat::Json => {
            let bytes = json::to_vec(&json::incidents::recording(snapshot));
            write_output(&to_file.unwrap_or_else(|| PathBuf::from("-")), &bytes)
        }
        RecordFormat::Collapsed | RecordFormat::Pprof => {
            let weight = match args.weight {
                Weight::Calls => profile::Weight::Calls,
                Weight::Bytes => profile::Weight::Bytes,
            };
            let bytes = match args.format {
                RecordFormat::Pprof => profile::pprof(snapshot),
                _ => profile::collapsed(snapshot, weight).into_bytes(),
            };
            for caveat in profile::caveats(snapshot) {
                eprintln!("malloc-daemon: {caveat}");
            }
            write_output(&to_file.unwrap_or_else(|| PathBuf::from("-")), &bytes)
        }
        RecordFormat::Text => {
            let style = match to_file.as_deref() {
                None => stderr_style(),
                Some(path) if path == std::path::Path::new("-") => stdout_style(),
                Some(_) => super::style(false),
            };
            let text = if args.whom.all { text::table(snapshot, 40, style) } else { text::render(snapshot, style) };
            match to_file {
                None => {
                    eprint!("{text}");
                    Ok(())
                }
                Some(path) => write_output(&path, text.as_bytes()),
            }
        }
    }
}
