//! What the running kernel is and offers: version, clocks, features, and this process's rights.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{HostError, SMALL_FILE_BYTES, read_bounded, read_trimmed};

/// The most that is read of the kernel's BTF, 64 MiB: distribution kernels have 4 to 9 MB.
const BTF_BYTES: u64 = 64 << 20;

/// Where the kernel shows its own BTF.
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The number that the first pid namespace of every kernel has (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// The first three numbers of a kernel release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// 6 in 6.18.44
    pub major: u32,
    /// 18 in 6.18.44
    pub minor: u32,
    /// 44 in 6.18.44; distributions often keep it at 0
    pub patch: u32,
}

impl Version {
    /// Parses the beginning of a release such as `6.1.0-40-amd64` or `7.0-rc3`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let numbers = release.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?;
        let mut numbers = numbers.split('.').map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Version { major, minor, patch })
    }

    /// The first release of a series.
    #[must_use]
    pub const fn series(major: u32, minor: u32) -> Self {
        Version { major, minor, patch: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What the kernel withholds even from root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lockdown {
    /// The kernel has no lockdown, or securityfs is not mounted.
    Unknown,
    /// Nothing.
    Off,
    /// Changing the kernel; observing is allowed.
    Integrity,
    /// Reading the kernel's memory too: tracefs and `bpf_probe_read_kernel` fail.
    Confidentiality,
}

/// The rights that some part of this daemon uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Capability {
    /// Read files and directories of others: tracefs.
    DacReadSearch = 2,
    /// See into other users' processes.
    SysPtrace = 19,
    /// Uprobes through `perf_event_open`, mounting tracefs.
    SysAdmin = 21,
    /// Raise resource limits; only kernels before 5.11 want it for maps.
    SysResource = 24,
    /// Open perf events.
    Perfmon = 38,
    /// Load programs, create maps.
    Bpf = 39,
    /// Open files through /proc/PID/map_files; `SysAdmin` includes it.
    CheckpointRestore = 40,
}

impl Capability {
    /// All of them.
    pub const ALL: [Capability; 7] = [
        Capability::DacReadSearch,
        Capability::SysPtrace,
        Capability::SysAdmin,
        Capability::SysResource,
        Capability::Perfmon,
        Capability::Bpf,
        Capability::CheckpointRestore,
    ];

    /// The name that systemd and `setcap` know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Capability::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Capability::SysPtrace => "CAP_SYS_PTRACE",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::SysResource => "CAP_SYS_RESOURCE",
            Capability::Perfmon => "CAP_PERFMON",
            Capability::Bpf => "CAP_BPF",
            Capability::CheckpointRestore => "CAP_CHECKPOINT_RESTORE",
        }
    }
}

/// A set of capabilities, one bit each, as `CapEff` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether the kernel grants what `capability` stands for, by itself or as a part of `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn grant(self, capability: Capability) -> bool {
        let has = |capability: u8| self.0 >> capability & 1 == 1;
        match capability {
            Capability::Perfmon | Capability::Bpf | Capability::CheckpointRestore => {
                has(capability as u8) || has(Capability::SysAdmin as u8)
            }
            other => has(other as u8),
        }
    }
}

