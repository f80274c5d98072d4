//! What is mounted where: the text of /proc/PID/mountinfo to values, and the file systems that can hang a reader.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::maps::Device;

/// One line of /proc/PID/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of this mount, unique on the machine while it is mounted.
    pub id: u64,
    /// What `stat` shows as the device of its files, mostly.
    pub device: Device,
    /// The path below which it is seen.
    pub point: PathBuf,
    /// The kind of file system: `ext4`, `tracefs`, `fuse.sshfs` ...
    pub kind: String,
    /// Whether nothing can be written through it.
    pub read_only: bool,
}

impl Mount {
    /// Whether a process, perhaps a hostile one, answers for this file system and may keep a reader waiting for ever.
    /// Virtiofs speaks the same protocol, but its other end is the hypervisor.
    #[must_use]
    pub fn is_served_by_a_process(&self) -> bool {
        matches!(self.kind.as_str(), "fuse" | "fuseblk") || self.kind.starts_with("fuse.")
    }
}

/// The mounts in `text`, in the order of the file. Lines of another form are left out.
#[must_use]
pub fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// The mount that a path lies in: the last one among those with the longest mount point.
#[must_use]
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
}

/// `id parent major:minor root point options [optional ..] - kind source super-options`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let id = number(words.next()?)?;
    let mut device = words.nth(1)?.split(|&byte| byte == b':');
    let device = Device {
        major: u32::try_from(number(device.next()?)?).ok()?,
        minor: u32::try_from(number(device.next()?)?).ok()?,
    };
    let point = PathBuf::from(OsString::from_vec(unescaped(words.nth(1)?)));
    let read_only = words.next()?.split(|&byte| byte == b',').any(|option| option == b"ro");
    words.find(|word| word == b"-")?;
    let kind = OsStr::from_bytes(words.next()?).to_string_lossy().into_owned();
    Some(Mount { id, device, point, kind, read_only })
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// The kernel writes blank, tab, newline, backslash and `#` as `\ooo`, three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', tail @ ..] => {
                Some(((high - b'0') * 64 + (middle - b'0') * 8 + (low - b'0'), tail))
            }
            _ => None,
        };
        let (byte, tail) = escaped.unwrap_or((first, tail));
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        30 22 0:21 / /sys ro,nosuid - sysfs sysfs rw\n\
        31 30 0:12 / /sys/kernel/tracing rw shared:7 master:1 - tracefs tracefs rw\n\
        40 22 0:50 / /home/a\\040b rw,nosuid - fuse.sshfs host:/ rw\n";

    #[test]
    fn optional_fields_do_not_hide_the_kind_of_file_system() {
        let mounts = mounts(TEXT);
        let kinds: Vec<_> = mounts.iter().map(|mount| mount.kind.as_str()).collect();
        assert_eq!(kinds, ["ext4", "sysfs", "tracefs", "fuse.sshfs"]);
        assert!(mounts[1].read_only && !mounts[2].read_only);
        assert_eq!(mounts[0].device, Device { major: 254, minor: 0 });
    }

    #[test]
    fn a_path_belongs_to_the_longest_mount_point_above_it() {
        let mounts = mounts(TEXT);
        assert_eq!(mount_of(&mounts, Path::new("/sys/kernel/tracing/events")).unwrap().id, 31);
        assert_eq!(mount_of(&mounts, Path::new("/sys/kernel/tracing2")).unwrap().id, 30);
        let remote = mount_of(&mounts, Path::new("/home/a b/lib.so")).unwrap();
        assert!(remote.is_served_by_a_process());
        assert!(!mount_of(&mounts, Path::new("/home/a")).unwrap().is_served_by_a_process());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = mounts(&text).len();
        }
    }
}
