//! Looks for probes in a process's code: where its memory differs from the file it was mapped from.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Addresses in the process's libc whose instruction bytes are not those of the file.
///
/// A uprobe puts a breakpoint into the process's copy of the page, so this sees every probe of any program.
///
/// # Panics
/// If the process cannot be read or maps no libc.
#[must_use]
pub fn changed_code(pid: u32) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process's maps");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the process's memory");
    let mut changed = Vec::new();
    let mut mappings = 0;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[range, "r-xp", offset, _, _, path] = fields.as_slice() else { continue };
        if !path.contains("/libc.so") && !path.contains("/libc-") {
            continue;
        }
        mappings += 1;
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end) = (hex(start), hex(end));
        let length = usize::try_from(end - start).expect("64 bits");
        let (mut now, mut file) = (vec![0; length], vec![0; length]);
        memory.read_exact_at(&mut now, start).expect("mapped code");
        // The last page of a mapping may reach beyond the file; it reads as zeroes in both.
        let read = File::open(path).and_then(|code| code.read_at(&mut file, hex(offset))).expect("the libc's file");
        let pairs = now.iter().zip(&file).take(read).enumerate();
        changed.extend(pairs.filter(|(_, (now, file))| now != file).map(|(at, _)| start + at as u64));
    }
    assert!(mappings > 0, "process {pid} maps no libc");
    changed
}
