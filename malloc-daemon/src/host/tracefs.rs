//! The tracing file system: where it is mounted, mounting it, and the numbers of tracepoints.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::mounts::{Mount, mounts};
use super::{HostError, read_bounded, read_trimmed};

/// Where the kernel provides a directory to mount it on.
pub const MOUNT_POINT: &str = "/sys/kernel/tracing";

/// The most that is read of this daemon's own mountinfo: 4 MiB is some 20,000 mounts.
const MOUNTINFO_BYTES: u64 = 4 << 20;

/// A mounted tracing file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracefs {
    root: PathBuf,
}

impl Tracefs {
    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The number that `perf_event_open` knows a tracepoint by; `None` when this kernel has none of that name.
    ///
    /// # Errors
    /// [`HostError`]; without `CAP_DAC_READ_SEARCH` only root may read it.
    pub fn tracepoint_id(&self, category: &str, name: &str) -> Result<Option<u64>, HostError> {
        let path = self.root.join("events").join(category).join(name).join("id");
        let Some(text) = read_trimmed(&path)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| HostError::Malformed { path, expected: "tracepoint number" })
    }
}

/// The tracing file system that this process sees, wherever it is mounted.
///
/// # Errors
/// [`HostError`].
pub fn find() -> Result<Option<Tracefs>, HostError> {
    let text = read_bounded(Path::new("/proc/self/mountinfo"), MOUNTINFO_BYTES)?.unwrap_or_default();
    Ok(choose(&mounts(&text)).map(|root| Tracefs { root }))
}

/// Whether the kernel could mount it.
///
/// # Errors
/// [`HostError`].
pub fn is_in_kernel() -> Result<bool, HostError> {
    let kinds = read_trimmed("/proc/filesystems")?.unwrap_or_default();
    Ok(kinds.split_whitespace().any(|kind| kind == "tracefs"))
}

/// Mounts it at [`MOUNT_POINT`] unless it is mounted already. It stays mounted: others may use it from then on.
///
/// # Errors
/// [`HostError::NotPermitted`] without `CAP_SYS_ADMIN`; another when the kernel was built without tracing or is locked
/// down.
pub fn find_or_mount() -> Result<Tracefs, HostError> {
    if let Some(mounted) = find()? {
        return Ok(mounted);
    }
    let point = Path::new(MOUNT_POINT);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tracefs", point, "tracefs", flags, None).map_err(|error| match error {
        rustix::io::Errno::PERM => HostError::NotPermitted { path: point.to_path_buf() },
        other => HostError::from_io(point, io::Error::from(other)),
    })?;
    Ok(Tracefs { root: point.to_path_buf() })
}

/// The usual place first; debugfs shows it below itself, mounted on first use, so that its own mount counts as well.
fn choose(mounts: &[Mount]) -> Option<PathBuf> {
    let tracing = || mounts.iter().filter(|mount| mount.kind == "tracefs").map(|mount| mount.point.clone());
    let below_debugfs = || mounts.iter().find(|mount| mount.kind == "debugfs").map(|mount| mount.point.join("tracing"));
    tracing().find(|point| point == Path::new(MOUNT_POINT)).or_else(|| tracing().next()).or_else(below_debugfs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Option<PathBuf> {
        choose(&mounts(text.as_bytes()))
    }

    #[test]
    fn the_usual_place_is_preferred_to_others() {
        let text = "1 0 0:9 / /sys/kernel/debug/tracing rw - tracefs tracefs rw\n2 0 0:9 / /sys/kernel/tracing rw - tracefs tracefs rw\n";
        assert_eq!(place(text).unwrap(), Path::new(MOUNT_POINT));
        assert_eq!(place("1 0 0:9 / /elsewhere rw - tracefs tracefs rw\n").unwrap(), Path::new("/elsewhere"));
    }

    #[test]
    fn debugfs_alone_leads_to_the_tracing_below_it() {
        let text = "1 0 0:7 / /sys/kernel/debug rw - debugfs debugfs rw\n";
        assert_eq!(place(text).unwrap(), Path::new("/sys/kernel/debug/tracing"));
        assert_eq!(place("1 0 0:7 / /sys rw - sysfs sysfs rw\n"), None);
    }

    #[test]
    fn a_tracepoint_has_the_number_in_its_id_file_or_does_not_exist() {
        let directory = tempfile::tempdir().unwrap();
        let tracefs = Tracefs { root: directory.path().to_path_buf() };
        let point = directory.path().join("events/syscalls/sys_enter_mmap");
        std::fs::create_dir_all(&point).unwrap();
        std::fs::write(point.join("id"), "101\n").unwrap();
        assert_eq!(tracefs.tracepoint_id("syscalls", "sys_enter_mmap").unwrap(), Some(101));
        assert_eq!(tracefs.tracepoint_id("syscalls", "sys_enter_nothing").unwrap(), None);
        std::fs::write(point.join("id"), "many\n").unwrap();
        assert!(tracefs.tracepoint_id("syscalls", "sys_enter_mmap").is_err());
    }
}
