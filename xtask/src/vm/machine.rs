//! Runs one virtual machine from its start to its end.
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// What the machine says last.
pub const PASSED: &str = "machine: passed";
/// What it says last when a test failed.
pub const FAILED: &str = "machine: failed";

/// Half of it is the file system, of which most stays free.
const MEMORY: &str = "1536";

/// Emulated, since not every machine this runs on has usable hardware for it; with one processor, which is what
/// emulation does reliably.
const MACHINE: &[&str] = &[
    "-M",
    "q35",
    "-accel",
    "tcg",
    "-cpu",
    "qemu64",
    "-smp",
    "1",
    "-m",
    MEMORY,
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-serial",
    "stdio",
];

/// `quiet` leaves the console to the tests; a panic ends the machine.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 rdinit=/sbin/init tsc=reliable no_timer_check random.trust_cpu=on \
                      systemd.unit=machine.service systemd.show_status=0";

/// Boots, shows what the machine says, and fails unless it says that all passed.
pub fn boot(kernel: &Path, initrd: &Path, more: &str, patience: Duration) -> Result<()> {
    // Killed with this command, however that ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(MACHINE)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd);
    qemu.args(["-append", &format!("{KERNEL} {more}")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut qemu = Killed(qemu.spawn().context("cannot start qemu-system-x86_64")?);
    let output = qemu.0.stdout.take().context("no output")?;
    let (send, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let (deadline, mut verdict) = (Instant::now() + patience, None);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  | {line}");
                if line == PASSED || line == FAILED {
                    verdict = Some(line == PASSED);
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the machine did not end within {} s", patience.as_secs()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match verdict {
        Some(true) => Ok(()),
        Some(false) => bail!("tests failed in the machine"),
        None => bail!("the machine ended without a verdict"),
    }
}

/// A program that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only for what is gone.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
