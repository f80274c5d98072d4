//! The observers: nothing, this daemon at each depth, and other tools doing the same.
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Place, service};
use crate::shell;

/// One way to observe.
pub struct Observer {
    pub name: &'static str,
    /// Part of a quick run.
    pub quick: bool,
    /// Runs of a workload in one round: those that the verdicts compare closely have more.
    pub repeats: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Nothing,
    Daemon { depth: &'static str, blank: bool },
    Service,
    Bpftrace { histogram: bool },
    Perf { record: bool },
    Heaptrack,
}

const fn observer(name: &'static str, quick: bool, repeats: usize, kind: Kind) -> Observer {
    Observer { name, quick, repeats, kind }
}

/// The indices that the verdicts compare.
pub const ALONE: usize = 0;
pub const BLANK: usize = 1;
pub const SYSMALLOC: usize = 3;
pub const CALL: usize = 5;
pub const SERVICE: usize = 6;
/// From here on: other tools.
pub const OTHERS: usize = 7;

pub const OBSERVERS: &[Observer] = &[
    observer("nothing attached", true, 2, Kind::Nothing),
    observer("empty program, sites of `call`", true, 2, Kind::Daemon { depth: "call", blank: true }),
    observer("malloc-daemon `syscall`", false, 2, Kind::Daemon { depth: "syscall", blank: false }),
    observer("malloc-daemon `sysmalloc`", true, 2, Kind::Daemon { depth: "sysmalloc", blank: false }),
    observer("malloc-daemon `arena`", false, 2, Kind::Daemon { depth: "arena", blank: false }),
    observer("malloc-daemon `call`", true, 2, Kind::Daemon { depth: "call", blank: false }),
    observer("malloc-daemon `call` within the budget of `serve`", true, 2, Kind::Service),
    observer("bpftrace count", false, 1, Kind::Bpftrace { histogram: false }),
    observer("bpftrace histogram", true, 1, Kind::Bpftrace { histogram: true }),
    observer("perf stat, uprobes", false, 1, Kind::Perf { record: false }),
    observer("perf record, uprobes", false, 1, Kind::Perf { record: true }),
    observer("heaptrack, preloaded", true, 1, Kind::Heaptrack),
];

/// The service's configuration: every process is chosen, within the default budget.
const DEEP: &str = "[deep]\ncomm = [\"*\"]\n";
/// What is counted in each library.
const FUNCTIONS: [&str; 4] = ["malloc", "calloc", "realloc", "free"];
/// How long an observer may take to be ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// After its first sign of life: probes that are attached last.
const SETTLING: Duration = Duration::from_millis(300);
/// Group of the events that `perf probe` makes.
const GROUP: &str = "mdbench";
/// Where Debian puts the part of heaptrack that a program is started with.
const HEAPTRACK: &[&str] =
    &["/usr/lib/heaptrack/libheaptrack_preload.so", "/usr/lib64/heaptrack/libheaptrack_preload.so"];

/// An observer at work.
pub struct Running {
    child: Option<Child>,
    preload: Option<PathBuf>,
    /// Undone when it stops.
    events: bool,
    data: Option<PathBuf>,
}

impl Observer {
    /// The command, as the document shows it.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::Nothing => String::new(),
            Kind::Daemon { depth, blank } => {
                let blank = if blank { "MALLOC_DAEMON_BLANK=1 " } else { "" };
                format!("{blank}malloc-daemon record --all --depth {depth} -o /dev/null")
            }
            Kind::Service => "malloc-daemon serve --config FILE; in FILE: [deep] comm = ['*']".to_owned(),
            Kind::Bpftrace { .. } => format!("bpftrace -e '{}'", self.script(Path::new("LIB"))),
            Kind::Perf { record } => {
                let rest = if record { "perf record -a -e 'mdbench:*'" } else { "perf stat -a -e 'mdbench:*'" };
                format!("perf probe -x LIB -a mdbench:malloc=malloc (and calloc, realloc, free); {rest}")
            }
            Kind::Heaptrack => "LD_PRELOAD=libheaptrack_preload.so DUMP_HEAPTRACK_OUTPUT=/dev/null".to_owned(),
        }
    }

    /// Starts it and waits until it observes.
    pub fn start(&self, place: &Place) -> Result<Running> {
        let idle = Running { child: None, preload: None, events: false, data: None };
        match self.kind {
            Kind::Nothing => Ok(idle),
            Kind::Heaptrack => {
                let preload = HEAPTRACK.iter().map(PathBuf::from).find(|path| path.is_file());
                Ok(Running { preload: Some(preload.context("heaptrack is not installed")?), ..idle })
            }
            Kind::Daemon { depth, blank } => record(place, &["--all", "--depth", depth], blank),
            Kind::Service => {
                let config = place.folder.join("serve.toml");
                fs::write(&config, DEEP).with_context(|| format!("cannot write {}", config.display()))?;
                let (child, listen) = service::start(place, &["--config".as_ref(), config.as_os_str()])?;
                let running = Running { child: Some(child), ..idle };
                if let Err(error) = service::wait_until_ready(&listen, Instant::now()) {
                    running.stop()?;
                    return Err(error);
                }
                Ok(running)
            }
            Kind::Bpftrace { .. } => {
                installed("bpftrace")?;
                let mut command = Command::new("bpftrace");
                let script = self.script(&place.libc);
                command.args(["-e", &format!("{script} interval:ms:200 {{ printf(\"ready\\n\"); }}")]);
                started(command.stdout(Stdio::piped()).stderr(Stdio::null()), "ready", idle)
            }
            Kind::Perf { record } => {
                installed("perf")?;
                perf_events(&place.libc)?;
                let data = place.folder.join("perf.data");
                let mut command = Command::new("perf");
                match record {
                    true => command.args(["record", "--quiet", "-a", "-e", "mdbench:*", "-o"]).arg(&data),
                    false => command.args(["stat", "-a", "-e", "mdbench:*", "-o", "/dev/null"]),
                };
                let child = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn();
                let child = child.context("perf does not start")?;
                let mut running = Running { child: Some(child), preload: None, events: true, data: Some(data) };
                // It says nothing when it is ready.
                std::thread::sleep(Duration::from_secs(1));
                if let Some(status) = running.child.as_mut().and_then(|child| child.try_wait().ok()).flatten() {
                    delete_events();
                    bail!("perf ended at once with {status}");
                }
                Ok(running)
            }
        }
    }

    fn script(&self, library: &Path) -> String {
        let Kind::Bpftrace { histogram } = self.kind else { return String::new() };
        let probes = FUNCTIONS.map(|function| {
            let action = match (function, histogram) {
                (_, false) | ("free", _) => format!("@{function} = count();"),
                ("calloc", _) => "@calloc = hist(arg0 * arg1);".to_owned(),
                ("realloc", _) => "@realloc = hist(arg1);".to_owned(),
                _ => format!("@{function} = hist(arg0);"),
            };
            format!("uprobe:{}:{function} {{ {action} }}", library.display())
        });
        probes.join(" ")
    }
}

