//! Counts page faults of mapped chunks, where the kernel lets it.

use malloc_common::depth::Depth;

use crate::aggregate::model::{Probe, Verdict};
use crate::probes::{Attached, Object, attach_faults};

/// Attaches the program; a kernel that refuses perf events still counts all the rest, and the refusal is among `notes`.
pub fn attach(object: &mut Object, notes: &mut Vec<Probe>) -> Option<Attached> {
    match attach_faults(object) {
        Ok(attached) => Some(attached),
        Err(error) => {
            notes.push(probe(Verdict::Unsupported(error.to_string())));
            None
        }
    }
}

/// How it stands in the list of probes.
pub fn probe(verdict: Verdict) -> Probe {
    Probe { name: "perf event page-faults".to_owned(), depth: Depth::Sysmalloc, verdict }
}
