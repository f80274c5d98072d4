//! One entry for each reader of hostile bytes: the fuzzer's way in, and that of the tests which replay what it found.
//! None may panic, hang, or take memory without a bound, whatever it is given.

#[cfg(test)]
mod tests;

use crate::report::inference as entry;
use crate::targets::ContentId;
use crate::{host, http, symbols, targets};

/// Reads some bytes.
pub type Target = fn(&[u8]);

/// All entries, by name; the folders of seeds and regressions are called like them.
pub const TARGETS: [(&str, Target); 16] = [
    ("elf", targets::fuzzing::elf),
    ("symbols", targets::fuzzing::symbol_tables),
    ("debug_data", targets::fuzzing::debug_data),
    ("notes", targets::fuzzing::notes),
    ("eh_frame", targets::fuzzing::eh_frame),
    ("code", targets::fuzzing::code),
    ("locate", targets::fuzzing::locate),
    ("unwind", symbols::fuzzing::unwind),
    ("functions", symbols::fuzzing::functions),
    ("lines", symbols::fuzzing::lines),
    ("perf_map", symbols::fuzzing::perf_map),
    ("proc", host::fuzzing::proc),
    ("btf", host::fuzzing::btf),
    ("link_map", host::fuzzing::link_map),
    ("inference", inference),
    ("http", http::fuzzing::http),
];

/// The entry of that name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, read)| *read)
}

/// An entry of the cache folder: the checksum is put right, or nothing behind it would ever be read.
fn inference(bytes: &[u8]) {
    let id = ContentId { build_id: None, size_bytes: 0, digest: targets::Digest([0; 32]) };
    let _ = entry::decode(&id, bytes);
    let summed = [format!("{}\n", targets::Digest::of(bytes)).as_bytes(), bytes].concat();
    if let Ok(read) = entry::decode(&id, &summed) {
        let again = entry::decode(&id, &entry::encode(&id, &read));
        assert_eq!(again.as_ref(), Ok(&read), "what was read is written as it is");
    }
}