impl Running {
    /// Has a workload's program observed where that is done in the program itself.
    pub fn prepare(&self, command: &mut Command) {
        if let Some(preload) = &self.preload {
            command.env("LD_PRELOAD", preload).env("DUMP_HEAPTRACK_OUTPUT", "/dev/null");
        }
    }

    /// Ends it and takes its probes away.
    pub fn stop(mut self) -> Result<()> {
        let ended = self.child.take().map_or(Ok(()), end);
        if self.events {
            delete_events();
        }
        if let Some(data) = &self.data {
            let _ = fs::remove_file(data);
        }
        ended
    }
}

/// Records one process at depth `call`, or probes the same sites with the empty program.
pub fn record_process(place: &Place, pid: u32, blank: bool) -> Result<Running> {
    record(place, &["--pid", &pid.to_string(), "--depth", "call"], blank)
}

fn record(place: &Place, what: &[&str], blank: bool) -> Result<Running> {
    let mut command = Command::new(&place.daemon);
    command.arg("record").args(what).args(["-o", "/dev/null"]);
    if blank {
        command.env("MALLOC_DAEMON_BLANK", "1");
    }
    let idle = Running { child: None, preload: None, events: false, data: None };
    // "recording all processes", "recording process 7".
    started(command.stderr(Stdio::piped()), "recording ", idle)
}

