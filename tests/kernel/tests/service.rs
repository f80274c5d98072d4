//! Proves what an operator relies on: configuration, reload, selectors.
#![cfg(feature = "real-kernel")]

use std::path::PathBuf;
use std::process::Command;

use kernel_tests::daemon::{Serving, run_daemon};
use kernel_tests::document::Image;
use kernel_tests::process::{Running, until};
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const ROUNDS: u64 = 1000;

fn work(busy: &mut Running, steps: usize) {
    busy.write(&vec![b'x'; steps]);
    assert_eq!(busy.read(steps), vec![b'.'; steps]);
}

fn busy() -> Running {
    Running::start(&mut Command::new(victim::program("busy")))
}

fn is_deep(image: &Image) -> bool {
    image.text("/depth") == "call"
}

/// A daemon with a configuration that can be changed.
struct Configured {
    serving: Serving,
    file: PathBuf,
    _folder: TempDir,
}

impl Configured {
    fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).expect("written");
        let serving = Serving::start(&["--budget", "100", "--config", file.to_str().expect("a path in UTF-8")]);
        Configured { serving, file, _folder: folder }
    }

    fn configuration(&self) -> Value {
        self.serving.get("/v1/health").json()["configuration"].clone()
    }

    /// Writes the file, asks for a reload, and returns what health says of it once it was taken over or refused.
    fn reload(&self, text: &str) -> Value {
        let before = self.configuration();
        std::fs::write(&self.file, text).expect("written");
        self.serving.signal(Signal::HUP);
        until("the reload is told", || Some(self.configuration()).filter(|now| *now != before))
    }
}

// COUNT-1: a configuration that changes forty times while a process allocates loses no call.
#[test]
fn a_reload_loses_no_count() {
    let mut busy = busy();
    let pid = busy.pid();
    let daemon = Configured::start("interval = '50ms'\n[deep]\ncomm = ['busy']\n");
    daemon.serving.image_when("its calls are probed", pid, is_deep);
    work(&mut busy, 1);
    for reload in 0..40 {
        let (interval, other) = (50 + reload, reload % 3);
        let told = daemon.reload(&format!("interval = '{interval}ms'\n[deep]\ncomm = ['bus?', 'other-{other}']\n"));
        assert_eq!(told["refused"], Value::Null, "{told}");
        work(&mut busy, 1);
    }
    let image = daemon.serving.image_when("all rounds", pid, |image| image.calls("malloc") >= 41 * ROUNDS);
    assert_eq!((image.calls("malloc"), image.calls("free")), (41 * ROUNDS, 82 * ROUNDS));
    image.assert_complete();
    // One that is no longer selected is as deep as the rest; what is no longer measured is no number.
    daemon.reload("interval = '50ms'\n");
    let image = daemon.serving.image_when("it is let go", pid, |image| !is_deep(image));
    assert!(image.is_null("/functions") && image.is_null("/funnel/call"), "{:?}", image.0);
    drop(busy);
}

#[test]
fn a_bad_file_leaves_the_configuration_in_force() {
    let mut busy = busy();
    let mut daemon = Configured::start("interval = '50ms'\n[deep]\ncomm = ['busy']\n");
    daemon.serving.image_when("its calls are probed", busy.pid(), is_deep);
    let told = daemon.reload("interval = '50ms'\n[deep]\ncom = []\n");
    let place = format!("{}:3:1: unknown field `com`", daemon.file.display());
    assert!(told["refused"]["why"].as_str().is_some_and(|why| why.starts_with(&place)), "{told}");
    daemon.serving.wait_for_error_line(&place);
    work(&mut busy, 2);
    let image = daemon.serving.image_when("two rounds", busy.pid(), |image| image.calls("malloc") >= 2 * ROUNDS);
    assert_eq!(image.calls("malloc"), 2 * ROUNDS);
    let told = daemon.reload("listen = ['127.0.0.1:1']\n[deep]\ncomm = ['busy']\n");
    assert_eq!((&told["refused"], &told["restart_for"]), (&Value::Null, &Value::Array(Vec::new())), "--listen wins");
    let told = daemon.reload("[http]\nconnections = 3\n[deep]\ncomm = ['busy']\n");
    assert_eq!(told["restart_for"], Value::Array(vec!["http.connections".into()]), "{told}");
    daemon.serving.wait_for_error_line("a restart is needed to take over: http.connections");
    assert_eq!(daemon.serving.stop(Signal::TERM).code(), 0);
}

