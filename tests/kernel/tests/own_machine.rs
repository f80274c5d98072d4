//! Proves what can be tried only on a machine of its own: the installed service at boot, the clock, suspend, no memory
//! left, and what a kernel allows. `cargo xtask vm` runs it in virtual ones.
#![cfg(feature = "own-machine")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use kernel_tests::compare::{assert_crossings, assert_functions};
use kernel_tests::daemon::{Serving, run_daemon};
use kernel_tests::document::Image;
use kernel_tests::http::{get, try_get};
use kernel_tests::process::{Running, run, until};
use kernel_tests::systemd::{Systemd, owns_the_machine};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const ROUNDS: u64 = 1000;
const INSTALLED: &str = "127.0.0.1:7878";

fn on_its_own_machine() {
    assert!(owns_the_machine(), "this test changes the machine: run `cargo xtask vm`");
}

fn busy() -> Running {
    Running::start(&mut Command::new(victim::program("busy")))
}

fn work(busy: &mut Running, steps: usize) {
    busy.write(&vec![b'x'; steps]);
    assert_eq!(busy.read(steps), vec![b'.'; steps]);
}

fn systemctl(arguments: &[&str]) -> String {
    run(Command::new("systemctl").arg("--no-pager").args(arguments)).stdout.trim().to_owned()
}

#[test]
fn the_installed_service_comes_up_with_the_machine() {
    on_its_own_machine();
    until("the service is up", || (systemctl(&["is-active", "malloc-daemon.service"]) == "active").then_some(()));
    // Active is ready: nothing is waited for from here on.
    assert_eq!(get(INSTALLED, "/readyz").status, 200);
    let manager = get(INSTALLED, "/v1/processes/1");
    assert_eq!((manager.status, &manager.json()["process"]["comm"]), (200, &Value::from("systemd")));
    let health = get(INSTALLED, "/v1/health").json();
    assert_eq!(health["history"]["state"], "recording", "{health}");
    assert!(systemctl(&["show", "--value", "--property=StatusText", "malloc-daemon"]).contains("processes"));
    // By what the package installed, an operator sees who crosses the threshold.
    let mut busy = busy();
    work(&mut busy, 1);
    let pid = busy.pid();
    until("a program that starts later is seen", || {
        let answer = try_get(INSTALLED, &format!("/v1/processes/{pid}"))?;
        (answer.status == 200 && answer.json()["process"]["depth"] == "sysmalloc").then_some(())
    });
    assert_eq!(systemctl(&["show", "--value", "--property=NRestarts", "malloc-daemon"]), "0");
}

/// The installed service with a victim whose every call it probes.
struct Probed {
    systemd: Systemd,
    busy: Running,
}

impl Probed {
    fn start() -> Self {
        let systemd = Systemd::start("");
        // Emulated, a hit is dear: within a budget the calls would be counted in windows.
        systemd.configure("budget = 100\n[deep]\ncomm = ['busy']\n");
        let busy = busy();
        let (started, told) = systemd.control(&["start", "malloc-daemon.service"]);
        assert!(started, "{told}\n{}", systemd.log());
        let probed = Probed { systemd, busy };
        probed.image_when("its calls are probed", |image| image.text("/depth") == "call");
        probed
    }

    fn image_when(&self, what: &str, satisfied: impl Fn(&Image) -> bool) -> Image {
        until(what, || {
            let answer = try_get(INSTALLED, &format!("/v1/processes/{}", self.busy.pid()))?;
            (answer.status == 200).then(|| Image(answer.json()["process"].clone())).filter(&satisfied)
        })
    }

    fn work(&mut self, steps: usize) {
        work(&mut self.busy, steps);
    }

    /// What is told once so many rounds are: exactly their calls.
    fn counted(&self, rounds: u64) -> Image {
        let image = self.image_when("its rounds", |image| image.calls("malloc") >= rounds * ROUNDS);
        assert_eq!((image.calls("malloc"), image.calls("free")), (rounds * ROUNDS, 2 * rounds * ROUNDS));
        image
    }
}

/// Capabilities of the thread that observes.
fn observer_holds(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let told = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let observer = told.into_iter().find(|status| status.starts_with("Name:\tobserver\n")).expect("the observer");
    let effective = observer.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
    u64::from_str_radix(effective.trim(), 16).expect("hexadecimal")
}

fn kernel_is_before(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) < (Some(major), Some(minor))
}

