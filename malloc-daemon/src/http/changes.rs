//! What changed since a snapshot of before, without keeping the snapshots of before.
//!
//! For each image the sequence of its last change is kept, and for a while that of its disappearance: with these any
//! past sequence can be answered, in memory that does not grow with their number.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::aggregate::model::{Process, Snapshot};
use crate::report::json::ImageKey;

/// Images remembered after they left the snapshot. 4,096 x 40 bytes; a minute of 60 programs a second.
const GONE: usize = 4_096;
/// Snapshots fed without a question after which nobody is believed to ask: ten minutes of one a second.
const IDLE: u32 = 600;

/// The difference between a snapshot of before and the one fed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Sequence of the snapshot fed last.
    pub sequence: u64,
    /// Images that are new or counted something, or of which something else became known.
    pub changed: Vec<ImageKey>,
    /// Images that are no longer in the snapshot.
    pub gone: Vec<ImageKey>,
}

/// Follows changes from the first question on.
#[derive(Debug, Default)]
pub struct Changes {
    sequence: u64,
    /// From this sequence on differences are known.
    floor: u64,
    images: BTreeMap<ImageKey, (u64, Arc<Process>)>,
    gone: VecDeque<(u64, ImageKey)>,
    unasked: u32,
}

impl Changes {
    /// Takes a snapshot in, if it is newer than the last one. When nobody has asked for long, everything is forgotten.
    pub fn feed(&mut self, snapshot: &Snapshot) {
        if self.sequence == 0 {
            return;
        }
        self.unasked += 1;
        if self.unasked > IDLE {
            *self = Self::default();
            return;
        }
        self.advance(snapshot);
    }

    /// What changed since `since`; `None`: that is not known, or was never.
    pub fn since(&mut self, since: u64, snapshot: &Snapshot) -> Option<Difference> {
        self.unasked = 0;
        if self.sequence == 0 {
            self.floor = snapshot.sequence;
        }
        self.advance(snapshot);
        if since < self.floor || since > self.sequence {
            return None;
        }
        let changed = self.images.iter().filter(|(_, (at, _))| *at > since).map(|(key, _)| *key);
        let gone = self.gone.iter().filter(|(at, _)| *at > since).map(|(_, key)| *key);
        Some(Difference { sequence: self.sequence, changed: changed.collect(), gone: gone.collect() })
    }

    fn advance(&mut self, snapshot: &Snapshot) {
        if snapshot.sequence <= self.sequence {
            return;
        }
        let sequence = snapshot.sequence;
        self.sequence = sequence;
        let mut before = std::mem::take(&mut self.images);
        for process in &snapshot.processes {
            let key = (process.id, process.image_ns);
            let at = match before.remove(&key) {
                Some((at, known)) if same(&known, process) => at,
                _ => sequence,
            };
            self.images.insert(key, (at, Arc::clone(process)));
        }
        for key in before.into_keys() {
            self.gone.push_back((sequence, key));
        }
        while self.gone.len() > GONE {
            if let Some((at, _)) = self.gone.pop_front() {
                // Who saw an older one can no longer be told all that is gone.
                self.floor = self.floor.max(at);
            }
        }
    }
}

/// Whether nothing but time has passed.
fn same(before: &Arc<Process>, now: &Arc<Process>) -> bool {
    Arc::ptr_eq(before, now) || {
        let aged = Process { observed_ms: now.observed_ms, ..Process::clone(before) };
        aged == **now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use proptest::prelude::*;

    fn snapshot(sequence: u64, processes: &[(u32, u64)]) -> Snapshot {
        let processes = processes.iter().map(|(pid, failed)| {
            let mut process = sample::sqlite();
            process.id.pid = *pid;
            process.observed_ms = sequence;
            process.syscalls.mmap.failed = *failed;
            process
        });
        Snapshot { sequence, ..sample::snapshot(processes.collect()) }
    }

    fn pids(keys: &[ImageKey]) -> Vec<u32> {
        keys.iter().map(|(id, _)| id.pid).collect()
    }

    #[test]
    fn a_difference_holds_what_changed_and_what_went() {
        let mut changes = Changes::default();
        assert_eq!(changes.since(3, &snapshot(4, &[(1, 0), (2, 0)])), None, "nobody asked before");
        assert_eq!(changes.since(5, &snapshot(4, &[(1, 0), (2, 0)])), None, "a sequence that is yet to come");
        changes.feed(&snapshot(5, &[(1, 0), (2, 7)]));
        changes.feed(&snapshot(6, &[(2, 7), (3, 0)]));
        let now = snapshot(7, &[(2, 7), (3, 0)]);
        let since = |changes: &mut Changes, sequence| {
            let difference = changes.since(sequence, &now).unwrap();
            (pids(&difference.changed), pids(&difference.gone))
        };
        assert_eq!(since(&mut changes, 4), (vec![2, 3], vec![1]));
        assert_eq!(since(&mut changes, 5), (vec![3], vec![1]));
        assert_eq!(since(&mut changes, 6), (vec![], vec![]));
        assert_eq!(since(&mut changes, 7), (vec![], vec![]));
    }

    #[test]
    fn what_is_forgotten_is_answered_whole() {
        let mut changes = Changes::default();
        let many: Vec<(u32, u64)> = (0..GONE as u32 + 1).map(|pid| (pid, 0)).collect();
        changes.since(1, &snapshot(1, &many));
        changes.feed(&snapshot(2, &[]));
        assert_eq!(changes.since(1, &snapshot(3, &[])), None);
        assert_eq!(changes.since(2, &snapshot(3, &[])).unwrap().gone, []);
        assert_eq!(changes.gone.len(), GONE);
    }

    #[test]
    fn nothing_is_followed_for_nobody() {
        let mut changes = Changes::default();
        changes.feed(&snapshot(1, &[(1, 0)]));
        assert!(changes.images.is_empty());
        assert_eq!(changes.since(2, &snapshot(2, &[(1, 0)])).unwrap().changed, []);
        for sequence in 3..=3 + u64::from(IDLE) {
            changes.feed(&snapshot(sequence, &[(1, 0)]));
        }
        assert!(changes.images.is_empty());
    }

    proptest! {
        #[test]
        fn a_client_that_applies_differences_has_the_snapshot(
            steps in prop::collection::vec((prop::collection::btree_map(0u32..5, 0u64..3, 0..5), any::<bool>()), 1..20)
        ) {
            let mut changes = Changes::default();
            let mut client: Option<(u64, BTreeMap<ImageKey, u64>)> = None;
            for (index, (processes, asks)) in steps.into_iter().enumerate() {
                let listed: Vec<(u32, u64)> = processes.into_iter().collect();
                let now = snapshot(index as u64 + 1, &listed);
                changes.feed(&now);
                if !asks {
                    continue;
                }
                let key = |process: &Arc<Process>| (process.id, process.image_ns);
                let whole: BTreeMap<ImageKey, u64> =
                    now.processes.iter().map(|process| (key(process), process.syscalls.mmap.failed)).collect();
                let since = client.as_ref().map_or(0, |(sequence, _)| *sequence);
                let held = match (changes.since(since, &now), client.take()) {
                    (Some(difference), Some((_, mut held))) => {
                        held.retain(|key, _| !difference.gone.contains(key) || difference.changed.contains(key));
                        held.extend(difference.changed.iter().map(|key| (*key, whole[key])));
                        held
                    }
                    _ => whole.clone(),
                };
                prop_assert_eq!(&held, &whole);
                client = Some((now.sequence, held));
            }
        }
    }
}
