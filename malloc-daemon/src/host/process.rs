//! Facts about one process, by pid, from /proc; a process that vanished is `None`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::maps::{Mapping, mappings};
use super::{HostError, SMALL_FILE_BYTES, absent_as_none, read_bounded};

/// The most that is read of /proc/PID/maps, 16 MiB: 65,530 mappings, the kernel's default limit, of 250 bytes each.
pub const MAPS_BYTES: u64 = 16 << 20;

/// The number of a process (or, where said so, of a thread) in this daemon's pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a process: a pid alone may belong to another process later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessIdentity {
    /// The number.
    pub pid: Pid,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// What a thread is doing, as /proc says it with one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// `R`
    Running,
    /// `S`
    Sleeping,
    /// `D`, not to be woken by signals
    Waiting,
    /// `T`
    Stopped,
    /// `t`
    Traced,
    /// `I`, a kernel thread with nothing to do
    Idle,
    /// `Z`: ended, its parent has not asked yet
    Zombie,
    /// `X` or `x`
    Dead,
    /// A letter this daemon does not know.
    Other(u8),
}

impl State {
    fn from_letter(letter: u8) -> Self {
        match letter {
            b'R' => State::Running,
            b'S' => State::Sleeping,
            b'D' => State::Waiting,
            b'T' => State::Stopped,
            b't' => State::Traced,
            b'I' => State::Idle,
            b'Z' => State::Zombie,
            b'X' | b'x' => State::Dead,
            other => State::Other(other),
        }
    }

    /// Whether no instruction of it will run any more.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, State::Zombie | State::Dead)
    }
}

/// What /proc/PID/stat says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name of the main thread, chosen by the process; bytes that are not UTF-8 are replaced.
    pub comm: String,
    /// What its main thread is doing.
    pub state: State,
    /// The parent; 0 when it lies outside the pid namespace.
    pub parent: Pid,
    /// Page faults of all its threads that needed no reading from a disk.
    pub minor_faults: u64,
    /// CPU time of all its threads in user code, in clock ticks.
    pub user_ticks: u64,
    /// CPU time of all its threads in the kernel, in clock ticks.
    pub system_ticks: u64,
    /// Number of threads.
    pub threads: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// What /proc/PID/status adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The process that the thread belongs to.
    pub tgid: Pid,
    /// The real user id.
    pub uid: u32,
}

/// What a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exe {
    /// The path from the root of the process's mount namespace; a changed root directory is not left out.
    pub path: PathBuf,
    /// The file is no longer at that path.
    pub deleted: bool,
}

/// The pids of all processes, ascending. Threads are not listed.
///
/// # Errors
/// When /proc cannot be listed.
pub fn pids() -> Result<Vec<Pid>, HostError> {
    let mut pids = numbers_in(Path::new("/proc"))?.unwrap_or_default();
    pids.sort_unstable();
    Ok(pids)
}

/// Reads /proc/PID/stat.
///
/// # Errors
/// [`HostError`], also when the content has another form.
pub fn stat(pid: Pid) -> Result<Option<Stat>, HostError> {
    parsed(pid, "stat", "process statistics", parse_stat)
}

/// Reads /proc/PID/status; `pid` may be a thread's.
///
/// # Errors
/// [`HostError`], also when the content has another form.
pub fn status(pid: Pid) -> Result<Option<Status>, HostError> {
    parsed(pid, "status", "process status", parse_status)
}

/// Which life of `pid` is going on.
///
/// # Errors
/// As [`stat`].
pub fn identity(pid: Pid) -> Result<Option<ProcessIdentity>, HostError> {
    Ok(stat(pid)?.map(|stat| ProcessIdentity { pid, start_ticks: stat.start_ticks }))
}

/// Whether some process with this pid has not ended yet.
#[must_use]
pub fn is_there(pid: Pid) -> bool {
    matches!(stat(pid), Ok(Some(stat)) if !stat.state.has_ended())
}

/// Whether that process, and no later one with its number, still runs. A zombie does not.
///
/// # Errors
/// As [`stat`].
pub fn is_alive(process: ProcessIdentity) -> Result<bool, HostError> {
    let stat = stat(process.pid)?;
    Ok(stat.is_some_and(|stat| stat.start_ticks == process.start_ticks && !stat.state.has_ended()))
}

/// CPU time used by all threads so far.
///
/// # Errors
/// As [`stat`].
pub fn cpu_time(pid: Pid) -> Result<Option<Duration>, HostError> {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(stat(pid)?.map(|stat| {
        let ticks = stat.user_ticks.saturating_add(stat.system_ticks);
        let rest_ns = (ticks % ticks_per_second).saturating_mul(1_000_000_000) / ticks_per_second;
        Duration::from_secs(ticks / ticks_per_second).saturating_add(Duration::from_nanos(rest_ns))
    }))
}

