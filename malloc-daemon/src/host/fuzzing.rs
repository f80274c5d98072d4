//! The readers of /proc, of the kernel's type information and of a process's memory, for the fuzzer.

use super::{btf, link_map, maps, mounts, process};

/// The texts that /proc holds of a process, parts of which the process chose.
pub fn proc(bytes: &[u8]) {
    for mapping in maps::mappings(bytes) {
        assert!(mapping.start < mapping.end);
        let _ = (mapping.is_executable_file(), mapping.path(), mapping.file_name().len());
    }
    let _ = mounts::mounts(bytes);
    process::read_texts(bytes);
}

/// The kernel's type information.
pub fn btf(bytes: &[u8]) {
    let _ = btf::task_offsets(bytes);
}

/// A process's list of loaded objects: the first 64 bytes are its auxiliary vector, the rest its memory from 4096 on.
pub fn link_map(bytes: &[u8]) {
    const START: u64 = 4096;
    let (auxiliary, memory) = bytes.split_at(bytes.len().min(64));
    let read = |address: u64, target: &mut [u8]| {
        let at = usize::try_from(address.checked_sub(START)?).ok()?;
        target.copy_from_slice(memory.get(at..at.checked_add(target.len())?)?);
        Some(())
    };
    let _ = link_map::objects(auxiliary, &read);
}
