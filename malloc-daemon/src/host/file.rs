//! Opens files of other processes without trusting them: never outside their root, never a pipe, a device or a file
//! system whose owner can keep the reader waiting.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::maps::Device;
use super::mounts::{Mount, mount_of, mounts};
use super::process::Pid;
use super::{HostError, absent_as_none, harmless, is_absence, read_bounded};

/// The largest file that is opened: 512 MiB, four times the largest browser binary with its symbols stripped.
pub const LARGEST_FILE_BYTES: u64 = 512 << 20;

/// The most that is read of a mountinfo: 4 MiB is some 20,000 mounts.
const MOUNTINFO_BYTES: u64 = 4 << 20;

/// How often a path walk is repeated that a rename elsewhere on the machine interrupted (`EAGAIN` of `openat2`).
const WALKS: usize = 16;

/// Why a file of a process is not read. A file that is not there is `None` instead.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Only regular files are opened.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The file system is served by a process (FUSE), or its kind cannot be established.
    #[error("{} lies on a file system that may block its readers ({kind})", path.display())]
    MayBlock {
        /// The file.
        path: PathBuf,
        /// The kind of file system as the kernel names it, or "unknown".
        kind: String,
    },
    /// The file exceeds [`LARGEST_FILE_BYTES`].
    #[error("{} has {bytes} bytes, more than is read of any file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The kernel refused or failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Which content of which file: equal keys mean the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Device number as `stat` gives it.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last change of the content, nanoseconds since 1970; before 1970 negative.
    pub mtime_ns: i64,
}

/// Whose root directory a path starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// This daemon's.
    Host,
    /// That of a process, which may be a container's.
    Process(Pid),
}

impl Root {
    fn proc_directory(self) -> PathBuf {
        match self {
            Root::Host => PathBuf::from("/proc/self"),
            Root::Process(pid) => PathBuf::from(format!("/proc/{pid}")),
        }
    }
}

/// A regular file, open for reading, that can be neither exchanged nor made to block any more.
#[derive(Debug)]
pub struct TargetFile {
    /// The open file.
    pub file: File,
    /// Its identity at opening.
    pub key: FileKey,
    /// The path it was asked for under, for people: opening it again may lead elsewhere.
    pub path: PathBuf,
}

impl TargetFile {
    /// The same open file once more.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, key: self.key, path: self.path.clone() })
    }

    /// A reader with its own position: `object::ReadCache::new(file.reader())` parses without mapping the file, so
    /// that truncating it gives an error instead of a signal.
    #[must_use]
    pub fn reader(&self) -> FileReader<'_> {
        FileReader { file: &self.file, position: 0, size: self.key.size }
    }

    /// A path that leads this process to exactly this file, for as long as it stays open here, whatever the mount
    /// namespace: what a probe is attached to.
    #[must_use]
    pub fn attach_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Whether the file system shows files of others as its own, under a device of its own.
    #[must_use]
    pub fn is_on_overlay(&self) -> bool {
        /// `OVERLAYFS_SUPER_MAGIC`
        const OVERLAY: i64 = 0x794c_7630;
        rustix::fs::fstatfs(&self.file).is_ok_and(|system| system.f_type == OVERLAY)
    }

    /// Whether no path leads to it any more.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        attributes(&self.file).is_ok_and(|attributes| attributes.stx_nlink == 0)
    }

    /// Whether nobody has written to it for two seconds, as far as its time of change tells.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        const LEFT_ALONE: Duration = Duration::from_secs(2);
        let modified = self.file.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age >= LEFT_ALONE))
    }

    /// Whether the content was replaced in place since the file was opened. Probes in it must then go.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_changed(&self) -> io::Result<bool> {
        Ok(key_of(&attributes(&self.file)?) != self.key)
    }
}