/// The control group: the unified hierarchy's path, or on a machine that mounts the old hierarchies (then the unified
/// one is mostly `/`) systemd's or else the memory controller's.
///
/// # Errors
/// [`HostError`].
pub fn cgroup(pid: Pid) -> Result<Option<String>, HostError> {
    let text = read_bounded(&path_of(pid, "cgroup"), SMALL_FILE_BYTES)?;
    Ok(text.and_then(|text| parse_cgroup(&text)))
}

/// What the process runs; `None` for kernel threads too.
///
/// # Errors
/// [`HostError`]; reading another user's needs `CAP_SYS_PTRACE`.
pub fn exe(pid: Pid) -> Result<Option<Exe>, HostError> {
    let link = path_of(pid, "exe");
    let Some(target) = absent_as_none(&link, std::fs::read_link(&link))? else { return Ok(None) };
    Ok(Some(parse_exe(target, |path| is_executable_of(pid, path))))
}

/// What the process maps; empty for kernel threads and zombies. Reading takes the process's `mmap_lock`: ask once per
/// event, not on a timer.
///
/// # Errors
/// [`HostError`]; more than [`MAPS_BYTES`] is one.
pub fn maps(pid: Pid) -> Result<Option<Vec<Mapping>>, HostError> {
    let text = read_bounded(&path_of(pid, "maps"), MAPS_BYTES)?;
    Ok(text.map(|text| mappings(&text).collect()))
}

/// The direct children, ascending.
///
/// # Errors
/// [`HostError`].
pub fn children(pid: Pid) -> Result<Vec<Pid>, HostError> {
    let mut children = match children_listed(pid) {
        Ok(Some(children)) => children,
        // The list is optional in the kernel's configuration and unbounded in length; the parents of all are neither.
        Ok(None) | Err(HostError::TooLarge { .. }) => children_by_parent(pid)?,
        Err(error) => return Err(error),
    };
    children.sort_unstable();
    children.dedup();
    Ok(children)
}

fn children_listed(pid: Pid) -> Result<Option<Vec<Pid>>, HostError> {
    let mut children = Vec::new();
    let threads = path_of(pid, "task");
    for thread in numbers_in(&threads)?.unwrap_or_default() {
        let path = threads.join(thread.to_string()).join("children");
        match read_bounded(&path, SMALL_FILE_BYTES)? {
            Some(text) => children.extend(String::from_utf8_lossy(&text).split_whitespace().filter_map(pid_of)),
            None if threads.join(thread.to_string()).exists() => return Ok(None),
            None => {}
        }
    }
    Ok(Some(children))
}

/// Thread ids of a process, none when it is gone.
pub fn threads(pid: Pid) -> impl Iterator<Item = u32> {
    numbers_in(&path_of(pid, "task")).ok().flatten().unwrap_or_default().into_iter().map(|thread| thread.0)
}

fn children_by_parent(pid: Pid) -> Result<Vec<Pid>, HostError> {
    let is_child = |child: &Pid| matches!(stat(*child), Ok(Some(stat)) if stat.parent == pid);
    Ok(pids()?.into_iter().filter(is_child).collect())
}

fn path_of(pid: Pid, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

fn parsed<T>(
    pid: Pid,
    file: &str,
    expected: &'static str,
    parse: fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, HostError> {
    let path = path_of(pid, file);
    let Some(text) = read_bounded(&path, SMALL_FILE_BYTES)? else { return Ok(None) };
    parse(&text).map(Some).ok_or(HostError::Malformed { path, expected })
}

/// The entries of a directory that are numbers.
fn numbers_in(directory: &Path) -> Result<Option<Vec<Pid>>, HostError> {
    let list = || std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>();
    let names = absent_as_none(directory, list())?;
    Ok(names.map(|names| names.iter().filter_map(|name| pid_of(name.to_str()?)).collect()))
}

fn pid_of(digits: &str) -> Option<Pid> {
    digits.parse().ok().map(Pid)
}

/// Reads a text as each of those that /proc holds of a process.
#[cfg(any(test, fuzzing))]
pub(super) fn read_texts(text: &[u8]) {
    let _ = (parse_stat(text), parse_status(text), parse_cgroup(text));
}

/// The name stands in parentheses and may hold any byte, parentheses and newlines included; behind its last
/// parenthesis there are only numbers.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let comm = String::from_utf8_lossy(text.get(open.checked_add(1)?..close)?).into_owned();
    let fields: Vec<&str> = str::from_utf8(text.get(close.checked_add(1)?..)?).ok()?.split_ascii_whitespace().collect();
    // proc(5) counts from 1 and has the state as field 3.
    let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
    Some(Stat {
        comm,
        state: State::from_letter(*field(3)?.as_bytes().first()?),
        parent: pid_of(field(4)?)?,
        minor_faults: field(10)?.parse().ok()?,
        user_ticks: field(14)?.parse().ok()?,
        system_ticks: field(15)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
    })
}

/// The name comes first and has its newlines escaped, so a line that begins with a key is the kernel's.
fn parse_status(text: &[u8]) -> Option<Status> {
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
    Some(Status { tgid: pid_of(value("Tgid:")?)?, uid: value("Uid:")?.parse().ok()? })
}

fn parse_cgroup(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    // hierarchy:controllers:path; the path may hold colons.
    let hierarchies: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
        .collect();
    let path_with = |name: &str| {
        let found = hierarchies.iter().find(|(controllers, _)| controllers.split(',').any(|one| one == name));
        found.map(|&(_, path)| path)
    };
    let choices = [path_with("name=systemd"), path_with("memory"), path_with("")];
    let present = || choices.into_iter().flatten();
    present().find(|&path| path != "/").or_else(|| present().next()).map(str::to_owned)
}

/// The kernel appends " (deleted)"; whether the name itself ends so, `is_the_file` finds out.
fn parse_exe(target: PathBuf, is_the_file: impl Fn(&Path) -> bool) -> Exe {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match target.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) if !is_the_file(&target) => {
            Exe { path: PathBuf::from(OsString::from_vec(path.to_vec())), deleted: true }
        }
        _ => Exe { path: target, deleted: false },
    }
}

