//! A real systemd that runs the shipped units.
//!
//! On a machine that has other work it is the manager of a user, root's, and not PID 1: the observed processes and the
//! daemon must be in the machine's first pid namespace, and there PID 1 is taken. It applies what the units say all the
//! same: user, capabilities, sandbox, readiness, watchdog, reload, restarts, sockets. On a machine that belongs to the
//! tests (`cargo xtask vm`) it is PID 1, and the service is the installed package's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::binary;
use crate::process::until;
use crate::victim::workspace;

/// Where the manager sees what belongs to the test. `/tmp` and `/root` are hidden from the service.
const INSIDE: &str = "/run/service-test";

/// Prepares the namespace and becomes the manager. `$1` is the daemon, `$2` the folder of the shipped units, `$3` the
/// name of a control group.
const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/service-test/units /run/service-test/root/etc /run/service-test/runtime
# What PID 1 makes at its start.
mkdir -m 0 -p /run/systemd/inaccessible /run/systemd/inaccessible/dir
chmod 755 /run/systemd/inaccessible
touch /run/systemd/inaccessible/reg
chmod 0 /run/systemd/inaccessible/reg
cp "$1" /run/service-test/daemon
cp "$2"/malloc-daemon.service "$2"/malloc-daemon.socket /run/service-test/units
touch /run/service-test/config.toml
# The service's user, as the package makes it.
cp /etc/passwd /etc/group /run/service-test/root/etc
systemd-sysusers --root=/run/service-test/root "$2"/malloc-daemon.sysusers
mount --bind /run/service-test/root/etc/passwd /etc/passwd
mount --bind /run/service-test/root/etc/group /etc/group
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -w "$hierarchy/cgroup.procs" ]; then
        mkdir -p "$hierarchy/$3"
        echo $$ > "$hierarchy/$3/cgroup.procs"
    fi
done
echo '[Unit]' > /run/service-test/units/basic.target
unset NOTIFY_SOCKET LISTEN_FDS
export HOME=/run/service-test XDG_RUNTIME_DIR=/run/service-test/runtime SYSTEMD_UNIT_PATH=/run/service-test/units
exec /lib/systemd/systemd --user --log-target=null --unit=basic.target
"#;

/// Who manages the service.
enum Manager {
    /// A user's manager, with the name of its control group; its end is the end of what it runs.
    User(Child, String),
    /// PID 1 of a machine that belongs to the tests, where the package is installed.
    Machine,
}

/// The service under a manager.
pub struct Systemd(Manager);

/// Whether this machine, its clock, memory and service, belongs to the tests.
#[must_use]
pub fn owns_the_machine() -> bool {
    std::env::var_os("MALLOC_DAEMON_MACHINE").is_some_and(|value| value == "own")
}

impl Systemd {
    /// Starts it, with a drop-in for the service: its `[Service]` lines.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(drop_in: &str) -> Self {
        if owns_the_machine() {
            let systemd = Systemd(Manager::Machine);
            std::fs::create_dir_all(INSIDE).expect("a folder");
            // The service that came up with the machine.
            systemd.control(&["stop", "malloc-daemon.socket", "malloc-daemon.service"]);
            systemd.drop_in(&format!(
                "[Service]\nRestartSec=100ms\nExecStart=\nExecStart=/usr/bin/malloc-daemon -v serve\n{drop_in}\n"
            ));
            return systemd;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = format!("service-test-{}-{number}", std::process::id());
        let manager = Command::new("unshare")
            .args(["--mount", "bash", "-c", SCRIPT, "bash"])
            .arg(binary())
            .arg(workspace().join("packaging"))
            .arg(&group)
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare, of util-linux");
        let systemd = Systemd(Manager::User(manager, group));
        let socket = systemd.path("runtime/systemd/private");
        until("systemd runs", || socket.exists().then_some(()));
        // The socket of PID 1 is open to every user.
        let notify = systemd.path("runtime/systemd/notify");
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(notify, everybody).expect("the notification socket");
        systemd.drop_in(&format!(
            "[Service]\nStandardError=append:{INSIDE}/log\nStandardOutput=append:{INSIDE}/log\nRestartSec=100ms\n\
             ExecStart=\nExecStart={INSIDE}/daemon -v serve --config {INSIDE}/config.toml\n{drop_in}\n"
        ));
        systemd
    }

