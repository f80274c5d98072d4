//! Runs the service under load for a long time and watches what must not grow.
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{run::get, shell, workspace::Workspace};

/// Programs that run again and again, one after the other on each of two threads, with their arguments.
const LOAD: [(&str, &[&str]); 4] = [
    ("crossings_storm", &["2000", "300000"]),
    ("threads", &["8", "2000"]),
    ("dynamic_threshold", &[]),
    ("fork_exec", &["/bin/true"]),
];

/// Each thread starts a program so often at most: with two of them half of the 60 programs a second whose ends the service
/// promises to tell for a minute.
const TURN: Duration = Duration::from_millis(66);

/// How the victims are compiled: as the kernel tests do it.
const FLAGS: [&str; 4] = ["-O1", "-g", "-fno-builtin", "-pthread"];

/// Between two looks at the daemon.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Resident memory may grow this fast over the second half, bytes an hour. What is told is an interval: it wavers by some
/// megabytes, so that half an hour tells some 16 MiB an hour from nothing, and a longer run less.
const GROWTH_BYTES_AN_HOUR: f64 = 4.0 * 1024.0 * 1024.0;

/// Parts of the second half that a trend is drawn through, and the quantile of Student's distribution at 0.975 with two
/// degrees of freedom less.
const PARTS: usize = 10;
const STUDENT: f64 = 2.306;

/// One look.
#[derive(Clone, Copy, Debug)]
struct Look {
    seconds: f64,
    resident_bytes: u64,
    files: usize,
    threads: usize,
    cpu_ms: u64,
    /// Losses of all reasons together.
    losses: u64,
}

/// Starts the service and its load, watches for `minutes`, and fails when something grew, was lost or ended.
///
/// Without `daemon` it builds one.
pub fn soak(workspace: &Workspace, minutes: u64, daemon: Option<&Path>) -> Result<()> {
    let built = workspace.daemon_binary();
    if daemon.is_none() {
        let build = ["build", "--locked", "--release", "--package", "malloc-daemon"];
        shell::run(shell::cargo().current_dir(&workspace.root).args(build))?;
    }
    let programs = compile(workspace)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("127.0.0.1:{port}");
    // What is on disk is written, read and bounded for as long.
    let history = tempfile::tempdir()?;
    let mut serve = shell::as_root(daemon.unwrap_or(&built), "start the daemon, which attaches probes to the kernel")?;
    serve
        .args(["serve", "--listen", &listen, "--comm", "threads", "--history"])
        .arg(history.path())
        .stderr(Stdio::inherit());
    let mut daemon = serve.spawn().context("cannot start the daemon")?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot take signals")?;
    }
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (programs, stop) = (programs.clone(), Arc::clone(&stop));
            thread::spawn(move || turns(&programs, &stop))
        })
        .collect();
    let watched = watch(&mut daemon, &listen, Duration::from_secs(60 * minutes), &stop);
    stop.store(true, Ordering::Relaxed);
    let turns: u64 = load.into_iter().filter_map(|thread| thread.join().ok()).sum();
    let health = health(&listen);
    rustix::process::kill_process(pid(&daemon)?, rustix::process::Signal::TERM)?;
    let ended = daemon.wait().context("cannot wait for the daemon")?;
    let looks = watched?;
    println!("the load ran {turns} programs");
    if !ended.success() {
        bail!("the daemon ended with {ended}");
    }
    judge(&looks, &health?)
}

fn compile(workspace: &Workspace) -> Result<Vec<(PathBuf, &'static [&'static str])>> {
    let folder = workspace.target.join("soak");
    fs::create_dir_all(&folder)?;
    let mut programs = Vec::new();
    for (name, arguments) in LOAD {
        let program = folder.join(name);
        let source = workspace.root.join("tests/programs").join(format!("{name}.c"));
        shell::run(Command::new("cc").args(FLAGS).arg("-o").arg(&program).arg(source))?;
        programs.push((program, arguments));
    }
    Ok(programs)
}