// What the kernel asks for at the start, a generator of the package gives; what it asks for no longer is given up.
#[test]
fn the_installed_service_counts_each_call() {
    const SYS_ADMIN: u64 = 1 << 21;
    on_its_own_machine();
    let mut probed = Probed::start();
    probed.work(3);
    probed.counted(3);
    let holds = observer_holds(probed.systemd.main_pid().expect("it runs"));
    assert_eq!(holds & SYS_ADMIN != 0, kernel_is_before(6, 10), "{holds:x}");
}

#[test]
fn this_kernel_is_good_for_every_depth() {
    on_its_own_machine();
    let ended = run_daemon(["doctor", "--json"]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    let bad = |list: &str| {
        let all = told[list].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|one| one["verdict"] == "missing").collect::<Vec<_>>()
    };
    assert!(bad("host").is_empty() && bad("trials").is_empty(), "{:?} {:?}", bad("host"), bad("trials"));
    for depth in told["depths"].as_array().expect("depths") {
        assert_eq!(depth["verdict"], "ok", "{depth}");
    }
    assert_eq!(ended.code(), 0);
}

/// The clock of the machine, put right in the end.
struct Clock(TimeSpec);

impl Clock {
    fn now(id: ClockId) -> TimeSpec {
        clock_gettime(id).expect("a clock")
    }

    fn of_the_machine() -> Self {
        Clock(Self::now(ClockId::CLOCK_REALTIME) - Self::now(ClockId::CLOCK_BOOTTIME))
    }

    /// Sets it so far from what is right.
    fn shift(&self, hours: i64) {
        let right = self.0 + Self::now(ClockId::CLOCK_BOOTTIME);
        clock_settime(ClockId::CLOCK_REALTIME, right + TimeSpec::hours(hours)).expect("the clock can be set");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shift(0);
    }
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().expect("a plain path")
}

fn steps(serving: &Serving) -> u64 {
    serving.get("/v1/health").json()["history"]["steps"].as_u64().unwrap_or(0)
}

// HIST-1, COUNT-1: no clock makes the daemon lose a call, forget a step, or end.
#[test]
fn a_clock_set_back_a_day_and_forward_a_year_loses_nothing() {
    on_its_own_machine();
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::of_the_machine();
    let mut busy = busy();
    let pid = busy.pid();
    let serving = Serving::start(&["--depth", "call", "--pid", &pid.to_string(), "--history", path(&folder)]);
    let mut rounds = 0;
    let mut told = Vec::new();
    for hours in [0, -24, 365 * 24, 0] {
        clock.shift(hours);
        work(&mut busy, 2);
        rounds += 2 * ROUNDS;
        let image = serving.image_when("two rounds", pid, |image| image.calls("malloc") >= rounds);
        assert_eq!((image.calls("malloc"), image.calls("free")), (rounds, 2 * rounds), "at {hours} hours");
        image.assert_complete();
        let snapshot = serving.get("/v1/snapshot").json();
        let duration = snapshot["window"]["duration_ms"].as_u64().expect("a duration");
        assert!(duration < 3_600_000, "the clock is no measure of time: {duration}");
        assert_eq!(serving.get("/healthz").status, 200);
        // A step that holds these rounds is on disk, under the time that the clock then shows.
        let before = steps(&serving);
        until("two steps are written", || (steps(&serving) >= before + 2).then_some(()));
        told.push(hours);
    }
    assert_eq!(told.len(), 4);
    let ended = serving.stop(Signal::TERM);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    drop(clock);
    let report = run_daemon([
        "report",
        "--history",
        path(&folder),
        "--from",
        "-800d",
        "--to",
        "2200-01-01 00:00",
        "--pid",
        &pid.to_string(),
        "--format",
        "json",
    ]);
    let told: Value = serde_json::from_str(&report.stdout).unwrap_or_else(|_| panic!("{}", report.stderr));
    let process = &told["processes"][0];
    assert_eq!(process["delta"]["calls"], 2 * rounds, "{told}");
    assert_eq!(process["delta"]["frees"], 2 * rounds, "{told}");
}

