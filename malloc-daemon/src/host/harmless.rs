//! Mounts that were found to be harmless: their list, which is long on a machine with many containers, is not read again
//! for each file that a process maps.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, StatxFlags};

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a number that no later mount is given, as the usual one is.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Mounts remembered: 64 KiB. When there are more all are forgotten.
const REMEMBERED: usize = 4096;

/// By their unique numbers. What a mount shows never becomes another file system.
static HARMLESS: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// The unique number of the mount that a file was opened through; `None` before Linux 6.8.
///
/// # Errors
/// When the kernel tells nothing of the file.
pub fn unique_mount(file: impl AsFd) -> io::Result<Option<u64>> {
    let attributes = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, UNIQUE)?;
    Ok((attributes.stx_mask & UNIQUE.bits() != 0).then_some(attributes.stx_mnt_id))
}

/// Whether the mount of that number was found to be harmless.
#[must_use]
pub fn is_known(unique: u64) -> bool {
    HARMLESS.lock().unwrap_or_else(PoisonError::into_inner).contains(&unique)
}

/// Remembers it.
pub fn remember(unique: u64) {
    let mut known = HARMLESS.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= REMEMBERED {
        known.clear();
    }
    known.insert(unique);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_a_number_of_its_own() {
        let number = |path: &str| unique_mount(std::fs::File::open(path).unwrap()).unwrap();
        assert_ne!(number("/proc/self/stat"), number("/").or(Some(0)), "two mounts, or no such numbers here");
        // Unique numbers begin above all usual ones.
        const NO_MOUNT: u64 = 1;
        assert!(!is_known(NO_MOUNT));
        remember(NO_MOUNT);
        assert!(is_known(NO_MOUNT));
        // Others come and go beside this.
        (0..=REMEMBERED as u64).for_each(|n| remember(2 + n));
        assert!(HARMLESS.lock().unwrap().len() <= REMEMBERED);
    }
}
