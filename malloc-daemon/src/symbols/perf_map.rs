//! The names a just-in-time compiler wrote down for its code, in the format of `perf`.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use crate::host::file::{FileKey, Root, TargetFile, open_in_root};
use crate::host::process::Pid;

/// The largest file that is read.
const FILE_BYTES: u64 = 64 << 20;
/// The most functions of one file.
const FUNCTIONS: usize = 1_000_000;
/// The longest name.
const NAME_BYTES: usize = 512;

/// Functions by address.
#[derive(Debug, Default)]
pub struct PerfMap {
    key: Option<FileKey>,
    entries: Vec<Entry>,
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    end: u64,
    /// Where in `text` the name begins, and its length.
    name: u32,
    length: u16,
}

impl PerfMap {
    /// Reads what `process` wrote, when it changed since: as `own_pid`, its number in its own pid namespace, into its
    /// own /tmp, and with its own user as the owner. Anybody may put a file of that name there.
    pub fn refresh(&mut self, process: Pid, own_pid: u32, uid: u32) {
        let path = PathBuf::from(format!("/tmp/perf-{own_pid}.map"));
        let Ok(Some(file)) = open_in_root(Root::Process(process), &path) else { return };
        if self.key == Some(file.key) {
            return;
        }
        if let Some(text) = read(&file, uid) {
            *self = Self::parse(text);
            self.key = Some(file.key);
        }
    }

    /// The name of the function at `address`.
    pub fn name_at(&self, address: u64) -> Option<String> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let entry = self.entries.get(after.checked_sub(1)?).filter(|entry| address < entry.end)?;
        let start = usize::try_from(entry.name).ok()?;
        let name = self.text.get(start..start.checked_add(usize::from(entry.length))?)?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// The bytes of memory taken.
    pub fn bytes(&self) -> u64 {
        (self.text.capacity() + self.entries.capacity() * size_of::<Entry>()) as u64
    }

    /// Lines of `start size name`, both numbers hexadecimal. A later line for the same place replaces an earlier one.
    pub(super) fn parse(text: Vec<u8>) -> Self {
        let mut entries = Vec::new();
        let mut from = 0;
        for line in text.split(|&byte| byte == b'\n') {
            if entries.len() == FUNCTIONS {
                break;
            }
            entries.extend(entry(line, from));
            from += line.len() + 1;
        }
        // Stable, so that the last written of equal addresses stays last and is the one kept.
        entries.reverse();
        entries.sort_by_key(|entry| entry.address);
        entries.dedup_by_key(|entry| entry.address);
        Self { key: None, entries, text }
    }
}

fn read(file: &TargetFile, uid: u32) -> Option<Vec<u8>> {
    let belongs = file.file.metadata().ok()?.uid() == uid;
    if !belongs || file.key.size > FILE_BYTES {
        return None;
    }
    let mut text = vec![0; usize::try_from(file.key.size).ok()?];
    file.file.read_exact_at(&mut text, 0).ok()?;
    Some(text)
}

fn entry(line: &[u8], from: usize) -> Option<Entry> {
    let mut words = line.splitn(3, |&byte| byte == b' ');
    let number = |word: &[u8]| {
        let digits = str::from_utf8(word).ok()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let (address, size, name) = (number(words.next()?)?, number(words.next()?)?, words.next()?);
    let start = from.checked_add(line.len().checked_sub(name.len())?)?;
    Some(Entry {
        address,
        end: address.checked_add(size)?,
        name: u32::try_from(start).ok()?,
        length: u16::try_from(name.len().min(NAME_BYTES)).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_name_written_for_a_place_counts() {
        let map = PerfMap::parse(b"1000 10 old\n2000 20 LazyCompile:~f a.js:1\nnonsense\n1000 8 new\n".to_vec());
        assert_eq!(map.name_at(0x1007).as_deref(), Some("new"));
        assert_eq!(map.name_at(0x1008), None);
        assert_eq!(map.name_at(0x201f).as_deref(), Some("LazyCompile:~f a.js:1"));
        assert_eq!(map.name_at(0x2020), None);
        assert_eq!(map.name_at(0xfff), None);
    }

    #[test]
    fn a_file_of_another_owner_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        std::fs::write(&path, b"1000 10 f\n").unwrap();
        let file = open_in_root(Root::Host, &path).unwrap().unwrap();
        let uid = rustix::process::getuid().as_raw();
        assert!(read(&file, uid).is_some());
        assert!(read(&file, uid ^ 1).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..300), address: u64) {
            let _ = PerfMap::parse(text).name_at(address);
        }

        #[test]
        fn no_lines_make_it_panic(text in "([0-9a-f]{1,17} [0-9a-f]{1,17} [a-z]{0,4}\n){0,20}", address: u64) {
            let _ = PerfMap::parse(text.into_bytes()).name_at(address);
        }
    }
}