    fn drop_in(&self, text: &str) {
        let folder = match self.0 {
            Manager::User(..) => self.path("units/malloc-daemon.service.d"),
            Manager::Machine => PathBuf::from("/run/systemd/system/malloc-daemon.service.d"),
        };
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("test.conf"), text).expect("written");
        self.control(&["daemon-reload"]);
    }

    /// A path of the test as the test sees it.
    #[must_use]
    pub fn path(&self, below: &str) -> PathBuf {
        match &self.0 {
            Manager::User(manager, _) => {
                Path::new("/proc").join(manager.id().to_string()).join("root").join(&INSIDE[1..]).join(below)
            }
            Manager::Machine => Path::new(INSIDE).join(below),
        }
    }

    /// The configuration of the service.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn configure(&self, text: &str) {
        let file = match self.0 {
            Manager::User(..) => self.path("config.toml"),
            Manager::Machine => PathBuf::from("/etc/malloc-daemon/config.toml"),
        };
        std::fs::write(file, text).expect("written");
    }

    /// What the service wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        match self.0 {
            Manager::User(..) => std::fs::read_to_string(self.path("log")).unwrap_or_default(),
            Manager::Machine => {
                let journal = ["--unit=malloc-daemon.service", "--output=cat", "--no-pager"];
                let told = Command::new("journalctl").args(journal).output().expect("journalctl, of systemd");
                String::from_utf8_lossy(&told.stdout).into_owned()
            }
        }
    }

    /// `systemctl` with these arguments: whether it succeeded, and what it wrote.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn control(&self, arguments: &[&str]) -> (bool, String) {
        let mut systemctl = match &self.0 {
            Manager::User(manager, _) => {
                let mut systemctl = Command::new("nsenter");
                systemctl
                    .args(["--mount", "--target", &manager.id().to_string()])
                    .args(["env", &format!("XDG_RUNTIME_DIR={INSIDE}/runtime")])
                    .args(["timeout", "240", "systemctl", "--user"]);
                systemctl
            }
            Manager::Machine => {
                let mut systemctl = Command::new("timeout");
                systemctl.args(["240", "systemctl"]);
                systemctl
            }
        };
        let done = systemctl.arg("--no-pager").args(arguments).stdin(Stdio::null()).output();
        let done = done.expect("nsenter and timeout");
        let text = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// A property of the service.
    #[must_use]
    pub fn property(&self, name: &str) -> String {
        self.control(&["show", "--value", "--property", name, "malloc-daemon.service"]).1
    }

    /// The service's process, when it runs.
    #[must_use]
    pub fn main_pid(&self) -> Option<u32> {
        self.property("MainPID").parse().ok().filter(|pid| *pid != 0)
    }

    /// Waits for a value of a property, for as long as a loaded machine may need to attach the probes.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for(&self, name: &str, value: &str) {
        for _ in 0..4 {
            let come = crate::process::within_patience(|| {
                std::thread::park_timeout(Duration::from_millis(20));
                (self.property(name) == value).then_some(())
            });
            if come.is_some() {
                return;
            }
        }
        let status = self.control(&["status", "malloc-daemon.service"]).1;
        panic!("{name} does not become {value}:\n{status}\n{}", self.log());
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Each step fails only for what is gone.
        let _stopped = self.control(&["stop", "malloc-daemon.socket", "malloc-daemon.service"]);
        let Manager::User(manager, group) = &mut self.0 else {
            // The machine's service is the shipped one again.
            let _gone = std::fs::remove_dir_all("/run/systemd/system/malloc-daemon.service.d");
            self.control(&["daemon-reload"]);
            return;
        };
        if let Some(pid) = i32::try_from(manager.id()).ok().and_then(Pid::from_raw) {
            // It would look for units that are not here to end by. Nothing of it is left running.
            let _gone = kill_process(pid, Signal::KILL);
        }
        let _reaped = manager.wait();
        for hierarchy in ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            remove_groups(&Path::new(hierarchy).join(&group));
        }
    }
}

/// Removes a control group with those below it; their files are the kernel's.
fn remove_groups(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _gone = std::fs::remove_dir(group);
}