fn is_executable_of(pid: Pid, path: &Path) -> bool {
    use super::file::{Root, open_exe, open_in_root};
    let Ok(Some(running)) = open_exe(pid, path) else { return false };
    let is_at = |root| matches!(open_in_root(root, path), Ok(Some(named)) if named.key == running.key);
    is_at(Root::Process(pid)) || is_at(Root::Host)
}

/// Resident memory of this very process, bytes.
#[must_use]
pub fn own_resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    const STAT: &str =
        "S 41 4242 4242 0 -1 4194560 100 0 0 0 17 25 0 0 20 0 3 0 123456 10000000 300 18446744073709551615";

    fn own() -> Pid {
        Pid(std::process::id())
    }

    #[test]
    fn a_name_with_parentheses_and_newlines_does_not_shift_the_fields() {
        for comm in ["sqlite3", "a) R 1 (b", ")\n(", "", "tmux: server"] {
            let stat = parse_stat(format!("4242 ({comm}) {STAT}\n").as_bytes()).unwrap();
            assert_eq!((stat.comm.as_str(), stat.start_ticks, stat.threads), (comm, 123_456, 3));
            assert_eq!((stat.state, stat.parent), (State::Sleeping, Pid(41)));
            assert_eq!((stat.user_ticks, stat.system_ticks), (17, 25));
        }
    }

    #[test]
    fn the_unified_group_is_taken_unless_the_old_hierarchies_know_better() {
        let group = |text: &str| parse_cgroup(text.as_bytes());
        assert_eq!(group("0::/system.slice/x.service\n").unwrap(), "/system.slice/x.service");
        assert_eq!(group("0::/\n").unwrap(), "/");
        assert_eq!(group("9:name=systemd:/user.slice\n4:memory:/m\n0::/\n").unwrap(), "/user.slice");
        assert_eq!(group("9:name=systemd:/\n4:cpu,memory:/a:b\n0::/\n").unwrap(), "/a:b");
        assert_eq!(group("4:cpu:/a\n"), None);
    }

    #[test]
    fn a_deleted_executable_is_told_from_one_named_so() {
        let named = PathBuf::from("/tmp/x (deleted)");
        assert_eq!(parse_exe(named.clone(), |_| false), Exe { path: PathBuf::from("/tmp/x"), deleted: true });
        assert_eq!(parse_exe(named.clone(), |_| true), Exe { path: named, deleted: false });
    }

    #[test]
    fn this_process_is_listed_alive_and_runs_its_test_binary() {
        assert!(pids().unwrap().contains(&own()));
        let process = identity(own()).unwrap().unwrap();
        assert!(is_alive(process).unwrap());
        assert!(!is_alive(ProcessIdentity { start_ticks: process.start_ticks + 1, ..process }).unwrap());
        let exe = exe(own()).unwrap().unwrap();
        assert_eq!(exe, Exe { path: std::env::current_exe().unwrap(), deleted: false });
        assert!(maps(own()).unwrap().unwrap().iter().any(|mapping| mapping.path() == exe.path));
        assert!(cpu_time(own()).unwrap().is_some());
        assert!(cgroup(own()).unwrap().unwrap().starts_with('/'));
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let thread = Pid(u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap());
        let status = status(thread).unwrap().unwrap();
        assert_eq!(status.tgid, own());
        assert_eq!(status.uid, rustix::process::getuid().as_raw());
    }

    #[test]
    fn a_child_is_listed_until_it_is_reaped_and_is_not_alive_as_a_zombie() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id());
        assert!(children(own()).unwrap().contains(&pid));
        assert!(children_by_parent(own()).unwrap().contains(&pid));
        let process = identity(pid).unwrap().unwrap();
        assert!(is_alive(process).unwrap());
        child.kill().unwrap();
        let exited = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let number = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(number), exited).unwrap();
        assert!(!is_alive(process).unwrap());
        child.wait().unwrap();
        assert!(stat(pid).unwrap().is_none() && exe(pid).unwrap().is_none() && maps(pid).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_stat(&text), parse_status(&text), parse_cgroup(&text));
        }
    }
}
