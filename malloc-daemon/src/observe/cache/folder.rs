//! The folder in which inferences outlive the daemon: read with distrust, written whole or not at all, of bounded size.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::report::inference::ENTRY_BYTES;

/// Entries at most: one for each of the files that can carry probes. 256 x 64 KiB = 16 MiB.
const ENTRIES: usize = 256;
/// Names that are looked at for one count: a folder that holds more is somebody else's.
const NAMES: usize = 4096;
/// What an entry's name ends in.
const ENDING: &str = ".inferred";
/// What a name ends in while the entry is written.
const UNFINISHED: &str = ".unfinished";

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be opened or made.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Whoever may write there could make the daemon believe what they like.
    #[error("{} may be written by others than its owner, or belongs to another user than this daemon's", path.display())]
    Exposed {
        /// The folder.
        path: PathBuf,
    },
}

/// The open folder.
#[derive(Debug)]
pub struct Folder {
    folder: OwnedFd,
}

impl Folder {
    /// Opens the folder at `path`, making it where only its last part is missing.
    ///
    /// # Errors
    /// [`FolderError`]; a folder that others may write to is not used.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let unusable = |error: Errno| FolderError::Unusable { path: path.to_owned(), source: error.into() };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(unusable(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(unusable)?;
        if !is_ours(&rustix::fs::fstat(&folder).map_err(unusable)?) {
            return Err(FolderError::Exposed { path: path.to_owned() });
        }
        Ok(Self { folder })
    }

    /// The entry `name`; `None` where there is none.
    ///
    /// # Errors
    /// When it is no plain file of this daemon's user of a bounded size, or cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.folder, entry(name), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let attributes = rustix::fs::fstat(&file)?;
        let size = u64::try_from(attributes.st_size).unwrap_or(u64::MAX);
        let is_plain = FileType::from_raw_mode(attributes.st_mode) == FileType::RegularFile;
        if !is_plain || !is_ours(&attributes) || size > ENTRY_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        File::from(file).take(ENTRY_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Puts an entry there in one step, in place of one of that name, and takes the oldest ones out where there are too
    /// many.
    ///
    /// # Errors
    /// When the folder cannot be written to, or the entry is too large.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > ENTRY_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let unfinished = format!("{}{UNFINISHED}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.remove_file(&unfinished);
        let written = (|| {
            let file = rustix::fs::openat(&self.folder, &*unfinished, flags, Mode::RUSR | Mode::WUSR)?;
            File::from(file).write_all(bytes)?;
            Ok(rustix::fs::renameat(&self.folder, &*unfinished, &self.folder, entry(name))?)
        })();
        if written.is_err() {
            self.remove_file(&unfinished);
        }
        written.and_then(|()| self.trim())
    }

    /// Takes the entry `name` out.
    pub fn remove(&self, name: &str) {
        self.remove_file(&entry(name));
    }

    fn remove_file(&self, name: &str) {
        // What cannot be removed is refused again the next time.
        let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
    }

    /// Removes the oldest entries beyond [`ENTRIES`], and what was never finished.
    fn trim(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for name in Dir::read_from(&self.folder)?.take(NAMES) {
            let name = name?.file_name().to_string_lossy().into_owned();
            if name.ends_with(UNFINISHED) {
                self.remove_file(&name);
            } else if name.ends_with(ENDING)
                && let Ok(attributes) = rustix::fs::statat(&self.folder, &*name, AtFlags::SYMLINK_NOFOLLOW)
            {
                entries.push((attributes.st_mtime, attributes.st_mtime_nsec, name));
            }
        }
        entries.sort_unstable();
        let excess = entries.len().saturating_sub(ENTRIES);
        entries.iter().take(excess).for_each(|(_, _, name)| self.remove_file(name));
        Ok(())
    }
}

fn entry(name: &str) -> String {
    format!("{name}{ENDING}")
}

/// Owned by the user this daemon runs as, and writable by nobody else.
fn is_ours(attributes: &Stat) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    attributes.st_uid == rustix::process::geteuid().as_raw() && attributes.st_mode & OTHERS_WRITE == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        (place, folder)
    }

    fn names(place: &Path) -> Vec<String> {
        std::fs::read_dir(place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_entry_comes_back_and_replaces_the_one_before() {
        let (place, folder) = folder();
        assert_eq!(folder.read("a").unwrap(), None);
        folder.write("a", b"one").unwrap();
        folder.write("a", b"two").unwrap();
        assert_eq!(folder.read("a").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(names(place.path()), ["a.inferred"]);
        folder.remove("a");
        assert_eq!(folder.read("a").unwrap(), None);
    }

    #[test]
    fn links_pipes_and_what_others_may_write_are_no_entries() {
        let (place, folder) = folder();
        let at = |name: &str| place.path().join(format!("{name}{ENDING}"));
        std::fs::write(place.path().join("elsewhere"), b"text").unwrap();
        symlink(place.path().join("elsewhere"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::write(at("shared"), b"text").unwrap();
        std::fs::set_permissions(at("shared"), std::fs::Permissions::from_mode(0o666)).unwrap();
        File::create(at("huge")).unwrap().set_len(ENTRY_BYTES + 1).unwrap();
        for name in ["link", "pipe", "shared", "huge"] {
            assert!(folder.read(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Folder::open(place.path()), Err(FolderError::Exposed { .. })));
        assert!(matches!(Folder::open(&place.path().join("a/b")), Err(FolderError::Unusable { .. })));
        let file = place.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(Folder::open(&file), Err(FolderError::Unusable { .. })));
        assert!(Folder::open(&place.path().join("made")).is_ok());
    }

    #[test]
    fn the_oldest_entries_go_when_there_are_too_many_and_strangers_stay() {
        let (place, folder) = folder();
        std::fs::write(place.path().join("stranger"), b"").unwrap();
        std::fs::write(place.path().join(format!("7{UNFINISHED}")), b"").unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        for index in 0..ENTRIES {
            let path = place.path().join(format!("{index}{ENDING}"));
            std::fs::write(&path, b"").unwrap();
            let age = std::time::Duration::from_secs(index as u64);
            File::options().write(true).open(&path).unwrap().set_modified(long_ago + age).unwrap();
        }
        folder.write("new", b"text").unwrap();
        let left = names(place.path());
        assert_eq!(left.len(), ENTRIES + 1);
        assert!(left.contains(&"stranger".to_owned()) && left.contains(&"new.inferred".to_owned()));
        assert!(!left.contains(&"0.inferred".to_owned()) && left.contains(&"1.inferred".to_owned()));
    }
}