/// Runs the programs until told to stop; how many ran.
fn turns(programs: &[(PathBuf, &[&str])], stop: &AtomicBool) -> u64 {
    let mut ran = 0;
    for (program, arguments) in programs.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let next = Instant::now() + TURN;
        let run = Command::new(program).args(*arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
        ran += u64::from(run.is_ok_and(|status| status.success()));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    ran
}

fn watch(daemon: &mut Child, listen: &str, length: Duration, stop: &AtomicBool) -> Result<Vec<Look>> {
    let (start, id) = (Instant::now(), daemon.id());
    let mut looks = Vec::new();
    println!(
        "{:>8} {:>12} {:>6} {:>8} {:>9} {:>8} {:>8}",
        "seconds", "resident", "files", "threads", "cpu ms", "losses", "answers"
    );
    let mut answers = 0u64;
    while start.elapsed() < length && !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + LOOK_EVERY;
        if let Some(status) = daemon.try_wait()? {
            bail!("the daemon ended with {status} after {:.0} s", start.elapsed().as_secs_f64());
        }
        // Scraped and read as it would be, more often.
        for path in [
            "/v1/snapshot",
            "/v1/processes",
            "/metrics",
            "/v1/raises",
            "/v1/crossings",
            "/v1/health",
            // Its default, an hour, would give longer answers until the end.
            "/v1/history?from=-5m",
            "/",
        ] {
            answers += u64::from(get(listen, path).is_ok_and(|(status, _)| status == 200));
        }
        let losses = get(listen, "/v1/health").ok().and_then(|(_, body)| losses(&serde_json::from_str(&body).ok()?));
        if let (Some(losses), Some(look)) = (losses, look(id, start.elapsed().as_secs_f64())) {
            let look = Look { losses, ..look };
            println!(
                "{:>8.0} {:>12} {:>6} {:>8} {:>9} {losses:>8} {answers:>8}",
                look.seconds, look.resident_bytes, look.files, look.threads, look.cpu_ms
            );
            looks.push(look);
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(looks)
}

fn pid(child: &Child) -> Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(child.id().cast_signed()).context("the daemon has no process id")
}

fn look(pid: u32, seconds: f64) -> Option<Look> {
    let proc = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    // Fields 14 and 15 of the line, counted after the name, in ticks of 10 ms.
    let ticks: u64 =
        stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Some(Look {
        seconds,
        resident_bytes: number("VmRSS:")? * 1024,
        files: fs::read_dir(proc.join("fd")).ok()?.count(),
        threads: usize::try_from(number("Threads:")?).ok()?,
        cpu_ms: ticks * 10,
        losses: 0,
    })
}

fn health(listen: &str) -> Result<Value> {
    let (status, body) = get(listen, "/v1/health")?;
    if status != 200 {
        bail!("/v1/health answers {status} at the end");
    }
    Ok(serde_json::from_str(&body)?)
}

fn losses(health: &Value) -> Option<u64> {
    Some(health["losses"].as_array()?.iter().filter_map(|loss| loss["count"].as_u64()).sum())
}

/// The median of some figure: what is taken for an answer and given back after it, or a batch of probes being detached by
/// as many threads, is in some looks and not in others, and tells nothing of growth.
fn median(looks: &[Look], of: fn(&Look) -> f64) -> f64 {
    quantile(looks, 2, of)
}

/// The value that one in so many looks is below.
fn quantile(looks: &[Look], one_in: usize, of: fn(&Look) -> f64) -> f64 {
    let mut values: Vec<f64> = looks.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / one_in).copied().unwrap_or_default()
}

/// By how much the median of a figure is higher in the second half of these looks than in the first.
fn grown(looks: &[Look], of: fn(&Look) -> f64) -> f64 {
    let (first, second) = looks.split_at(looks.len() / 2);
    median(second, of) - median(first, of)
}

/// Bytes an hour by which memory grew, and how far the truth may be from that, 95 times in 100: the straight line through
/// the lower quartiles of the parts, under the answers that are being written.
fn slope(looks: &[Look]) -> (f64, f64) {
    let parts: Vec<(f64, f64)> = (0..PARTS)
        .filter_map(|n| looks.get(looks.len() * n / PARTS..looks.len() * (n + 1) / PARTS))
        .map(|part| (median(part, |look| look.seconds / 3600.0), quantile(part, 4, |look| look.resident_bytes as f64)))
        .collect();
    let count = parts.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| parts.iter().map(of).sum::<f64>() / count;
    let (hours, bytes) = (mean(|part| part.0), mean(|part| part.1));
    let spread: f64 = parts.iter().map(|part| (part.0 - hours).powi(2)).sum();
    let slope = parts.iter().map(|part| (part.0 - hours) * (part.1 - bytes)).sum::<f64>() / spread;
    let left: f64 = parts.iter().map(|part| (part.1 - bytes - slope * (part.0 - hours)).powi(2)).sum();
    (slope, STUDENT * (left / (count - 2.0) / spread).sqrt())
}

