//! What the service itself takes: at rest beside idle processes, and at work beside busy ones.
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Place;
use crate::{run::get, shell};

/// A crowd of processes and what the service may take beside it.
pub struct Crowd {
    pub name: &'static str,
    pub processes: u32,
    /// What `crowd` is told.
    kind: &'static str,
    /// Percent of one processor.
    pub cpu_percent_limit: f64,
    /// Resident memory, MB; `None`: no promise.
    pub resident_mb_limit: Option<f64>,
}

pub const CROWDS: &[Crowd] = &[
    Crowd { name: "at rest", processes: 500, kind: "rest", cpu_percent_limit: 0.1, resident_mb_limit: Some(30.0) },
    Crowd {
        name: "busy, a crossing a second each",
        processes: 1000,
        kind: "busy",
        cpu_percent_limit: 0.5,
        resident_mb_limit: None,
    },
];

/// Limits of the single answers.
pub const READY_LIMIT_MS: f64 = 500.0;
pub const STOP_LIMIT_MS: f64 = 2000.0;
pub const SNAPSHOT_LIMIT_MS: f64 = 20.0;

/// What was measured beside one crowd.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub ready_ms: f64,
    pub cpu_percent: f64,
    pub resident_mb: f64,
    pub snapshot_ms: f64,
    pub snapshot_p99_ms: f64,
    pub snapshot_mb: f64,
    pub stop_ms: f64,
}

/// Before the CPU time is taken: tables of the stacks that were named at the start are let go within this time.
const SETTLING: Duration = Duration::from_secs(80);
/// CPU time is taken over this time.
const WATCHED: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
const REQUESTS: usize = 100;

/// Compiles the crowd.
pub fn prepare(place: &Place) -> Result<()> {
    let source = place.folder.join("crowd.c");
    fs::write(&source, include_str!("crowd.c")).with_context(|| format!("cannot write {}", source.display()))?;
    shell::run(Command::new("cc").args(["-O1", "-o"]).arg(place.folder.join("crowd")).arg(&source))
}

/// Starts a crowd and the service, and measures.
pub fn measure(place: &Place, crowd: &Crowd) -> Result<Figures> {
    let mut command = Command::new(place.folder.join("crowd"));
    command.args([&crowd.processes.to_string(), crowd.kind]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut processes = command.spawn().context("the crowd does not start")?;
    let result = gathered(&mut processes).and_then(|()| beside(place));
    // The children are killed when their parent ends, and that ends with its input.
    drop(processes.stdin.take());
    processes.wait().context("the crowd is gone")?;
    result
}

fn gathered(crowd: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(crowd.stdout.take().context("no pipe")?).read_line(&mut line)?;
    if line.trim() == "ready" { Ok(()) } else { bail!("the crowd says {line:?}: a limit of processes?") }
}

/// Starts the service on a port that is free; the process, and where it will listen.
pub fn start(place: &Place, more: &[&OsStr]) -> Result<(Child, String)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new(&place.daemon);
    command.args(["serve", "--listen", &listen]).args(more);
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((quiet.spawn().context("the daemon does not start")?, listen))
}

/// Waits until the service counts; `began` is its start.
pub fn wait_until_ready(listen: &str, began: Instant) -> Result<()> {
    while !get(listen, "/readyz").is_ok_and(|(status, _)| status == 200) {
        if began.elapsed() > PATIENCE {
            bail!("the service is not ready");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn beside(place: &Place) -> Result<Figures> {
    let began = Instant::now();
    let (mut daemon, listen) = start(place, &[])?;
    let figures = observe(&listen, daemon.id(), began);
    if figures.is_err() {
        let _ = daemon.kill();
    }
    let began = Instant::now();
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id())?).context("no process")?;
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    daemon.wait().context("the daemon is gone")?;
    Ok(Figures { stop_ms: milliseconds(began), ..figures? })
}

fn observe(listen: &str, pid: u32, began: Instant) -> Result<Figures> {
    wait_until_ready(listen, began)?;
    let ready_ms = milliseconds(began);
    thread::sleep(SETTLING);
    let (before, watched) = (cpu_ticks(pid)?, Instant::now());
    thread::sleep(WATCHED);
    let cpu_seconds = (cpu_ticks(pid)? - before) as f64 / 100.0;
    let cpu_percent = 100.0 * cpu_seconds / watched.elapsed().as_secs_f64();
    let resident_mb = resident_bytes(pid)? / 1e6;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        let (status, body) = get(listen, "/v1/snapshot")?;
        times.push(milliseconds(asked));
        bytes = body.len();
        if status != 200 {
            bail!("/v1/snapshot answers {status}");
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1)).copied().unwrap_or(0.0);
    Ok(Figures {
        ready_ms,
        cpu_percent,
        resident_mb,
        snapshot_ms: at(50),
        snapshot_p99_ms: at(99),
        snapshot_mb: bytes as f64 / 1e6,
        stop_ms: 0.0,
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// User and system time of a process, hundredths of a second.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon ended")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).context("no CPU time");
    Ok(field(11)? + field(12)?)
}

fn resident_bytes(pid: u32) -> Result<f64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).context("the daemon ended")?;
    let pages: f64 = statm.split(' ').nth(1).context("no memory")?.parse()?;
    Ok(pages * rustix::param::page_size() as f64)
}
