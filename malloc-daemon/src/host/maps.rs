//! What a process maps: the text of /proc/PID/maps to values, without IO.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The number of a device as the kernel prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Major number; 0 for file systems without a block device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The four permission letters of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permissions {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub execute: bool,
    /// `s`; otherwise the mapping is private, `p`.
    pub shared: bool,
}

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What the process may do there.
    pub permissions: Permissions,
    /// Where in the file the mapping begins, in bytes.
    pub offset: u64,
    /// The device of the mapped file. On overlayfs and btrfs `stat` may show another for the same file.
    pub device: Device,
    /// The inode of the mapped file; 0 when no file is mapped.
    pub inode: u64,
    /// The path from the root of the process's mount namespace (of this daemon's, where they share it), or a name such as `[heap]`; empty when there is
    /// none. Any bytes except NUL; a newline is real, and so may be a name that only looks like `[heap]`: ask `inode`.
    pub path: Vec<u8>,
    /// The kernel says that the path no longer leads there. A file whose name really ends in " (deleted)" looks the
    /// same, its `path` then lacks that ending.
    pub deleted: bool,
}

impl Mapping {
    /// Whether the mapping holds code of a file.
    #[must_use]
    pub fn is_executable_file(&self) -> bool {
        self.permissions.execute && self.inode != 0 && self.path.first() == Some(&b'/')
    }

    /// The path as the operating system takes it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }
}

/// The mappings in `text`, which is what /proc/PID/maps holds. Lines that are not of that form are left out: the
/// kernel writes none, and a file cut short ends in half a line.
pub fn mappings(text: &[u8]) -> impl Iterator<Item = Mapping> + '_ {
    text.split(|&byte| byte == b'\n').filter_map(mapping)
}

/// One line: `start-end perms offset major:minor inode   path`, all numbers but the inode hexadecimal.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let (range, rest) = cut(line, b' ')?;
    let (start, end) = cut(range, b'-')?;
    let (permissions, rest) = cut(rest, b' ')?;
    let (offset, rest) = cut(rest, b' ')?;
    let (device, rest) = cut(rest, b' ')?;
    let (major, minor) = cut(device, b':')?;
    let (inode, rest) = cut(rest, b' ').unwrap_or((rest, b""));
    // The kernel pads to column 73 with blanks; a path begins with '/' or '[', never with a blank.
    let name = rest.trim_ascii_start();
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let mapping = Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        permissions: permissions_of(permissions)?,
        offset: hexadecimal(offset)?,
        device: Device {
            major: u32::try_from(hexadecimal(major)?).ok()?,
            minor: u32::try_from(hexadecimal(minor)?).ok()?,
        },
        inode: decimal(inode)?,
        path: unescaped(name),
        deleted,
    };
    (mapping.start < mapping.end).then_some(mapping)
}

fn permissions_of(letters: &[u8]) -> Option<Permissions> {
    let [read, write, execute, sharing] = letters else { return None };
    Some(Permissions {
        read: *read == b'r',
        write: *write == b'w',
        execute: *execute == b'x',
        shared: *sharing == b's',
    })
}

/// `seq_file` writes a newline in a name as `\012` and leaves every other byte, the backslash too, as it is: a name
/// that holds the four characters `\012` cannot be told from one with a newline, and is rare enough to lose.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            path.push(b'\n');
            rest = tail;
        } else {
            path.push(byte);
            rest = tail;
        }
    }
    path
}

fn cut(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((text.get(..at)?, text.get(at.checked_add(1)?..)?))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &[u8]) -> Mapping {
        let mut found = mappings(line);
        let first = found.next().expect("one mapping");
        assert!(found.next().is_none());
        first
    }

    #[test]
    fn a_line_of_a_library_gives_all_its_fields() {
        let mapping = one(b"7f2efeb26000-7f2efec7b000 r-xp 00026000 fe:00 1234567                    /usr/lib/x86_64-linux-gnu/libc.so.6\n");
        assert_eq!(mapping.start, 0x7f2e_feb2_6000);
        assert_eq!(mapping.end, 0x7f2e_fec7_b000);
        assert_eq!(mapping.permissions, Permissions { read: true, write: false, execute: true, shared: false });
        assert_eq!(mapping.offset, 0x26000);
        assert_eq!(mapping.device, Device { major: 0xfe, minor: 0 });
        assert_eq!(mapping.inode, 1_234_567);
        assert_eq!(mapping.file_name(), b"libc.so.6");
        assert!(!mapping.deleted && mapping.is_executable_file());
    }

    #[test]
    fn memory_without_a_file_has_no_name() {
        let mapping = one(b"7f2efeb26000-7f2efec7b000 rw-p 00000000 00:00 0 \n");
        assert_eq!((mapping.inode, mapping.path.as_slice()), (0, b"".as_slice()));
        assert!(!mapping.is_executable_file());
    }

    #[test]
    fn a_replaced_file_is_marked_deleted_and_keeps_its_path() {
        let mapping = one(b"1000-2000 r-xp 00000000 fe:00 7   /usr/lib/libc.so.6 (deleted)\n");
        assert!(mapping.deleted);
        assert_eq!(mapping.path(), PathBuf::from("/usr/lib/libc.so.6"));
    }

    #[test]
    fn hostile_names_are_bytes_with_their_newlines_and_blanks() {
        let mapping = one(b"1000-2000 r-xs 00000000 fe:00 7   /tmp/a  b\\012\xff[heap]\n");
        assert_eq!(mapping.path, b"/tmp/a  b\n\xff[heap]");
        assert!(mapping.permissions.shared);
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        let text =
            b"1000-2000 r-xp 00000000 fe:00 7 /a\n1000-2000 r-x\n2000-1000 r-xp 0 0:0 7 /b\n\nzz-2000 r-xp 0 0:0 7 /c";
        assert_eq!(mappings(text).count(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
            for mapping in mappings(&text) {
                prop_assert!(mapping.start < mapping.end);
            }
        }

        #[test]
        fn every_name_without_nul_survives(
            name in prop::collection::vec(1u8..=255, 0..40),
            start in 0u64..1 << 47, length in 1u64..1 << 30, inode in 1u64..,
        ) {
            prop_assume!(!name.windows(4).any(|part| part == b"\\012") && !name.ends_with(b" (deleted)"));
            let mut line = format!("{start:x}-{:x} r-xp 00001000 fe:00 {inode}      /", start + length).into_bytes();
            for &byte in &name {
                if byte == b'\n' { line.extend(b"\\012") } else { line.push(byte) }
            }
            line.push(b'\n');
            let found: Vec<_> = mappings(&line).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].inode, inode);
            prop_assert_eq!(&found[0].path[1..], &name[..]);
        }
    }
}
