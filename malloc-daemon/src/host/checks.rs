//! What this machine lacks for the daemon, and what to do about it: verdicts over facts (pure), and the facts (IO).

use super::btf::{TaskOffsets, task_offsets};
use super::kernel::{Capability, Kernel, Lockdown, Rights, Seccomp, Version};
use super::tracefs::{self, Tracefs};
use super::{HostError, kernel};

/// Attach cookies, which tell one program where it was hit.
const COOKIES: Version = Version::series(5, 15);
/// From here on one link can carry many probes, and the fixes of its first releases are in.
const MANY_PROBES_PER_LINK: Version = Version::series(6, 10);

/// How well a need is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Fully.
    Ok,
    /// The daemon works, but shows less or costs more.
    Degraded,
    /// The daemon cannot work.
    Missing,
}

/// One need of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is needed.
    pub name: &'static str,
    /// Whether it is there.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// One sentence that says what to do; present unless the verdict is [`Verdict::Ok`].
    pub remedy: Option<String>,
}

/// Whether the tracing file system can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracing {
    /// It is mounted and its tracepoints can be read.
    Readable(Tracefs),
    /// It is mounted, but the syscall tracepoints are not in it.
    WithoutSyscalls(Tracefs),
    /// It is mounted, but not for this user.
    Unreadable,
    /// It is not mounted.
    NotMounted,
    /// The kernel was built without it.
    NotInKernel,
}

/// Everything that the verdicts rest on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The running kernel.
    pub kernel: Kernel,
    /// What this process may do.
    pub rights: Rights,
    /// The tracing file system.
    pub tracing: Tracing,
    /// Field offsets from BTF, or why there are none.
    pub offsets: Result<TaskOffsets, String>,
}

