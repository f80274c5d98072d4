//! Incidents on their way to the disk: the daemon's memory of them is shorter than a step where many come at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::aggregate::model::{Mapping, Raise, Snapshot};

/// So many new ones, and they are taken in before the next step is due.
const HURRY: u64 = 64;
/// How long one is kept that no snapshot holds, milliseconds: it may wait for its stack to be named, and for its turn.
const KEPT_MS: u64 = 40_000;
/// Of each kind: 8,192 x about 300 bytes with their stacks shared = 2.5 MB.
const KEPT: usize = 8_192;

/// Raises and mappings that were in a snapshot, by number, each with when it was seen last.
#[derive(Debug, Default)]
pub(super) struct Passing {
    raises: BTreeMap<u64, (u64, Arc<Raise>)>,
    mappings: BTreeMap<u64, (u64, Arc<Mapping>)>,
    /// The newest of each when they were last taken in.
    newest: [u64; 2],
}

impl Passing {
    /// Takes in what a snapshot holds, when many of it are new.
    pub(super) fn note(&mut self, snapshot: &Snapshot) {
        let newest = newest(snapshot);
        if newest.iter().zip(self.newest).all(|(now, before)| now.saturating_sub(before) < HURRY) {
            return;
        }
        self.take_in(snapshot);
    }

    /// The snapshot of a step with what has left the daemon's memory since the one before.
    pub(super) fn whole(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Snapshot> {
        if self.raises.is_empty() && self.mappings.is_empty() {
            return Arc::clone(snapshot);
        }
        self.take_in(snapshot);
        let whole = Snapshot {
            raises: self.raises.values().map(|(_, raise)| Arc::clone(raise)).collect(),
            mappings: self.mappings.values().map(|(_, mapping)| Arc::clone(mapping)).collect(),
            ..Snapshot::clone(snapshot)
        };
        Arc::new(whole)
    }

    fn take_in(&mut self, snapshot: &Snapshot) {
        let now_ms = snapshot.window.duration_ms;
        // The later one of a number has its stack.
        take(&mut self.raises, snapshot.raises.iter().map(|raise| (raise.number, raise)), now_ms);
        take(&mut self.mappings, snapshot.mappings.iter().map(|mapping| (mapping.number, mapping)), now_ms);
        self.newest = newest(snapshot);
    }
}

fn newest(snapshot: &Snapshot) -> [u64; 2] {
    let raise = snapshot.raises.last().map_or(0, |raise| raise.number);
    [raise, snapshot.mappings.last().map_or(0, |mapping| mapping.number)]
}

fn take<'a, T: 'a>(held: &mut BTreeMap<u64, (u64, Arc<T>)>, new: impl Iterator<Item = (u64, &'a Arc<T>)>, now_ms: u64) {
    for (number, one) in new {
        held.insert(number, (now_ms, Arc::clone(one)));
    }
    while let Some((_, (seen_ms, _))) = held.first_key_value()
        && (held.len() > KEPT || now_ms.saturating_sub(*seen_ms) > KEPT_MS)
    {
        held.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::model::ProcessId;
    use crate::report::sample;

    fn snapshot(ms: u64, numbers: std::ops::Range<u64>, stack: bool) -> Arc<Snapshot> {
        let raise = |number| {
            Arc::new(Raise {
                number,
                id: ProcessId::default(),
                comm: String::new(),
                tid: 1,
                ns: 1,
                unix_ms: 1,
                from_bytes: 131_072,
                to_bytes: 135_168,
                chunk_bytes: None,
                stack: stack.then(Arc::default),
                mapped_by: None,
            })
        };
        let mut snapshot = Snapshot { raises: numbers.map(raise).collect(), ..sample::snapshot(Vec::new()) };
        snapshot.window.duration_ms = ms;
        Arc::new(snapshot)
    }

    fn numbers(snapshot: &Snapshot) -> Vec<(u64, bool)> {
        snapshot.raises.iter().map(|raise| (raise.number, raise.stack.is_some())).collect()
    }

    #[test]
    fn what_left_the_daemons_memory_before_its_step_is_in_it() {
        let mut passing = Passing::default();
        passing.note(&snapshot(1000, 1..101, false));
        passing.note(&snapshot(2000, 51..171, true));
        let whole = passing.whole(&snapshot(3000, 150..181, false));
        let expected: Vec<(u64, bool)> = (1..181).map(|number| (number, (51..150).contains(&number))).collect();
        assert_eq!(numbers(&whole), expected);
        assert_eq!(numbers(&passing.whole(&snapshot(50_000, 180..182, true))), [(180, true), (181, true)]);
    }

    #[test]
    fn where_few_come_nothing_is_kept() {
        let mut passing = Passing::default();
        let now = snapshot(1000, 1..11, false);
        passing.note(&now);
        assert!(Arc::ptr_eq(&passing.whole(&now), &now));
    }
}
