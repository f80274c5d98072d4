//! Proves the shipped units under a real systemd, with real probes.
#![cfg(feature = "real-kernel")]

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use kernel_tests::document::Image;
use kernel_tests::http::{get, try_get, try_get_unix};
use kernel_tests::process::{Running, copy_executable, run, until};
use kernel_tests::systemd::Systemd;
use kernel_tests::victim::{self, workspace};
use nix::sys::ptrace;
use rustix::process::{Pid, Signal, kill_process};

const ROUNDS: u64 = 1000;

/// The cheapest probes for all, so that a start is quick, and all of them for the victim.
fn configuration(address: &str, interval: &str) -> String {
    format!(
        "listen = ['{address}']\ndepth = 'syscall'\ninterval = '{interval}'\nbudget = 100\n[deep]\ncomm = ['busy']\n"
    )
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string()
}

fn busy() -> Running {
    Running::start(&mut Command::new(victim::program("busy")))
}

fn work(busy: &mut Running, steps: usize) {
    busy.write(&vec![b'x'; steps]);
    assert_eq!(busy.read(steps), vec![b'.'; steps]);
}

fn image_when(address: &str, pid: u32, what: &str, mut satisfied: impl FnMut(&Image) -> bool) -> Image {
    until(what, || {
        let answer = try_get(address, &format!("/v1/processes/{pid}"))?;
        (answer.status == 200).then(|| Image(answer.json()["process"].clone())).filter(&mut satisfied)
    })
}

/// The threads of a process with their names and effective capabilities.
fn capabilities(pid: u32) -> Vec<(String, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("readable");
    let mut all: Vec<(String, u64)> = threads
        .map(|thread| {
            let status = read(&thread.path().join("status"));
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
            let name = read(&thread.path().join("comm")).trim_end().to_owned();
            (name, u64::from_str_radix(effective.trim(), 16).expect("hexadecimal"))
        })
        .collect();
    all.sort();
    all
}

fn score(unit: &std::path::Path) -> f64 {
    let done = Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(unit).output();
    let done = done.expect("systemd-analyze, of systemd");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let level = text.lines().find_map(|line| line.split_once("Overall exposure level for")?.1.split_once(": "));
    let level = level.and_then(|(_, level)| level.split(' ').next()?.parse().ok());
    level.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&done.stderr)))
}

/// The `[Service]` lines that the generator adds where the kernel says this of itself, if it adds any.
fn rights(release: &str, paranoid: &str) -> Option<String> {
    const SCRIPT: &str = "mount --bind release /proc/sys/kernel/osrelease
        mount --bind paranoid /proc/sys/kernel/perf_event_paranoid
        exec \"$1\" made";
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("release"), format!("{release}\n")).expect("written");
    std::fs::write(folder.path().join("paranoid"), format!("{paranoid}\n")).expect("written");
    let generator = workspace().join("packaging/malloc-daemon-rights");
    // As it is installed: the tree's file need not be executable.
    let copy = folder.path().join("generator");
    copy_executable(&generator, &copy);
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-e", "-c", SCRIPT, "sh"]).arg(&copy).current_dir(folder.path());
    let ended = run(&mut unshare);
    assert!(ended.status.success(), "{}", ended.stderr);
    std::fs::read_to_string(folder.path().join("made/malloc-daemon.service.d/10-rights.conf")).ok()
}

#[test]
fn the_generator_gives_cap_sys_admin_to_the_kernels_that_ask_for_it() {
    let asks =
        [("5.15.0-91-generic", "2"), ("6.1.0-37-amd64", "3"), ("6.9.12", "1"), ("6.12.43+deb13-cloud-amd64", "3")];
    for (release, paranoid) in asks {
        let given = rights(release, paranoid).unwrap_or_else(|| panic!("nothing for {release} at {paranoid}"));
        assert!(given.contains("AmbientCapabilities=CAP_SYS_ADMIN\n"), "{given}");
    }
    for (release, paranoid) in [("6.10.0", "2"), ("6.18.44", "1"), ("7.0.0-rc1", "-1"), ("10.1.2", "2")] {
        assert_eq!(rights(release, paranoid), None, "{release} at {paranoid}");
    }
}