fn judge(looks: &[Look], health: &Value) -> Result<()> {
    // The first half fills caches and tables that have a ceiling.
    let second_half = looks.get(looks.len() / 2..).unwrap_or_default();
    let (Some(first), Some(last)) = (second_half.first(), second_half.last()) else {
        bail!("it was too short to judge")
    };
    if second_half.len() < PARTS {
        bail!("{} looks are too few to judge: run it for longer", looks.len());
    }
    let (growth, give) = slope(second_half);
    // System calls that were under way at the start are losses of the first look.
    let before = looks.first().map_or(0, |look| look.losses);
    let losses = losses(health).context("/v1/health tells no losses")?.saturating_sub(before);
    println!(
        "second half: resident {} to {} bytes, {growth:+.0} +- {give:.0} bytes an hour; files {} to {}; threads {} to {}; \
         {:.2} % of a CPU; {losses} losses; health {}",
        first.resident_bytes,
        last.resident_bytes,
        first.files,
        last.files,
        first.threads,
        last.threads,
        (last.cpu_ms - first.cpu_ms) as f64 / (last.seconds - first.seconds).max(0.001) / 10.0,
        health["status"]
    );
    let mut faults = Vec::new();
    if growth - give > GROWTH_BYTES_AN_HOUR {
        faults.push(format!("resident memory grows by {growth:.0} +- {give:.0} bytes an hour"));
    }
    // A connection or a process being looked at is open at one look and not at another.
    let (files, threads) =
        (grown(second_half, |look| look.files as f64), grown(second_half, |look| look.threads as f64));
    if files > 16.0 {
        faults.push(format!("open files grew by {files}"));
    }
    if threads > 4.0 {
        faults.push(format!("threads grew by {threads}"));
    }
    let broken = |probe: &&Value| probe["verdict"] == "broken";
    faults.extend(
        health["probes"].as_array().into_iter().flatten().filter(broken).map(|probe| format!("broken: {probe}")),
    );
    if losses > 0 {
        let occurred = |loss: &&Value| loss["count"] != 0;
        let of: Vec<&Value> = health["losses"].as_array().into_iter().flatten().filter(occurred).collect();
        faults.push(format!("{losses} losses: {of:?}"));
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(bytes: impl Fn(u64) -> u64) -> Vec<Look> {
        (0..100)
            .map(|n| Look {
                seconds: n as f64 * 5.0,
                resident_bytes: bytes(n),
                files: 20,
                threads: 5,
                cpu_ms: n,
                losses: 2,
            })
            .collect()
    }

    #[test]
    fn memory_that_grows_steadily_is_told_from_memory_that_wavers() {
        // 1 KiB every 5 s is 720 KiB an hour.
        let (growth, give) = slope(&looks(|n| 30_000_000 + n * 1024));
        assert!((growth - 737_280.0).abs() + give < 1.0, "{growth} +- {give}");
        // One look in seven meets an answer of 20 MB, most of them late.
        let answers = |n: u64| 30_000_000 + if n > 30 && n.is_multiple_of(7) { 20_000_000 } else { 0 };
        assert_eq!(slope(&looks(answers)), (0.0, 0.0));
        // Higher by 1 MB in some parts, the last among them.
        let wavers = |n: u64| 30_000_000 + if (n / 10).is_multiple_of(3) { 1_000_000 } else { 0 };
        let (growth, give) = slope(&looks(wavers));
        assert!(growth.abs() < give, "{growth} +- {give}");
        let health = serde_json::json!({"status": "ok", "losses": [{"reason": "x", "count": 2}]});
        let mut looks_of_last_moment = looks(|_| 30_000_000);
        looks_of_last_moment.last_mut().unwrap().threads = 40;
        assert!(judge(&looks_of_last_moment, &health).is_ok(), "a batch of probes is being detached");
        let mut more_and_more = looks(|_| 30_000_000);
        more_and_more.iter_mut().enumerate().for_each(|(n, look)| look.threads = 5 + n / 4);
        assert!(judge(&more_and_more, &health).is_err());
        assert!(judge(&looks(|_| 30_000_000), &health).is_ok());
        assert!(judge(&looks(|n| 30_000_000 + n * 10_240), &health).is_err());
        assert!(judge(&looks(|_| 30_000_000)[..2 * PARTS - 2], &health).is_err(), "too few looks to tell");
    }

    #[test]
    fn a_broken_probe_fails_the_soak() {
        let health = serde_json::json!({
            "status": "broken",
            "losses": [],
            "probes": [{"name": "malloc", "verdict": "broken", "why": "refused"}]
        });
        assert!(judge(&looks(|_| 30_000_000), &health).is_err());
    }

    #[test]
    fn a_loss_fails_the_soak() {
        let health = serde_json::json!({"status": "incomplete", "losses": [{"reason": "x", "count": 3}]});
        assert!(judge(&looks(|_| 30_000_000), &health).is_err());
    }
}
