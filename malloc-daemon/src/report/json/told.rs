//! Processes of a document, each converted only while it is written: all at once take ten times the memory of the model.

use serde::{Serialize, Serializer};

use crate::aggregate::model::{Process, Snapshot};

/// Processes of a snapshot and how they become those of a document.
#[derive(Debug)]
pub struct Told<'a, D> {
    snapshot: &'a Snapshot,
    processes: Vec<&'a Process>,
    convert: fn(&'a Snapshot, &'a Process) -> D,
}

impl<'a, D> Told<'a, D> {
    /// Those of a snapshot that `is_told` holds for.
    pub(super) fn of(
        snapshot: &'a Snapshot,
        is_told: &dyn Fn(&Process) -> bool,
        convert: fn(&'a Snapshot, &'a Process) -> D,
    ) -> Self {
        let processes =
            snapshot.processes.iter().map(|process| &**process).filter(|process| is_told(process)).collect();
        Self { snapshot, processes, convert }
    }

    /// Each as the document has it.
    pub fn iter(&self) -> impl Iterator<Item = D> {
        self.processes.iter().map(|process| (self.convert)(self.snapshot, process))
    }
}

impl<D: Serialize> Serialize for Told<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}