fn installed(program: &str) -> Result<()> {
    shell::find(program).map(|_| ()).with_context(|| format!("{program} is not installed"))
}

/// Starts a command and waits for a line that begins with or holds `sign` on the stream that is piped.
fn started(command: &mut Command, sign: &'static str, idle: Running) -> Result<Running> {
    let mut child = command.stdin(Stdio::null()).spawn().context("it does not start")?;
    let (sender, receiver) = mpsc::channel();
    let stream: Option<Box<dyn std::io::Read + Send>> = match (child.stdout.take(), child.stderr.take()) {
        (Some(out), _) => Some(Box::new(out)),
        (None, Some(err)) => Some(Box::new(err)),
        (None, None) => None,
    };
    // Reads to the end, so that the observer never waits for a full pipe.
    std::thread::spawn(move || {
        let mut last = String::new();
        for line in stream.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            if line.contains(sign) {
                let _ = sender.send(Ok(()));
            }
            last = line;
        }
        let _ = sender.send(Err(last));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => {
            std::thread::sleep(SETTLING);
            Ok(Running { child: Some(child), ..idle })
        }
        Ok(Err(last)) => {
            let status = child.wait().context("it is gone")?;
            bail!("it ended with {status}: {last}")
        }
        Err(_) => {
            end(child)?;
            bail!("it was not ready after {} s", PATIENCE.as_secs())
        }
    }
}

/// Interrupts, waits, and kills what does not listen.
fn end(mut child: Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if child.try_wait().context("it is gone")?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().context("it cannot be killed")?;
    child.wait().context("it is gone")?;
    bail!("it did not end within {} s of an interrupt", PATIENCE.as_secs())
}

fn perf_events(library: &Path) -> Result<()> {
    delete_events();
    for function in FUNCTIONS {
        let event = format!("{GROUP}:{function}={function}");
        let mut command = Command::new("perf");
        command.arg("probe").arg("-x").arg(library).arg("-a").arg(&event);
        let output = command.output().context("perf does not start")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("perf probe {event}: {}", text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default());
        }
    }
    Ok(())
}

fn delete_events() {
    let _ = shell::capture(Command::new("perf").args(["probe", "-q", "-d", &format!("{GROUP}:*")]));
}

/// The version that a tool tells of itself.
pub fn version(program: &str) -> Option<String> {
    let text = shell::capture(Command::new(program).arg("--version"))?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_indices_name_what_the_verdicts_say() {
        assert_eq!(OBSERVERS[ALONE].name, "nothing attached");
        assert!(matches!(OBSERVERS[BLANK].kind, Kind::Daemon { depth: "call", blank: true }));
        assert!(matches!(OBSERVERS[SYSMALLOC].kind, Kind::Daemon { depth: "sysmalloc", blank: false }));
        assert!(matches!(OBSERVERS[CALL].kind, Kind::Daemon { depth: "call", blank: false }));
        assert!(matches!(OBSERVERS[SERVICE].kind, Kind::Service));
        let is_ours =
            |observer: &Observer| matches!(observer.kind, Kind::Daemon { .. } | Kind::Service | Kind::Nothing);
        assert!(!OBSERVERS[OTHERS..].iter().any(is_ours));
    }

    #[test]
    fn every_function_is_in_a_script() {
        let script = OBSERVERS[OTHERS + 1].script(Path::new("/a.so"));
        assert_eq!(script.matches("uprobe:").count(), 4);
        assert!(script.contains("uprobe:/a.so:calloc { @calloc = hist(arg0 * arg1); }"));
        assert!(script.contains("uprobe:/a.so:free { @free = count(); }"));
    }
}
