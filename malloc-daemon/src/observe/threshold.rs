//! Reads the mmap threshold of a process that runs already, before its first event: at once, or not at all.

use malloc_common::site::MP_MMAP_THRESHOLD;

use crate::arenas::{Memory as _, Place};
use crate::host::memory::ProcessMemory;
use crate::host::process::Pid;

/// The threshold, bytes. `None` where it cannot be read, or its page is not in memory: a process can make whoever reads
/// such a page wait for ever.
pub fn resident(pid: Pid, place: Place) -> Option<u64> {
    place.mp_layout.offsets()?;
    let address = place.mp.checked_add(MP_MMAP_THRESHOLD.into())?;
    let memory = ProcessMemory::open(pid).ok()??;
    let page = rustix::param::page_size() as u64;
    let start = address / page * page;
    if memory.absent(start, start.checked_add(page)?)? != 0 {
        return None;
    }
    let mut word = [0; 8];
    memory.read(address, &mut word).then(|| u64::from_ne_bytes(word))
}
