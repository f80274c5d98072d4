//! Everything this daemon reads from the machine it runs on: /proc, /sys, cgroups, kernel features.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub mod btf;
pub mod checks;
pub mod debug_files;
pub mod fdinfo;
pub mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod harmless;
pub mod kernel;
pub mod link_map;
pub mod maps;
pub mod memory;
pub mod mounts;
pub mod privileges;
pub mod process;
pub mod tracefs;

/// The longest file of /proc or /sys that is read whole, in bytes: the kernel writes `stat`, `status` and `cgroup`
/// in less than 8 KiB, the rest is room for long cgroup paths.
pub const SMALL_FILE_BYTES: u64 = 64 << 10;

/// Why a fact about the machine could not be read. A process or file that is not there is no error but `None`.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused: a capability is missing.
    #[error("reading {} is not permitted; run as root or grant the capability that `malloc-daemon doctor` names", path.display())]
    NotPermitted {
        /// What was read.
        path: PathBuf,
    },
    /// Reading failed for another reason.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file exceeds the bound set for it; nothing of it is used.
    #[error("{} is larger than {limit_bytes} bytes, the most that is read of it", path.display())]
    TooLarge {
        /// What was read.
        path: PathBuf,
        /// The bound.
        limit_bytes: u64,
    },
    /// The content is not what the kernel writes there.
    #[error("{} holds no {expected}", path.display())]
    Malformed {
        /// What was read.
        path: PathBuf,
        /// What should have been found.
        expected: &'static str,
    },
}

impl HostError {
    fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::PermissionDenied => HostError::NotPermitted { path },
            _ => HostError::Read { path, source },
        }
    }
}

/// Whether an error says that the process or file is gone: /proc answers `ESRCH` when a process dies between open
/// and read.
fn is_absence(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH | Errno::NOTDIR))
}

/// Turns "it is not there" into `None` and names the path in every other error.
fn absent_as_none<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, HostError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(HostError::from_io(path, error)),
    }
}

/// What the first read of a small file asks for.
const FIRST_READ_BYTES: usize = 2048;

/// Reads a whole file of at most `limit_bytes`; `None` when it, or the process it tells of, is not there.
fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, HostError> {
    let read = || -> io::Result<Vec<u8>> {
        // Most files of /proc that are asked for come whole with the first read.
        let mut content = Vec::with_capacity(FIRST_READ_BYTES);
        File::open(path)?.take(limit_bytes.saturating_add(1)).read_to_end(&mut content)?;
        Ok(content)
    };
    match absent_as_none(path, read())? {
        Some(content) if content.len() as u64 > limit_bytes => {
            Err(HostError::TooLarge { path: path.to_path_buf(), limit_bytes })
        }
        content => Ok(content),
    }
}

/// A small text file without the white space around it; `None` when it is not there.
fn read_trimmed(path: impl AsRef<Path>) -> Result<Option<String>, HostError> {
    let content = read_bounded(path.as_ref(), SMALL_FILE_BYTES)?;
    Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_its_bound_is_refused_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        std::fs::write(&path, [b'x'; 100]).unwrap();
        assert!(matches!(read_bounded(&path, 99), Err(HostError::TooLarge { limit_bytes: 99, .. })));
        assert_eq!(read_bounded(&path, 100).unwrap().unwrap().len(), 100);
    }

    #[test]
    fn a_missing_file_is_absence_and_a_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_bounded(&directory.path().join("missing"), 10).unwrap().is_none());
        assert!(matches!(read_bounded(directory.path(), 10), Err(HostError::Read { .. })));
    }
}
