//! Proves that the service behaves when things go wrong around it.
#![cfg(feature = "real-kernel")]

use std::os::unix::process::ExitStatusExt;

use kernel_tests::daemon::{Serving, command, run_daemon};
use kernel_tests::process::Running;
use rustix::process::Signal;

#[test]
fn a_second_daemon_on_the_same_port_says_so_and_harms_nothing() {
    let first = Serving::start(&["--depth", "syscall"]);
    let second = run_daemon(["serve", "--depth", "syscall", "--listen", &first.address]);
    assert_eq!(second.code(), 2, "{}", second.stderr);
    assert!(second.stderr.contains(&format!("{} is in use by another program", first.address)), "{}", second.stderr);
    assert_eq!(first.get("/readyz").status, 200);
    assert_eq!(first.stop(Signal::TERM).code(), 0);
}

#[test]
fn a_socket_left_behind_by_a_killed_daemon_is_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("api.sock").display());
    let start = || {
        let mut daemon = Running::start(&mut command(["serve", "--depth", "syscall", "--listen", &listen]));
        daemon.wait_for_error_line(&format!("listening on {listen}"));
        daemon
    };
    let first = start();
    let second = run_daemon(["serve", "--depth", "syscall", "--listen", &listen]);
    assert_eq!(second.code(), 2, "a socket that is listened on is left alone: {}", second.stderr);
    first.signal(Signal::KILL);
    assert_eq!(first.end().status.signal(), Some(9));
    let third = start();
    third.signal(Signal::TERM);
    assert_eq!(third.end().code(), 0);
    assert!(!folder.path().join("api.sock").exists());
}