/// Reads a file with `pread`, so that several readers of one file do not disturb each other.
#[derive(Debug)]
pub struct FileReader<'a> {
    file: &'a File,
    position: u64,
    size: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        // pread takes a signed offset.
        let position = position.filter(|&position| i64::try_from(position).is_ok());
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Opens `path` as `root` sees it. Symbolic links, absolute ones too, stay inside that root; links of /proc that jump
/// elsewhere are refused. A symbolic link into a FUSE mount is walked by the kernel before it can be refused: callers
/// who open by path do so on a thread they can afford to lose.
///
/// # Errors
/// [`FileError`]; a missing file or process is `None`.
pub fn open_in_root(root: Root, path: &Path) -> Result<Option<TargetFile>, FileError> {
    let directory_path = root.proc_directory().join("root");
    let directory =
        rustix::fs::open(&directory_path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let Some(directory) = absent_as_none(&directory_path, directory.map_err(io::Error::from))? else { return Ok(None) };
    let known_mounts = mounts_of(root)?;
    if let Some(mount) = mount_of(&known_mounts, path).filter(|mount| mount.is_served_by_a_process()) {
        return Err(FileError::MayBlock { path: path.to_path_buf(), kind: mount.kind.clone() });
    }
    let Some(found) = absent_as_none(path, walk(&directory, path))? else { return Ok(None) };
    verified(found, path, || Ok(known_mounts))
}

/// Opens the file that a process maps at `range`, also when it was deleted or replaced since. Needs
/// `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`; without them use [`open_in_root`] and compare the inode.
///
/// # Errors
/// [`FileError`]; `None` when there is no such mapping any more.
pub fn open_map_file(pid: Pid, range: Range<u64>, name: &Path) -> Result<Option<TargetFile>, FileError> {
    open_link(pid, &format!("map_files/{:x}-{:x}", range.start, range.end), name)
}

/// Opens the executable of a process, also when it was deleted or replaced since.
///
/// # Errors
/// [`FileError`]; `None` for kernel threads and vanished processes.
pub fn open_exe(pid: Pid, name: &Path) -> Result<Option<TargetFile>, FileError> {
    open_link(pid, "exe", name)
}

/// Follows one of the links of /proc/PID, which lead to the file itself and not to its path.
fn open_link(pid: Pid, link: &str, name: &Path) -> Result<Option<TargetFile>, FileError> {
    let link = PathBuf::from(format!("/proc/{pid}/{link}"));
    let found = rustix::fs::open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    let Some(found) = absent_as_none(&link, found)? else { return Ok(None) };
    verified(found, name, || mounts_of(Root::Process(pid)))
}

fn walk(directory: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = || rustix::fs::openat2(directory, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut answer = open();
    for _ in 1..WALKS {
        match answer {
            Err(Errno::AGAIN | Errno::INTR) => answer = open(),
            _ => break,
        }
    }
    Ok(answer?)
}

/// Reopens for reading what has only been found so far (`O_PATH`: nothing is asked of the file), if it is harmless.
/// `known_mounts` is asked where its mount was not seen before.
fn verified(
    found: OwnedFd,
    name: &Path,
    known_mounts: impl FnOnce() -> Result<Vec<Mount>, HostError>,
) -> Result<Option<TargetFile>, FileError> {
    let path = name.to_path_buf();
    let host = |error: io::Error| HostError::from_io(name, error);
    let attributes = attributes(&found).map_err(host)?;
    if FileType::from_raw_mode(u32::from(attributes.stx_mode)) != FileType::RegularFile {
        return Err(FileError::NotRegular { path });
    }
    let unique = harmless::unique_mount(&found).map_err(host)?;
    if !unique.is_some_and(harmless::is_known) {
        match mount_holding(&attributes, &known_mounts()?)? {
            Some(mount) if !mount.is_served_by_a_process() => unique.into_iter().for_each(harmless::remember),
            mount => {
                let kind = mount.map_or_else(|| "unknown".to_owned(), |mount| mount.kind);
                return Err(FileError::MayBlock { path, kind });
            }
        }
    }
    if attributes.stx_size > LARGEST_FILE_BYTES {
        return Err(FileError::TooLarge { path, bytes: attributes.stx_size });
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(again, flags, Mode::empty()).map_err(io::Error::from) {
        Ok(file) => File::from(file),
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(host(error).into()),
    };
    Ok(Some(TargetFile { file, key: key_of(&attributes), path }))
}

/// What the kernel knows of a file without asking the file system's server.
fn attributes(file: impl AsFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(file, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?)
}

fn key_of(attributes: &Statx) -> FileKey {
    let modified = attributes.stx_mtime;
    FileKey {
        dev: rustix::fs::makedev(attributes.stx_dev_major, attributes.stx_dev_minor),
        ino: attributes.stx_ino,
        size: attributes.stx_size,
        mtime_ns: modified.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(modified.tv_nsec)),
    }
}

/// The mount a file was opened through: by its number, or, for a process that left the mount namespace it started in,
/// by the device. In doubt the file is not opened, because even asking a hostile file system for its kind may block.
fn mount_holding(attributes: &Statx, known_mounts: &[Mount]) -> Result<Option<Mount>, HostError> {
    let device = Device { major: attributes.stx_dev_major, minor: attributes.stx_dev_minor };
    let find = |mounts: &[Mount]| {
        let by_number = mounts.iter().find(|mount| mount.id == attributes.stx_mnt_id);
        by_number.or_else(|| mounts.iter().find(|mount| mount.device == device)).cloned()
    };
    match find(known_mounts) {
        Some(mount) => Ok(Some(mount)),
        None => Ok(find(&mounts_of(Root::Host)?)),
    }
}

fn mounts_of(root: Root) -> Result<Vec<Mount>, HostError> {
    let text = read_bounded(&root.proc_directory().join("mountinfo"), MOUNTINFO_BYTES)?;
    Ok(mounts(&text.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn own() -> Root {
        Root::Process(Pid(std::process::id()))
    }

    #[test]
    fn a_regular_file_is_read_and_known_by_its_inode_size_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let opened = open_in_root(own(), &path).unwrap().unwrap();
        let mut text = String::new();
        opened.reader().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), opened.key.size), ("content", 7));
        assert_eq!(open_in_root(Root::Host, &path).unwrap().unwrap().key, opened.key);
        assert_eq!(std::fs::read(opened.attach_path()).unwrap(), b"content");
        assert!(!opened.has_changed().unwrap());
        std::fs::write(&path, b"other").unwrap();
        assert!(opened.has_changed().unwrap());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(open_in_root(own(), &path), Err(FileError::NotRegular { .. })));
        assert!(matches!(open_in_root(own(), directory.path()), Err(FileError::NotRegular { .. })));
    }

    #[test]
    fn links_that_leave_the_root_through_proc_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link");
        symlink("/proc/self/exe", &path).unwrap();
        assert!(open_in_root(own(), &path).is_err());
    }

    #[test]
    fn a_file_over_the_bound_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("huge");
        File::create(&path).unwrap().set_len(LARGEST_FILE_BYTES + 1).unwrap();
        assert!(matches!(open_in_root(own(), &path), Err(FileError::TooLarge { .. })));
    }

    #[test]
    fn a_missing_file_or_process_is_absence() {
        let nothing = Path::new("/nowhere/at/all");
        assert!(open_in_root(own(), nothing).unwrap().is_none());
        assert!(open_in_root(Root::Process(Pid(u32::MAX)), nothing).unwrap().is_none());
        assert!(open_exe(Pid(u32::MAX), nothing).unwrap().is_none());
    }

    #[test]
    fn the_executable_is_the_file_that_runs() {
        let running = std::env::current_exe().unwrap();
        let by_link = open_exe(Pid(std::process::id()), &running).unwrap().unwrap();
        assert_eq!(by_link.key, open_in_root(own(), &running).unwrap().unwrap().key);
    }

    #[test]
    fn a_reader_seeks_inside_what_pread_takes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let opened = open_in_root(own(), &path).unwrap().unwrap();
        let mut reader = opened.reader();
        assert_eq!(reader.seek(SeekFrom::End(-3)).unwrap(), 7);
        let mut digit = [0];
        reader.read_exact(&mut digit).unwrap();
        assert_eq!(&digit, b"7");
        assert!(reader.seek(SeekFrom::Current(-9)).is_err());
        assert!(reader.seek(SeekFrom::Start(u64::MAX)).is_err());
    }
}