#[test]
fn the_units_are_hardened_to_the_promised_scores_with_every_drop_in() {
    let packaging = workspace().join("packaging");
    let text = |name: &str| std::fs::read_to_string(packaging.join(name)).expect("a unit");
    let (service, socket_only) = (text("malloc-daemon.service"), text("socket-only.conf"));
    let rights = rights("6.1.0", "3").expect("a drop-in");
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("malloc-daemon.service");
    for (drop_ins, what, most) in [
        (vec![], "with TCP on the loopback", 2.2),
        (vec![&rights], "with TCP and CAP_SYS_ADMIN", 2.2),
        (vec![&socket_only], "with a socket in the file system", 1.6),
        (vec![&rights, &socket_only], "with such a socket and CAP_SYS_ADMIN", 1.6),
    ] {
        // What the drop-ins change, written into the unit.
        let lines: String = drop_ins.iter().map(|text| text.split_once("[Service]\n").expect("a section").1).collect();
        std::fs::write(&unit, service.replace("\n[Install]", &format!("{lines}\n[Install]"))).expect("written");
        assert!(score(&unit) <= most, "{what}: {}", score(&unit));
    }
}

// COUNT-1: the service as it is shipped, from its start over reloads and a crash to its end.
#[test]
fn the_service_starts_reloads_crashes_and_stops_in_order() {
    let mut busy = busy();
    let address = free_address();
    let systemd = Systemd::start("");
    systemd.configure(&configuration(&address, "100ms"));
    let (started, told) = systemd.control(&["start", "malloc-daemon.service"]);
    assert!(started, "{told}\n{}", systemd.log());
    // Started means ready: the probes are in place, those of the selected process too.
    assert_eq!(get(&address, "/readyz").status, 200);
    let pid = busy.pid();
    work(&mut busy, 2);
    let image = image_when(&address, pid, "two rounds", |image| image.calls("malloc") >= 2 * ROUNDS);
    assert_eq!((image.calls("malloc"), image.text("/depth")), (2 * ROUNDS, "call"));
    let status = systemd.property("StatusText");
    assert!(status.starts_with("ok: ") || status.starts_with("incomplete: "), "{status}");

    // It runs as its own user; the thread that answers has no capability, and nothing has more than five.
    let main = systemd.main_pid().expect("it runs");
    let uid = std::fs::metadata(format!("/proc/{main}")).map(|process| std::os::unix::fs::MetadataExt::uid(&process));
    assert_ne!(uid.expect("it runs"), 0);
    for (thread, effective) in capabilities(main) {
        let allowed = match thread.as_str() {
            "observer" | "windows" => 1 << 39 | 1 << 38 | 1 << 2 | 1 << 19 | 1 << 40,
            "symbols" | "heaps" | "disused" => 1 << 2 | 1 << 19 | 1 << 40,
            _ => 0,
        };
        assert_eq!(effective & !allowed, 0, "{thread}: {effective:x}");
    }

    // A reload loses no count and ends.
    for round in 0..5 {
        systemd.configure(&configuration(&address, &format!("{}ms", 101 + round)));
        assert!(systemd.control(&["reload", "malloc-daemon.service"]).0);
        work(&mut busy, 1);
        systemd.wait_for("ActiveState", "active");
    }
    let image = image_when(&address, pid, "seven rounds", |image| image.calls("malloc") >= 7 * ROUNDS);
    assert_eq!(image.calls("malloc"), 7 * ROUNDS);
    assert_eq!(systemd.main_pid(), Some(main), "a reload is no restart");
    systemd.configure("no-such-key = 1\n");
    assert!(systemd.control(&["reload", "malloc-daemon.service"]).0);
    until("the refusal is told", || {
        get(&address, "/v1/health").json()["configuration"]["refused"]["why"].is_string().then_some(())
    });
    systemd.configure(&configuration(&address, "100ms"));

    // A crash is followed by a restart that counts again.
    let crashed = i32::try_from(main).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(crashed, Signal::KILL).expect("it runs");
    systemd.wait_for("NRestarts", "1");
    systemd.wait_for("ActiveState", "active");
    image_when(&address, pid, "its calls are probed again", |image| image.text("/depth") == "call");
    work(&mut busy, 3);
    let image = image_when(&address, pid, "three rounds", |image| image.calls("malloc") >= 3 * ROUNDS);
    assert_eq!(image.calls("malloc"), 3 * ROUNDS);

    let (stopped, told) = systemd.control(&["stop", "malloc-daemon.service"]);
    assert!(stopped, "{told}");
    assert_eq!((systemd.property("Result"), systemd.property("ExecMainStatus")), ("success".into(), "0".into()));
    assert_eq!(systemd.property("ActiveState"), "inactive");
    work(&mut busy, 1);
}