/// Reads the facts; mounts nothing.
///
/// # Errors
/// [`HostError`] when /proc itself cannot be read.
pub fn facts() -> Result<Facts, HostError> {
    let tracing = match tracefs::find()? {
        None if tracefs::is_in_kernel()? => Tracing::NotMounted,
        None => Tracing::NotInKernel,
        Some(tracefs) => match tracefs.tracepoint_id("syscalls", "sys_enter_mmap") {
            Ok(Some(_)) => Tracing::Readable(tracefs),
            Ok(None) => Tracing::WithoutSyscalls(tracefs),
            Err(_) => Tracing::Unreadable,
        },
    };
    let offsets = match kernel::btf() {
        Ok(Some(btf)) => task_offsets(&btf).map_err(|error| error.to_string()),
        Ok(None) => Err("the kernel shows no BTF".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Ok(Facts { kernel: kernel::kernel()?, rights: kernel::rights()?, tracing, offsets })
}

/// The verdicts, in a fixed order.
#[must_use]
pub fn checks(facts: &Facts) -> Vec<Check> {
    vec![
        kernel_version(facts),
        uprobes(facts),
        attaching(facts),
        perf_events(facts),
        loading(facts),
        tracing(facts),
        btf(facts),
        other_processes(facts),
        mapped_files(facts),
        lockdown(facts),
        pid_namespace(facts),
        system_call_filter(facts),
    ]
}

fn kernel_version(facts: &Facts) -> Check {
    const NAME: &str = "kernel version";
    let release = facts.kernel.release.clone();
    match facts.kernel.version {
        None => degraded(NAME, release, format!("Make sure that this kernel is at least {}.", series(COOKIES))),
        Some(version) if version < COOKIES => {
            missing(NAME, release, format!("Boot a kernel of version {} or later.", series(COOKIES)))
        }
        Some(version) if version < MANY_PROBES_PER_LINK => {
            ok(NAME, format!("{release}; from {} on attaching many probes is quicker", series(MANY_PROBES_PER_LINK)))
        }
        Some(_) => ok(NAME, release),
    }
}

fn uprobes(facts: &Facts) -> Check {
    const NAME: &str = "uprobes";
    match facts.kernel.uprobe_pmu {
        Some(number) => ok(NAME, format!("PMU type {number}")),
        None => missing(
            NAME,
            "no uprobe PMU in /sys/bus/event_source".to_owned(),
            "Mount sysfs at /sys, or boot a kernel built with CONFIG_UPROBE_EVENTS and CONFIG_PERF_EVENTS.".to_owned(),
        ),
    }
}

fn loading(facts: &Facts) -> Check {
    const NAME: &str = "right to load programs";
    let setting = |value: Option<i32>| value.map_or_else(|| "unset".to_owned(), |value| value.to_string());
    let found = format!("kernel.unprivileged_bpf_disabled={}", setting(facts.kernel.unprivileged_bpf_disabled));
    needing(facts, NAME, found, &[Capability::Bpf, Capability::Perfmon], missing)
}

fn attaching(facts: &Facts) -> Check {
    const NAME: &str = "right to attach uprobes";
    let setting = |value: Option<i32>| value.map_or_else(|| "unset".to_owned(), |value| value.to_string());
    let found = format!("kernel.perf_event_paranoid={}", setting(facts.kernel.perf_event_paranoid));
    // A link for many sites asks for CAP_BPF and CAP_PERFMON; a perf event for one site asks for CAP_SYS_ADMIN too since
    // CVE-2025-38466 (6.18, and back to 6.1 by the stable series).
    let many = facts.kernel.version.is_some_and(|version| version >= MANY_PROBES_PER_LINK);
    let rights: &[Capability] =
        if many { &[Capability::Perfmon] } else { &[Capability::Perfmon, Capability::SysAdmin] };
    needing(facts, NAME, found, rights, missing)
}

/// Debian's and Ubuntu's kernels have values of `perf_event_paranoid` above 2, which close perf events to `CAP_PERFMON`;
/// others take 3 for 2, so that only the trial tells.
fn perf_events(facts: &Facts) -> Check {
    const NAME: &str = "right to open perf events";
    let setting = facts.kernel.perf_event_paranoid;
    let found = format!("kernel.perf_event_paranoid={}", setting.map_or_else(|| "unset".to_owned(), |n| n.to_string()));
    if setting.is_some_and(|setting| setting > 2) {
        return needing(facts, NAME, found, &[Capability::SysAdmin], |name, found, remedy| {
            degraded(name, found, format!("{remedy} Or: sysctl kernel.perf_event_paranoid=2"))
        });
    }
    needing(facts, NAME, found, &[Capability::Perfmon], missing)
}

fn other_processes(facts: &Facts) -> Check {
    const NAME: &str = "right to see other users' processes";
    needing(facts, NAME, "/proc".to_owned(), &[Capability::SysPtrace], degraded)
}

fn mapped_files(facts: &Facts) -> Check {
    const NAME: &str = "right to open deleted and replaced libraries";
    needing(facts, NAME, "/proc/PID/map_files".to_owned(), &[Capability::CheckpointRestore], degraded)
}

fn tracing(facts: &Facts) -> Check {
    const NAME: &str = "tracing file system";
    match &facts.tracing {
        Tracing::Readable(tracefs) => ok(NAME, format!("mounted at {}", tracefs.root().display())),
        Tracing::WithoutSyscalls(tracefs) => missing(
            NAME,
            format!("mounted at {}, without syscall tracepoints", tracefs.root().display()),
            "Boot a kernel built with CONFIG_FTRACE_SYSCALLS.".to_owned(),
        ),
        Tracing::Unreadable => {
            missing(NAME, "mounted, but not readable".to_owned(), grant(&[Capability::DacReadSearch]))
        }
        Tracing::NotInKernel => missing(
            NAME,
            "not in this kernel".to_owned(),
            "Boot a kernel built with CONFIG_TRACING and CONFIG_FTRACE_SYSCALLS.".to_owned(),
        ),
        Tracing::NotMounted if facts.kernel.lockdown == Lockdown::Confidentiality => missing(
            NAME,
            "not mounted, and forbidden by the kernel's lockdown".to_owned(),
            "Boot without lockdown=confidentiality.".to_owned(),
        ),
        Tracing::NotMounted if facts.rights.capabilities.grant(Capability::SysAdmin) => {
            ok(NAME, format!("not mounted; the daemon mounts it at {} when it starts", tracefs::MOUNT_POINT))
        }
        Tracing::NotMounted => missing(
            NAME,
            "not mounted".to_owned(),
            format!("Run `mount -t tracefs tracefs {}` as root.", tracefs::MOUNT_POINT),
        ),
    }
}

fn btf(facts: &Facts) -> Check {
    const NAME: &str = "kernel type information (BTF)";
    match &facts.offsets {
        Ok(TaskOffsets { signal_oom_mm: None, .. }) => ok(NAME, "all fields but signal_struct.oom_mm found".to_owned()),
        Ok(_) => ok(NAME, "all fields found".to_owned()),
        Err(reason) if facts.kernel.has_btf => {
            missing(NAME, reason.clone(), "Report this kernel's release and the message beside it.".to_owned())
        }
        Err(reason) => {
            missing(NAME, reason.clone(), "Boot a kernel built with CONFIG_DEBUG_INFO_BTF and mount /sys.".to_owned())
        }
    }
}

fn lockdown(facts: &Facts) -> Check {
    const NAME: &str = "kernel lockdown";
    match facts.kernel.lockdown {
        Lockdown::Off => ok(NAME, "off".to_owned()),
        Lockdown::Unknown => ok(NAME, "not in this kernel, or not shown".to_owned()),
        Lockdown::Integrity => ok(NAME, "integrity, which allows observing".to_owned()),
        Lockdown::Confidentiality => missing(
            NAME,
            "confidentiality, which forbids reading kernel memory".to_owned(),
            "Boot with lockdown=integrity or without Secure Boot's strict mode.".to_owned(),
        ),
    }
}

fn pid_namespace(facts: &Facts) -> Check {
    const NAME: &str = "pid namespace";
    if facts.kernel.in_initial_pid_namespace {
        return ok(NAME, "the machine's own".to_owned());
    }
    missing(
        NAME,
        "a container's, whose pids are not those that the kernel reports".to_owned(),
        "Start the container with the host's pid namespace (`--pid=host`, or `hostPID: true` in Kubernetes)."
            .to_owned(),
    )
}

fn system_call_filter(facts: &Facts) -> Check {
    const NAME: &str = "system-call filter";
    match facts.rights.seccomp {
        Seccomp::Off | Seccomp::Unknown => ok(NAME, "none".to_owned()),
        Seccomp::Filter => ok(NAME, "in force; it must allow bpf and perf_event_open".to_owned()),
        Seccomp::Strict => {
            missing(NAME, "strict".to_owned(), "Start the daemon outside the sandbox that limits it.".to_owned())
        }
    }
}

fn ok(name: &'static str, found: String) -> Check {
    Check { name, verdict: Verdict::Ok, found, remedy: None }
}

fn degraded(name: &'static str, found: String, remedy: String) -> Check {
    Check { name, verdict: Verdict::Degraded, found, remedy: Some(remedy) }
}

fn missing(name: &'static str, found: String, remedy: String) -> Check {
    Check { name, verdict: Verdict::Missing, found, remedy: Some(remedy) }
}

/// Good with all of `needed`, otherwise what `lacking` makes of it.
fn needing(
    facts: &Facts,
    name: &'static str,
    found: String,
    needed: &[Capability],
    lacking: fn(&'static str, String, String) -> Check,
) -> Check {
    let lacks = |capability: &Capability| !facts.rights.capabilities.grant(*capability);
    let lacked: Vec<Capability> = needed.iter().copied().filter(lacks).collect();
    if lacked.is_empty() {
        return ok(name, format!("{}; {found}", names(needed)));
    }
    lacking(name, format!("without {}; {found}", names(&lacked)), grant(&lacked))
}

fn grant(capabilities: &[Capability]) -> String {
    let names = names(capabilities);
    format!("Run the daemon with sudo, or add {names} to AmbientCapabilities= of its systemd unit.")
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" ")
}

fn series(version: Version) -> String {
    format!("{}.{}", version.major, version.minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::kernel::Capabilities;

    fn good() -> Facts {
        let offsets = TaskOffsets {
            task_group_leader: 1,
            task_start_boottime: 2,
            task_mm: 3,
            task_signal: 4,
            task_tgid: 5,
            task_comm: 9,
            mm_brk: 6,
            signal_live: 7,
            signal_oom_mm: Some(8),
        };
        Facts {
            kernel: Kernel {
                release: "6.18.44".to_owned(),
                version: Version::parse("6.18.44"),
                possible_cpus: 2,
                online_cpus: 2,
                page_bytes: 4096,
                ticks_per_second: 100,
                boot_id: None,
                lockdown: Lockdown::Off,
                perf_event_paranoid: Some(2),
                unprivileged_bpf_disabled: Some(2),
                uprobe_pmu: Some(9),
                has_btf: true,
                in_initial_pid_namespace: true,
            },
            rights: Rights { capabilities: Capabilities(u64::MAX), seccomp: Seccomp::Off },
            tracing: Tracing::NotMounted,
            offsets: Ok(offsets),
        }
    }

    fn without(facts: &mut Facts, capability: Capability) {
        facts.rights.capabilities.0 &= !(1 << capability as u8);
    }

    /// The checks that a change of good facts spoils.
    fn spoilt(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Verdict)> {
        let mut facts = good();
        change(&mut facts);
        let bad = checks(&facts).into_iter().filter(|check| check.verdict != Verdict::Ok);
        bad.map(|check| (check.name, check.verdict)).collect()
    }

    #[test]
    fn root_on_a_new_kernel_lacks_nothing() {
        assert_eq!(spoilt(|_| {}), []);
    }

    #[test]
    fn every_lack_spoils_the_check_that_names_it() {
        use Verdict::{Degraded, Missing};
        assert_eq!(spoilt(|facts| facts.kernel.version = Version::parse("5.14.99")), [("kernel version", Missing)]);
        assert_eq!(spoilt(|facts| facts.kernel.version = None), [("kernel version", Degraded)]);
        assert_eq!(spoilt(|facts| facts.kernel.version = Version::parse("5.15.0")), []);
        assert_eq!(spoilt(|facts| facts.kernel.uprobe_pmu = None), [("uprobes", Missing)]);
        assert_eq!(spoilt(|facts| facts.offsets = Err(String::new())), [("kernel type information (BTF)", Missing)]);
        assert_eq!(spoilt(|facts| facts.kernel.in_initial_pid_namespace = false), [("pid namespace", Missing)]);
        assert_eq!(spoilt(|facts| facts.rights.seccomp = Seccomp::Strict), [("system-call filter", Missing)]);
        assert_eq!(spoilt(|facts| facts.tracing = Tracing::Unreadable), [("tracing file system", Missing)]);
        assert_eq!(spoilt(|facts| facts.tracing = Tracing::NotInKernel), [("tracing file system", Missing)]);
        let confidential = spoilt(|facts| facts.kernel.lockdown = Lockdown::Confidentiality);
        assert_eq!(confidential, [("tracing file system", Missing), ("kernel lockdown", Missing)]);
        assert_eq!(
            spoilt(|facts| without(facts, Capability::SysPtrace)),
            [("right to see other users' processes", Degraded)]
        );
    }

    #[test]
    fn without_sys_admin_no_tracefs_mounts_and_on_old_kernels_no_uprobe_attaches() {
        let release = |major, minor| {
            spoilt(|facts| {
                facts.kernel.version = Some(Version::series(major, minor));
                facts.tracing = Tracing::NotMounted;
                without(facts, Capability::SysAdmin);
            })
        };
        assert_eq!(release(6, 10), [("tracing file system", Verdict::Missing)]);
        let both = [("right to attach uprobes", Verdict::Missing), ("tracing file system", Verdict::Missing)];
        assert_eq!(release(6, 9), both);
    }

    #[test]
    fn a_kernel_that_closes_perf_events_is_told_with_both_remedies() {
        let closed = |facts: &mut Facts| facts.kernel.perf_event_paranoid = Some(3);
        assert_eq!(spoilt(closed), []);
        let refused = spoilt(|facts| {
            closed(facts);
            without(facts, Capability::SysAdmin);
        });
        let both = [("right to open perf events", Verdict::Degraded), ("tracing file system", Verdict::Missing)];
        assert_eq!(refused, both);
    }

    #[test]
    fn an_unprivileged_user_is_told_every_capability_by_name() {
        let mut facts = good();
        facts.kernel.version = Some(Version::series(6, 1));
        facts.rights.capabilities = Capabilities(0);
        let remedies: String = checks(&facts).into_iter().filter_map(|check| check.remedy).collect();
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE"] {
            assert!(remedies.contains(name), "{name}");
        }
    }

    #[test]
    fn whatever_is_not_good_has_a_remedy_of_one_sentence() {
        let mut facts = good();
        facts.kernel.version = Version::parse("4.18");
        facts.kernel.uprobe_pmu = None;
        facts.kernel.lockdown = Lockdown::Confidentiality;
        facts.kernel.in_initial_pid_namespace = false;
        facts.rights = Rights { capabilities: Capabilities(0), seccomp: Seccomp::Strict };
        facts.offsets = Err("the kernel shows no BTF".to_owned());
        for check in checks(&facts) {
            let remedy = check.remedy.expect(check.name);
            assert!(remedy.ends_with('.') && !remedy.contains(". "), "{remedy}");
        }
    }

    #[test]
    fn this_machine_gives_a_verdict_on_every_need() {
        assert_eq!(checks(&facts().unwrap()).len(), checks(&good()).len());
    }
}
