//! The memory of another process: bytes by /proc/PID/mem, presence of pages by /proc/PID/pagemap, sizes by statm.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::process::Pid;
use super::{HostError, absent_as_none, read_trimmed};
use crate::arenas::Memory;

/// The kernel writes eight bytes for each page; its highest bit says that the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Entries read at a time.
const ENTRIES: usize = 1_024;
/// Pages asked for in one question at most: 4 GiB of 4 KiB pages, about 10 ms.
const PAGES: u64 = 1 << 20;

/// A process's memory, held open: what is read is that of the program it ran when it was opened.
#[derive(Debug)]
pub struct ProcessMemory {
    mem: File,
    pagemap: Option<File>,
    page_bytes: u64,
}

impl ProcessMemory {
    /// Opens it; `None`: there is no such process.
    ///
    /// # Errors
    /// [`HostError`]; reading another user's needs `CAP_SYS_PTRACE`.
    pub fn open(pid: Pid) -> Result<Option<Self>, HostError> {
        let path = format!("/proc/{pid}/mem");
        let Some(mem) = absent_as_none(path.as_ref(), File::open(&path))? else { return Ok(None) };
        // Absent where the kernel was built without CONFIG_PROC_PAGE_MONITOR.
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok();
        Ok(Some(Self { mem, pagemap, page_bytes: rustix::param::page_size() as u64 }))
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.mem.read_exact_at(into, address).is_ok()
    }

    fn absent(&self, start: u64, end: u64) -> Option<u64> {
        let (first, after) = (start.div_ceil(self.page_bytes), end / self.page_bytes);
        let pagemap = self.pagemap.as_ref()?;
        if after.saturating_sub(first) > PAGES {
            return None;
        }
        let (mut absent, mut at) = (0, first);
        let mut entries = [0; ENTRIES * 8];
        while at < after {
            let count = (after - at).min(ENTRIES as u64);
            let entries = entries.get_mut(..count as usize * 8)?;
            pagemap.read_exact_at(entries, at.checked_mul(8)?).ok()?;
            let words = entries.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
            absent += words.filter(|entry| entry & PRESENT == 0).count() as u64;
            at += count;
        }
        Some(absent * self.page_bytes)
    }
}

/// Resident memory of a process in bytes; `None` when it is not there.
///
/// # Errors
/// [`HostError`].
pub fn resident_bytes(pid: Pid) -> Result<Option<u64>, HostError> {
    let text = read_trimmed(format!("/proc/{pid}/statm"))?;
    let pages = text.as_deref().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    Ok(pages.map(|pages| pages.saturating_mul(rustix::param::page_size() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessMemory {
        ProcessMemory::open(Pid(std::process::id())).expect("own memory").expect("this process")
    }

    #[test]
    fn a_process_reads_itself_and_not_what_is_not_mapped() {
        let held = 0x1234_5678_9abc_def0u64;
        let mut bytes = [0; 8];
        assert!(own().read(std::ptr::from_ref(&held).addr() as u64, &mut bytes));
        assert_eq!(u64::from_ne_bytes(bytes), held);
        assert!(!own().read(0, &mut bytes), "nothing is mapped at 0");
    }

    #[test]
    fn pages_never_touched_are_absent_and_touched_ones_are_not() {
        let page = rustix::param::page_size();
        // Larger than any threshold: fresh memory of the kernel.
        let mut buffer = Vec::<u8>::with_capacity(40 << 20);
        let start = (buffer.as_ptr().addr() + (8 << 20)).next_multiple_of(page) as u64;
        let end = start + 32 * page as u64;
        let before = own().absent(start, end).expect("a pagemap");
        buffer.resize(16 << 20, 1);
        assert_eq!(own().absent(start, end), Some(0));
        assert_eq!(before, 32 * page as u64);
        assert_eq!(own().absent(start + 1, start + page as u64), Some(0), "no whole page lies within");
        drop(buffer);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_memory() {
        assert!(ProcessMemory::open(Pid(u32::MAX)).expect("absence is no error").is_none());
        assert_eq!(resident_bytes(Pid(u32::MAX)).expect("absence is no error"), None);
        assert!(resident_bytes(Pid(std::process::id())).expect("own").is_some_and(|bytes| bytes > 0));
    }
}