/// Stops one thread, as a kernel or a file system that does not answer would.
struct Halted(nix::unistd::Pid);

impl Halted {
    fn observer_of(pid: u32) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
        let is_observer = |path: &std::path::Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == "observer")
        };
        let thread = threads.map(|thread| thread.path()).find(|path| is_observer(path)).expect("the observer");
        let thread = thread.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
        let thread = nix::unistd::Pid::from_raw(thread);
        ptrace::seize(thread, ptrace::Options::empty()).expect("it can be traced");
        ptrace::interrupt(thread).expect("it can be stopped");
        Halted(thread)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _gone = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_collector_that_hangs_is_restarted_although_answers_still_come() {
    let address = free_address();
    let systemd = Systemd::start("WatchdogSec=6");
    systemd.configure(&configuration(&address, "100ms"));
    let (started, told) = systemd.control(&["start", "malloc-daemon.service"]);
    assert!(started, "{told}\n{}", systemd.log());
    let first = systemd.main_pid().expect("it runs");
    // As long as collecting gets on, nothing happens, also over two of the watchdog's times.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(13) {
        assert_eq!(systemd.main_pid(), Some(first), "{}", systemd.log());
        std::thread::park_timeout(Duration::from_millis(500));
    }
    let halted = Halted::observer_of(first);
    let hung = Instant::now();
    assert_eq!(get(&address, "/healthz").status, 200, "the thread that answers is alive");
    systemd.wait_for("NRestarts", "1");
    assert!(hung.elapsed() >= Duration::from_secs(2), "{:?}", hung.elapsed());
    drop(halted);
    systemd.wait_for("ActiveState", "active");
    assert_ne!(systemd.main_pid(), Some(first));
    assert_eq!(get(&address, "/readyz").status, 200);
}

#[test]
fn a_connection_to_the_shipped_socket_starts_a_service_without_network() {
    let mut busy = busy();
    let packaging = workspace().join("packaging");
    let drop_in = std::fs::read_to_string(packaging.join("socket-only.conf")).expect("the drop-in");
    let systemd = Systemd::start(&drop_in);
    systemd.configure(&configuration("127.0.0.1:1", "100ms"));
    assert!(systemd.control(&["start", "malloc-daemon.socket"]).0);
    assert_eq!(systemd.main_pid(), None, "nobody has asked yet");
    let socket = systemd.path("../malloc-daemon.sock");
    let mode = std::fs::metadata(&socket).map(|file| std::os::unix::fs::PermissionsExt::mode(&file.permissions()));
    assert_eq!(mode.expect("the socket") & 0o777, 0o660);
    let ask = |path: &str| try_get_unix(&socket, path);
    for _ in 0..3 {
        // The first one waits in the socket until the daemon has started.
        if kernel_tests::process::within_patience(|| ask("/readyz").filter(|answer| answer.status == 200)).is_some() {
            break;
        }
    }
    let pid = busy.pid();
    let process = || Some(Image(ask(&format!("/v1/processes/{pid}"))?.json()["process"].clone()));
    until("its calls are probed", || process().filter(|image| image.0["depth"] == "call"));
    work(&mut busy, 2);
    let image = until("two rounds", || process().filter(|image| image.calls("malloc") >= 2 * ROUNDS));
    assert_eq!(image.calls("malloc"), 2 * ROUNDS);
    assert!(systemd.log().contains("listening on unix:/run/malloc-daemon.sock"), "{}", systemd.log());
    // The socket is systemd's: it outlives the service.
    assert!(systemd.control(&["stop", "malloc-daemon.service"]).0);
    assert!(socket.exists());
}