#[test]
fn selectors_apply_to_processes_that_start_later() {
    let program = victim::program("busy");
    let folder = program.parent().expect("a folder").display().to_string();
    let unlike = Running::start(Command::new("sleep").arg("1000"));
    let daemon = Configured::start(&format!("interval = '50ms'\n[deep]\nexe = ['{folder}/*']\n"));
    let mut late = busy();
    let pid = late.pid();
    daemon.serving.image_when("the late process is deep", pid, is_deep);
    work(&mut late, 3);
    let image = daemon.serving.image_when("three rounds", pid, |image| image.calls("malloc") >= 3 * ROUNDS);
    assert_eq!(image.calls("malloc"), 3 * ROUNDS);
    let other = daemon.serving.image_when("the other one", unlike.pid(), |image| image.text("/depth") != "syscall");
    assert_eq!(other.text("/depth"), "sysmalloc");
    // Its child runs another program, of another folder: `true` is not probed deep, and the parent still is.
    late.write(b"c");
    assert_eq!(late.read(1), b".");
    work(&mut late, 1);
    let image = daemon.serving.image_when("four rounds", pid, |image| image.calls("malloc") >= 4 * ROUNDS);
    assert_eq!(image.calls("malloc"), 4 * ROUNDS);
}

#[test]
fn a_reload_probes_all_processes_deeper() {
    let mut busy = busy();
    let pid = busy.pid();
    let daemon = Configured::start("interval = '50ms'\ndepth = 'syscall'\n");
    daemon.serving.image_when("it is there", pid, |image| image.text("/depth") == "syscall");
    daemon.reload("interval = '50ms'\ndepth = 'call'\n");
    daemon.serving.image_when("its calls are probed", pid, is_deep);
    work(&mut busy, 2);
    let image = daemon.serving.image_when("two rounds", pid, |image| image.calls("malloc") >= 2 * ROUNDS);
    assert_eq!(image.calls("malloc"), 2 * ROUNDS);
    let told = daemon.reload("interval = '50ms'\ndepth = 'sysmalloc'\n");
    assert_eq!(told["restart_for"], Value::Array(vec!["depth".into()]), "{told}");
    work(&mut busy, 1);
    let image = daemon.serving.image_when("three rounds", pid, |image| image.calls("malloc") >= 3 * ROUNDS);
    assert_eq!(image.calls("malloc"), 3 * ROUNDS, "what was not given up is still counted");
}

#[test]
fn a_bad_configuration_ends_with_78_and_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    let path = file.to_str().expect("a path in UTF-8");
    std::fs::write(&file, "depth = 'deep'\n").expect("written");
    for arguments in [["check-config"].as_slice(), &["serve", "--config"]] {
        let ended = run_daemon(arguments.iter().chain([&path]));
        assert_eq!(ended.code(), 78, "{arguments:?}");
        assert!(ended.stderr.contains(&format!("{path}:1:9: a depth is one of")), "{}", ended.stderr);
    }
    std::fs::write(&file, "[http]\ntoken_file = '/nonexistent/token'\n").expect("written");
    let ended = run_daemon(["check-config", path]);
    assert_eq!(ended.code(), 78);
    assert!(ended.stderr.contains("http.token_file"), "{}", ended.stderr);
    std::fs::write(&file, "").expect("written");
    let ended = run_daemon(["check-config", path]);
    assert_eq!((ended.code(), ended.stdout.trim_end()), (0, format!("{path} is good").as_str()));
}