/// Whether system calls of this process are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seccomp {
    /// Not at all.
    Off,
    /// All but four are forbidden.
    Strict,
    /// By programs that cannot be read back.
    Filter,
    /// The kernel has no seccomp, or a mode this daemon does not know.
    Unknown,
}

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// In force.
    pub capabilities: Capabilities,
    /// Filters on system calls.
    pub seccomp: Seccomp,
}

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// Its first numbers; `None` when they are none.
    pub version: Option<Version>,
    /// CPUs that may ever be brought up: the length of a per-CPU value.
    pub possible_cpus: usize,
    /// CPUs in use.
    pub online_cpus: usize,
    /// Bytes.
    pub page_bytes: usize,
    /// The unit of times in /proc, ticks per second.
    pub ticks_per_second: u64,
    /// Changes with every boot.
    pub boot_id: Option<String>,
    /// What is withheld from root.
    pub lockdown: Lockdown,
    /// `kernel.perf_event_paranoid`; `None` without perf events.
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.unprivileged_bpf_disabled`; `None` on kernels without that setting.
    pub unprivileged_bpf_disabled: Option<i32>,
    /// The type number of the uprobe PMU; `None` when uprobes are not built in.
    pub uprobe_pmu: Option<u32>,
    /// Whether the kernel describes its own types.
    pub has_btf: bool,
    /// Whether pids of this process are the machine's.
    pub in_initial_pid_namespace: bool,
}

/// Reads all of [`Kernel`].
///
/// # Errors
/// [`HostError`]; what is missing on some kernels is `None` instead.
pub fn kernel() -> Result<Kernel, HostError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let cpus = |which: &str| -> Result<usize, HostError> {
        let text = read_trimmed(format!("/sys/devices/system/cpu/{which}"))?;
        Ok(text.and_then(|list| count_cpus(&list)).unwrap_or(1))
    };
    let setting = |name: &str| -> Result<Option<i32>, HostError> {
        Ok(read_trimmed(format!("/proc/sys/kernel/{name}"))?.and_then(|value| value.parse().ok()))
    };
    Ok(Kernel {
        version: Version::parse(&release),
        release,
        possible_cpus: cpus("possible")?,
        online_cpus: cpus("online")?,
        page_bytes: rustix::param::page_size(),
        ticks_per_second: rustix::param::clock_ticks_per_second(),
        boot_id: read_trimmed("/proc/sys/kernel/random/boot_id")?,
        lockdown: read_trimmed("/sys/kernel/security/lockdown")?
            .map_or(Lockdown::Unknown, |modes| parse_lockdown(&modes)),
        perf_event_paranoid: setting("perf_event_paranoid")?,
        unprivileged_bpf_disabled: setting("unprivileged_bpf_disabled")?,
        uprobe_pmu: read_trimmed("/sys/bus/event_source/devices/uprobe/type")?.and_then(|number| number.parse().ok()),
        has_btf: Path::new(BTF_PATH).exists(),
        in_initial_pid_namespace: std::fs::metadata("/proc/self/ns/pid")
            .is_ok_and(|namespace| namespace.ino() == INITIAL_PID_NAMESPACE),
    })
}

/// What this process may do.
///
/// # Errors
/// [`HostError`].
pub fn rights() -> Result<Rights, HostError> {
    let path = Path::new("/proc/thread-self/status");
    let text = read_bounded(path, SMALL_FILE_BYTES)?;
    let rights = text.and_then(|text| parse_rights(&String::from_utf8_lossy(&text)));
    rights.ok_or(HostError::Malformed { path: path.to_path_buf(), expected: "CapEff line" })
}

/// The kernel's own BTF; `None` when it was built without.
///
/// # Errors
/// [`HostError`].
pub fn btf() -> Result<Option<Vec<u8>>, HostError> {
    read_bounded(Path::new(BTF_PATH), BTF_BYTES)
}

fn parse_rights(status: &str) -> Option<Rights> {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    Some(Rights {
        capabilities: Capabilities(u64::from_str_radix(value("CapEff:")?, 16).ok()?),
        seccomp: match value("Seccomp:") {
            Some("0") => Seccomp::Off,
            Some("1") => Seccomp::Strict,
            Some("2") => Seccomp::Filter,
            _ => Seccomp::Unknown,
        },
    })
}

/// The mode in force stands in brackets: `none [integrity] confidentiality`.
fn parse_lockdown(modes: &str) -> Lockdown {
    match modes.split(['[', ']']).nth(1) {
        Some("none") => Lockdown::Off,
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}

/// How many numbers a list such as `0-3,8` names.
fn count_cpus(list: &str) -> Option<usize> {
    list.split(',').try_fold(0usize, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_distributions_give_their_version() {
        let version = |release| Version::parse(release).map(|version| version.to_string());
        assert_eq!(version("6.18.44-fc-v669").unwrap(), "6.18.44");
        assert_eq!(version("5.15.0-1053-aws").unwrap(), "5.15.0");
        assert_eq!(version("7.0-rc3").unwrap(), "7.0.0");
        assert_eq!(version("6.1.0+").unwrap(), "6.1.0");
        assert_eq!(version("4.18.0-553.el8_10.x86_64").unwrap(), "4.18.0");
        assert_eq!(version("linux"), None);
        assert!(Version::parse("6.9.12") < Some(Version::series(6, 10)));
    }

    #[test]
    fn the_lockdown_mode_in_brackets_counts() {
        assert_eq!(parse_lockdown("[none] integrity confidentiality"), Lockdown::Off);
        assert_eq!(parse_lockdown("none [integrity] confidentiality"), Lockdown::Integrity);
        assert_eq!(parse_lockdown("none integrity [confidentiality]"), Lockdown::Confidentiality);
        assert_eq!(parse_lockdown(""), Lockdown::Unknown);
    }

    #[test]
    fn cpu_lists_are_counted_with_their_holes() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus("3-0"), None);
        assert_eq!(count_cpus(""), None);
    }

    #[test]
    fn sys_admin_includes_the_rights_split_off_from_it_and_no_others() {
        let admin = Capabilities(1 << Capability::SysAdmin as u8);
        let granted: Vec<_> = Capability::ALL.into_iter().filter(|&one| admin.grant(one)).collect();
        let split_off = [Capability::Perfmon, Capability::Bpf, Capability::CheckpointRestore];
        assert_eq!(granted, [&[Capability::SysAdmin], split_off.as_slice()].concat());
    }

    #[test]
    fn rights_are_read_from_the_status_text() {
        let rights = parse_rights("Name:\tx\nCapEff:\t000001fffeffffff\nSeccomp:\t2\nSeccomp_filters:\t1\n").unwrap();
        assert_eq!(rights.seccomp, Seccomp::Filter);
        assert!(rights.capabilities.grant(Capability::Bpf) && !rights.capabilities.grant(Capability::SysResource));
        assert!(parse_rights("Name:\tx\n").is_none());
    }

    #[test]
    fn this_machine_answers_with_a_kernel_and_rights() {
        let kernel = kernel().unwrap();
        assert!(kernel.version.is_some() && kernel.possible_cpus >= kernel.online_cpus && kernel.online_cpus >= 1);
        assert!(kernel.page_bytes.is_power_of_two() && kernel.ticks_per_second > 0);
        rights().unwrap();
    }
}
