//! In which order the dynamic linker of a process looks for a symbol: its list of loaded objects, read from the
//! process's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::process::Pid;

/// Objects of one process that are followed at most; the largest programs load a few hundred.
const OBJECTS: usize = 4096;
/// Program headers and dynamic entries that are read at most.
const HEADERS: u64 = 64;
const ENTRIES: u64 = 256;

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;
const DT_DEBUG: u64 = 21;

/// An address inside each object (its dynamic section), in the order of the search: the executable, what is preloaded,
/// what is needed, what was opened later. Empty when the process has no dynamic linker, or its memory cannot be read.
///
/// The process may write all of this: the answer is a hint about itself.
#[must_use]
pub fn search_order(pid: Pid) -> Vec<u64> {
    let auxiliary = std::fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    match File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => objects(&auxiliary, &|address, bytes| memory.read_exact_at(bytes, address).ok()),
        Err(_) => Vec::new(),
    }
}

pub(super) type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> Option<()>;

pub(super) fn objects(auxiliary: &[u8], read: Read<'_>) -> Vec<u64> {
    let mut found = Vec::new();
    let Some(debug) = debug_structure(auxiliary, read) else { return found };
    let mut object = word(read, debug.wrapping_add(8)).unwrap_or(0);
    while object != 0 && found.len() < OBJECTS {
        let (Some(dynamic), Some(next)) = (word(read, object.wrapping_add(16)), word(read, object.wrapping_add(24)))
        else {
            break;
        };
        found.push(dynamic);
        object = next;
    }
    found
}

/// The address of `struct r_debug`, to which the executable's dynamic section leads once the linker runs.
fn debug_structure(auxiliary: &[u8], read: Read<'_>) -> Option<u64> {
    let pairs = || auxiliary.as_chunks::<16>().0.iter().map(|pair| (half(pair, 0), half(pair, 8)));
    let value = |wanted: u64| pairs().find(|(kind, _)| *kind == Some(wanted)).and_then(|(_, value)| value);
    let (headers, count) = (value(AT_PHDR)?, value(AT_PHNUM)?);
    let (mut bias, mut dynamic) = (0, None);
    for index in 0..count.min(HEADERS) {
        let mut header = [0; 56];
        read(headers.wrapping_add(index * 56), &mut header)?;
        let kind = u32::from_ne_bytes(*header.first_chunk()?);
        match kind {
            PT_PHDR => bias = headers.wrapping_sub(half(&header, 16)?),
            PT_DYNAMIC => dynamic = half(&header, 16),
            _ => {}
        }
    }
    let dynamic = bias.wrapping_add(dynamic?);
    for index in 0..ENTRIES {
        let at = dynamic.wrapping_add(index * 16);
        match word(read, at)? {
            0 => return None,
            DT_DEBUG => return word(read, at.wrapping_add(8)).filter(|address| *address != 0),
            _ => {}
        }
    }
    None
}

fn word(read: Read<'_>, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read(address, &mut bytes)?;
    Some(u64::from_ne_bytes(bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process;

    #[test]
    fn the_executable_comes_before_the_libc() {
        let own = Pid(std::process::id());
        let order = search_order(own);
        let maps = process::maps(own).unwrap().unwrap();
        let place = |name: &str| {
            let holds = |address: &u64| {
                maps.iter().any(|m| (m.start..m.end).contains(address) && m.path().to_string_lossy().contains(name))
            };
            order.iter().position(holds)
        };
        let executable = std::env::current_exe().unwrap().display().to_string();
        assert_eq!(place(&executable), Some(0));
        assert!(place("libc.so.6") > Some(0), "{order:?}");
    }

    #[test]
    fn a_list_without_an_end_is_followed_a_bounded_way() {
        // Every word of this memory leads to itself: a dynamic section of DT_DEBUG entries, a list that loops.
        let auxiliary: Vec<u8> =
            [AT_PHDR, 0x1000, AT_PHNUM, u64::MAX].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let read = |_: u64, bytes: &mut [u8]| {
            if bytes.len() == 56 {
                bytes.fill(0);
                bytes[0] = 2;
            } else {
                bytes.copy_from_slice(&DT_DEBUG.to_ne_bytes());
            }
            Some(())
        };
        assert_eq!(objects(&auxiliary, &read).len(), OBJECTS);
        assert!(objects(&auxiliary[..20], &read).is_empty());
        assert!(objects(&auxiliary, &|_, _| None).is_empty());
    }
}
