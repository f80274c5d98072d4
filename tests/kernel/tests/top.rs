//! Proves that `top` draws a daemon's processes on a real terminal, ends at a key, and puts the terminal back.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::{self, Serving};
use kernel_tests::process::{Running, run};
use kernel_tests::victim;

/// Enters and leaves the terminal's other screen; the cursor comes back.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const CURSOR: &str = "\x1b[?25h";

/// `top` on a terminal of its own, which `script` makes and whose state `stty` tells before and after.
fn on_a_terminal(arguments: &str) -> Running {
    let top = format!("timeout --foreground 60 {} top {arguments}", daemon::binary().display());
    let line = format!("stty rows 24 cols 120; stty -g; {top}; echo status=$?; stty -g");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    Running::start(&mut script)
}

/// Reads on until what was written holds these words.
fn read_until(terminal: &mut Running, seen: &mut String, words: &str) {
    while !seen.contains(words) {
        seen.push_str(&String::from_utf8_lossy(&terminal.read(1)));
    }
}

fn assert_put_back(seen: &str) {
    let settings: Vec<&str> = seen.lines().map(str::trim).filter(|line| line.split(':').count() > 10).collect();
    assert_eq!(settings.len(), 2, "{seen}");
    assert!(settings[0].ends_with(settings[1]) || settings[1].ends_with(settings[0]), "{settings:?}");
    assert!(seen.contains(ENTER) && seen.contains(LEAVE) && seen.contains(CURSOR), "{seen:?}");
    assert!(seen.rfind(ENTER) < seen.rfind(LEAVE), "{seen:?}");
}

#[test]
fn the_table_is_drawn_and_q_puts_the_terminal_back() {
    let serving = Serving::start(&["--interval", "200ms"]);
    let mut terminal = on_a_terminal(&format!("--url http://{}", serving.address));
    let mut seen = String::new();
    read_until(&mut terminal, &mut seen, "RETAINED");
    read_until(&mut terminal, &mut seen, "malloc-daemon");
    terminal.write(b"q");
    read_until(&mut terminal, &mut seen, "status=0");
    let rest = terminal.end();
    assert_put_back(&format!("{seen}{}", rest.stdout));
}

#[test]
fn a_process_is_observed_without_a_daemon_and_no_probe_stays() {
    let mut victim = Running::start(&mut Command::new(victim::program("busy")));
    let mut terminal = on_a_terminal(&format!("--pid {}", victim.pid()));
    let mut seen = String::new();
    read_until(&mut terminal, &mut seen, "From call to kernel");
    terminal.write(b"\x1b");
    read_until(&mut terminal, &mut seen, "RETAINED");
    terminal.write(b"q");
    read_until(&mut terminal, &mut seen, "status=0");
    assert_put_back(&format!("{seen}{}", terminal.end().stdout));
    // It works as before.
    victim.write(b"x");
    assert_eq!(victim.read(1), b".");
    assert_eq!(victim.end().code(), 0);
}

#[test]
fn no_line_of_the_log_is_written_while_the_screen_is_drawn_on() {
    let victim = Running::start(&mut Command::new(victim::program("busy")));
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    // With every line of the log asked for, the windows of the budget alone write some.
    let mut terminal = on_a_terminal(&format!("-vv --pid {} 2>{}", victim.pid(), log.display()));
    let mut seen = String::new();
    read_until(&mut terminal, &mut seen, "of log");
    read_until(&mut terminal, &mut seen, "DEBUG");
    assert_eq!(std::fs::read_to_string(&log).expect("the shell made it"), "");
    terminal.write(b"q");
    read_until(&mut terminal, &mut seen, "status=0");
    assert_put_back(&format!("{seen}{}", terminal.end().stdout));
    let written = std::fs::read_to_string(&log).expect("it stays");
    assert!(written.lines().any(|line| line.contains("DEBUG")), "{written}");
    assert_eq!(victim.end().code(), 0);
}

#[test]
fn without_a_terminal_the_table_is_text_or_the_remedy_is_told() {
    let serving = Serving::start(&["--interval", "200ms"]);
    let url = format!("http://{}", serving.address);
    let refused = daemon::run_daemon(["top", "--url", &url]);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("--once"), "{}", refused.stderr);
    let told = run(&mut daemon::command(["top", "--once", "--url", &url]));
    assert!([0, 1].contains(&told.code()), "{}", told.stderr);
    let mut lines = told.stdout.lines();
    assert!(lines.next().is_some_and(|head| head.contains("PID") && head.contains("RETAINED")), "{}", told.stdout);
    let own = serving.pid().to_string();
    assert!(lines.any(|line| line.trim_start().starts_with(&own) && line.contains("malloc-daemon")), "{}", told.stdout);
    let nobody = daemon::run_daemon(["top", "--once", "--url", "http://127.0.0.1:1"]);
    assert_eq!(nobody.code(), 2);
    assert!(nobody.stderr.contains("start `malloc-daemon serve`"), "{}", nobody.stderr);
}