#[test]
fn a_suspended_machine_goes_on_counting() {
    on_its_own_machine();
    let mut probed = Probed::start();
    let main = probed.systemd.main_pid();
    probed.work(1);
    let away = || Clock::now(ClockId::CLOCK_BOOTTIME) - Clock::now(ClockId::CLOCK_MONOTONIC);
    let before = away();
    // Longer than the watchdog waits. To memory: an emulated clock wakes no machine that only idles.
    let slept = run(Command::new("rtcwake").args(["--mode", "mem", "--seconds", "40"]));
    assert_eq!(slept.code(), 0, "{}", slept.stderr);
    // Before it is nothing or less: the clocks are read one after the other.
    let asleep = (away() - before).num_seconds();
    assert!(asleep >= 30, "the machine was suspended for {asleep} s only");
    probed.work(2);
    probed.counted(3).assert_complete();
    assert_eq!(get(INSTALLED, "/healthz").status, 200);
    let now = (probed.systemd.main_pid(), probed.systemd.property("NRestarts"));
    assert_eq!(now, (main, "0".to_owned()), "the watchdog slept too");
}

// OOM-1, COUNT-1: as in a control group, when it is the machine's own memory that ran out.
#[test]
fn a_process_that_the_machine_has_no_memory_for_is_marked_and_whole() {
    on_its_own_machine();
    // The kernel would not promise more than there is.
    std::fs::write("/proc/sys/vm/overcommit_memory", "1").expect("written");
    let serving = Serving::start(&["--depth", "call"]);
    let mut victim = Running::start(Command::new(victim::program("overrun")).arg("3000"));
    let truth = Truth::parse(&victim.read_line());
    victim.write(b"x");
    let ended = victim.end();
    assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
    let image = serving.image_when("its end", truth.pid, |image| !image.is_null("/ended"));
    assert_eq!(image.text("/ended"), "oom_killed");
    assert_functions(&truth, &image);
    assert_crossings(&truth, &image);
    image.assert_complete();
    assert_eq!(serving.stop(Signal::TERM).code(), 0, "the daemon was not chosen");
}

/// What an operator types.
fn shell(line: &str) -> String {
    let ended = run(Command::new("sh").args(["-e", "-c", line]));
    assert_eq!(ended.code(), 0, "{line}: {}{}", ended.stdout, ended.stderr);
    ended.stdout
}

// docs/operating.md, "Running the service" and "Who may ask", line by line.
#[test]
fn the_documented_way_leads_from_the_package_to_an_answer_for_a_group_alone() {
    on_its_own_machine();
    // As on a machine that never had it.
    shell("dpkg --purge malloc-daemon");
    assert!(!Path::new("/usr/bin/malloc-daemon").exists() && !Path::new("/etc/malloc-daemon/config.toml").exists());
    shell("dpkg --install /machine/package.deb");
    assert_eq!(systemctl(&["is-active", "malloc-daemon"]), "inactive", "it is installed, not started");
    shell("systemctl enable --now malloc-daemon");
    let status = shell("systemctl status malloc-daemon | grep Status");
    assert!(status.contains(" processes, "), "{status}");
    assert!(shell("curl -s http://127.0.0.1:7878/v1/processes").contains("\"comm\":\"systemd\""));
    let main_pid = || systemctl(&["show", "--value", "--property=MainPID", "malloc-daemon"]);
    let before = main_pid();
    shell("dpkg --install /machine/package.deb");
    assert_eq!(systemctl(&["is-active", "malloc-daemon"]), "active", "an upgrade goes on serving");
    assert_ne!(main_pid(), before, "by the new program");

    let folder = "/etc/systemd/system/malloc-daemon.service.d";
    shell(&format!("mkdir -p {folder} && cp /usr/share/doc/malloc-daemon/socket-only.conf {folder}"));
    shell(
        "systemctl daemon-reload && systemctl disable --now malloc-daemon && systemctl enable --now malloc-daemon.socket",
    );
    shell("useradd bob && useradd alice && usermod --append --groups malloc-daemon alice");
    let ask = |user: &str| {
        let curl = ["curl", "-s", "--unix-socket", "/run/malloc-daemon.sock", "http://localhost/v1/health"];
        run(Command::new("runuser").args(["-u", user, "--"]).args(curl))
    };
    assert_eq!(ask("bob").code(), 7, "who is not in the group cannot connect");
    assert_eq!(systemctl(&["is-active", "malloc-daemon"]), "inactive", "nobody who may has asked");
    until("who is in the group is answered", || ask("alice").stdout.contains("\"complete\":").then_some(()));
    assert!(try_get(INSTALLED, "/readyz").is_none(), "nothing listens on the network");
    shell("dpkg --purge malloc-daemon");
    assert!(!Path::new("/run/malloc-daemon.sock").exists(), "the socket goes with the package");
}
