//! Where separate debug files lie: by the build id of the file that they belong to.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::file::{FileError, Root, TargetFile, open_in_root};

/// Where distributions install them.
const INSTALLED: &str = "/usr/lib/debug";

/// What the command line named. Set once, before anything is looked for.
static CONFIGURED: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Has these directories of the host looked into before any other. The first call counts.
pub fn look_first_in(directories: Vec<PathBuf>) {
    // A second caller in one process is a test's: its directories are its own matter.
    let _ = CONFIGURED.set(directories);
}

/// The separate debug file for a build id (lower-case hexadecimal): looked for in the directories that the command line
/// named, then where distributions install it, below the process's root and then below this daemon's, for debug packages
/// are seldom installed in containers.
///
/// # Errors
/// [`FileError`] of the last place looked at; `None` when there is none, or `build_id_hex` is no build id.
pub fn debug_file(build_id_hex: &str, root: Root) -> Result<Option<TargetFile>, FileError> {
    debug_file_in(CONFIGURED.get().map_or(&[], Vec::as_slice), build_id_hex, root)
}

fn debug_file_in(configured: &[PathBuf], build_id_hex: &str, root: Root) -> Result<Option<TargetFile>, FileError> {
    let is_build_id = (4..=128).contains(&build_id_hex.len())
        && build_id_hex.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
    let Some((first, rest)) = is_build_id.then(|| build_id_hex.split_at_checked(2)).flatten() else { return Ok(None) };
    let below = |directory: &Path| directory.join(format!(".build-id/{first}/{rest}.debug"));
    let installed = [(root, Path::new(INSTALLED)), (Root::Host, Path::new(INSTALLED))];
    let installed = installed.into_iter().skip(usize::from(root == Root::Host));
    let mut answer = Ok(None);
    for (root, directory) in configured.iter().map(|path| (Root::Host, path.as_path())).chain(installed) {
        answer = open_in_root(root, &below(directory));
        if let Ok(Some(_)) = answer {
            return answer;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_build_id_leads_to_no_file() {
        for text in ["", "ab", "../../etc/passwd", "ABCDEF", "93ac/../x", "é93ac"] {
            assert!(debug_file(text, Root::Host).unwrap().is_none(), "{text}");
        }
    }

    #[test]
    fn a_configured_directory_is_looked_into_first() {
        let places = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let directories = places.each_ref().map(|place| place.path().to_owned());
        let open = || debug_file_in(&directories, "93ac61ec", Root::Host).unwrap().map(|file| file.path);
        assert_eq!(open(), None);
        for directory in directories.iter().rev() {
            let path = directory.join(".build-id/93/ac61ec.debug");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"").unwrap();
            assert_eq!(open(), Some(path));
        }
    }
}
