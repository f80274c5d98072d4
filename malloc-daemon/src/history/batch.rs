//! From a snapshot to what a step writes: the images that changed, the incidents that are new. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::record::{Image, ImageId, Incident, Step, What};
use super::row::{Figures, Row};
use super::store::{Batch, NewIncident};
use super::tiers::{TIERS, bounded};
use crate::aggregate::model::{Mapping, Process, ProcessId, Raise, Snapshot, Stack};

/// Incidents written with one step; more wait for the next. 2,048 x about 100 bytes, and stacks that are new.
const INCIDENTS_A_STEP: usize = 2_048;
/// How long an incident waits for its stack to be named, milliseconds.
const NAMING_MS: u64 = 15_000;

type ImageKey = (ProcessId, u64);

/// What is on disk of an image.
#[derive(Clone, Debug)]
struct Held {
    number: ImageId,
    written: Figures,
    ended: bool,
    /// The name on disk; `None`: it may not be there any more.
    comm: Option<String>,
}

/// Remembers what was written.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    images: HashMap<ImageKey, Held>,
    raises: u64,
    mappings: u64,
    /// End of the last step, milliseconds since the daemon began to observe.
    until_ms: u64,
    /// Incidents that fell out of the daemon's memory before they could be written.
    pub(super) missed: u64,
}

/// A batch, and what is remembered when it is on disk.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) batch: Batch,
    images: Vec<(ImageKey, Held)>,
    raises: u64,
    mappings: u64,
    until_ms: u64,
    missed: u64,
}

impl Recorder {
    /// Forgets what was on disk: the store is another. What happened before stays behind.
    pub(super) fn forget_images(&mut self) {
        self.images.clear();
    }

    /// The store was opened again, and may have lost who an image is where nothing referred to it.
    pub(super) fn forget_names(&mut self) {
        self.images.values_mut().for_each(|held| held.comm = None);
    }

    /// Images that may be written again.
    pub(super) fn live(&self) -> HashSet<ImageId> {
        self.images.values().map(|held| held.number).collect()
    }

    /// What has changed since the last step that was written.
    pub(super) fn batch(&self, snapshot: &Snapshot, next_image: ImageId) -> Pending {
        let mut next = next_image;
        let (mut batch, mut images) = (Batch::default(), Vec::new());
        for process in &snapshot.processes {
            let key = (process.id, process.image_ns);
            let held = self.images.get(&key);
            let before = held.map_or(Figures::NONE, |held| held.written);
            let now = Figures::of(process).not_below(&before);
            let delta = now.since(&before);
            let named = held.is_some_and(|held| held.comm.as_deref() == Some(process.comm.as_str()));
            let ended = process.ended.is_some();
            let unchanged = held.is_some_and(|held| held.ended == ended && same(&now, &held.written));
            if unchanged && named {
                continue;
            }
            let number = held.map_or(next, |held| held.number);
            next = next.max(number + 1);
            if !named {
                batch.images.push((number, image(process)));
            }
            if !unchanged {
                batch.rows.push((number, Row { now, delta, ended: process.ended, complete: process.complete }));
            }
            // A figure that is not measured for a while is not counted again from its beginning.
            let mut written = before;
            (0..super::row::FIELDS.len()).for_each(|place| written.set(place, now.get(place)));
            images.push((key, Held { number, written, ended, comm: Some(process.comm.clone()) }));
        }
        let (rows, folded) = bounded(TIERS[0], std::mem::take(&mut batch.rows));
        batch.rows = rows;
        let until_ms = snapshot.window.duration_ms;
        batch.step = Step {
            end_unix_ms: snapshot.window.end_unix_ms,
            duration_ms: until_ms.saturating_sub(self.until_ms),
            folded,
            losses: snapshot.losses.iter().map(|(_, count)| count).fold(0, |sum, count| sum.saturating_add(*count)),
            ..Step::default()
        };
        let mut pending = Pending { batch, images, raises: self.raises, mappings: self.mappings, until_ms, missed: 0 };
        self.incidents(snapshot, &mut pending);
        pending
    }

    fn incidents(&self, snapshot: &Snapshot, pending: &mut Pending) {
        let known: HashMap<ImageKey, ImageId> = self
            .images
            .iter()
            .map(|(key, held)| (*key, held.number))
            .chain(pending.images.iter().map(|(key, held)| (*key, held.number)))
            .collect();
        let image_at = |id: ProcessId, ns: u64| {
            let images = snapshot.processes.iter().filter(|p| p.id == id && p.image_ns <= ns);
            images.max_by_key(|p| p.image_ns).and_then(|p| known.get(&(p.id, p.image_ns))).copied()
        };
        let waits = |unix_ms: u64, stack: &Option<Arc<Stack>>| {
            stack.is_none() && snapshot.window.end_unix_ms.abs_diff(unix_ms) < NAMING_MS
        };
        for raise in snapshot.raises.iter().filter(|raise| raise.number > self.raises) {
            if pending.batch.incidents.len() >= INCIDENTS_A_STEP
                || (raise.chunk_bytes.is_some() && waits(raise.unix_ms, &raise.stack))
            {
                break;
            }
            pending.missed += raise.number - pending.raises - 1;
            pending.raises = raise.number;
            pending.batch.incidents.push(of_raise(raise, image_at(raise.id, raise.ns)));
        }
        for mapping in snapshot.mappings.iter().filter(|mapping| mapping.number > self.mappings) {
            if pending.batch.incidents.len() >= INCIDENTS_A_STEP || waits(mapping.unix_ms, &mapping.stack) {
                break;
            }
            pending.missed += mapping.number - pending.mappings - 1;
            pending.mappings = mapping.number;
            pending.batch.incidents.push(of_mapping(mapping, image_at(mapping.id, mapping.ns)));
        }
    }

    /// The batch is on disk.
    pub(super) fn committed(&mut self, pending: Pending, snapshot: &Snapshot) {
        self.images.extend(pending.images);
        // What is in no snapshot any more is not written again.
        if self.images.len() > snapshot.processes.len() {
            let held: HashSet<ImageKey> = snapshot.processes.iter().map(|p| (p.id, p.image_ns)).collect();
            self.images.retain(|key, _| held.contains(key));
        }
        (self.raises, self.mappings) = (pending.raises, pending.mappings);
        self.until_ms = pending.until_ms;
        self.missed += pending.missed;
    }
}

/// Whether a row would say nothing new: the figures that are measured now are those that are on disk.
fn same(now: &Figures, written: &Figures) -> bool {
    (0..super::row::FIELDS.len()).all(|place| now.get(place).is_none_or(|value| written.get(place) == Some(value)))
}

fn image(process: &Process) -> Image {
    let allocator = process.allocator.as_ref().map(|allocator| match &allocator.version {
        Some(version) => format!("{} {version}", allocator.kind),
        None => allocator.kind.clone(),
    });
    Image {
        id: process.id,
        image_ns: process.image_ns,
        run: 0,
        comm: process.comm.clone(),
        exe: process.exe.clone(),
        cgroup: process.cgroup.clone(),
        allocator,
    }
}

fn of_raise(raise: &Raise, image: Option<ImageId>) -> NewIncident {
    NewIncident {
        incident: Incident {
            what: What::Raise {
                from_bytes: raise.from_bytes,
                to_bytes: raise.to_bytes,
                chunk_bytes: raise.chunk_bytes,
            },
            image,
            id: raise.id,
            tid: raise.tid,
            unix_ms: raise.unix_ms,
            sequence: 0,
            stack: None,
            mapped_by: None,
        },
        stack: raise.stack.clone(),
        mapped_by: raise.mapped_by.clone(),
    }
}

fn of_mapping(mapping: &Mapping, image: Option<ImageId>) -> NewIncident {
    NewIncident {
        incident: Incident {
            what: What::Crossing { bytes: mapping.bytes, weight: mapping.weight, mmap_ns: mapping.mmap_ns },
            image,
            id: mapping.id,
            tid: mapping.tid,
            unix_ms: mapping.unix_ms,
            sequence: 0,
            stack: None,
            mapped_by: None,
        },
        stack: mapping.stack.clone(),
        mapped_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::row::field;
    use crate::report::sample;

    fn snapshot(processes: Vec<Process>, duration_ms: u64) -> Snapshot {
        let mut snapshot = sample::snapshot(processes);
        (snapshot.window.duration_ms, snapshot.window.end_unix_ms) = (duration_ms, 1_000_000 + duration_ms);
        snapshot
    }

    fn commit(recorder: &mut Recorder, snapshot: &Snapshot, next: ImageId) -> Batch {
        let pending = recorder.batch(snapshot, next);
        let batch = pending.batch.clone();
        recorder.committed(pending, snapshot);
        batch
    }

    #[test]
    fn an_image_is_written_when_it_changes_and_not_before() {
        let mut recorder = Recorder::default();
        let mut process = sample::sqlite();
        let first = commit(&mut recorder, &snapshot(vec![process.clone()], 10_000), 7);
        assert_eq!((first.rows.len(), first.images.len(), first.rows[0].0), (1, 1, 7));
        let second = commit(&mut recorder, &snapshot(vec![process.clone()], 20_000), 8);
        assert_eq!((second.rows.len(), second.images.len(), second.step.duration_ms), (0, 0, 10_000));
        process.syscalls.mmap.calls += 3;
        let third = commit(&mut recorder, &snapshot(vec![process.clone()], 30_000), 8);
        assert_eq!(third.rows[0].0, 7);
        assert_eq!(third.rows[0].1.delta.get(field::MMAP_CALLS), Some(3));
        assert_eq!(third.rows[0].1.delta.get(field::BRK_CALLS), None);
        process.ended = Some(crate::aggregate::model::End::Exited);
        let last = commit(&mut recorder, &snapshot(vec![process.clone()], 40_000), 8);
        assert_eq!(last.rows[0].1.ended, process.ended);
        assert!(commit(&mut recorder, &snapshot(vec![process], 50_000), 8).rows.is_empty());
    }

    #[test]
    fn a_batch_that_was_not_written_is_part_of_the_next() {
        // HIST-1
        let mut recorder = Recorder::default();
        let mut process = sample::sqlite();
        commit(&mut recorder, &snapshot(vec![process.clone()], 10_000), 1);
        process.syscalls.brk.calls += 2;
        drop(recorder.batch(&snapshot(vec![process.clone()], 20_000), 2));
        process.syscalls.brk.calls += 1;
        let batch = commit(&mut recorder, &snapshot(vec![process], 30_000), 2);
        assert_eq!(batch.rows[0].1.delta.get(field::BRK_CALLS), Some(3));
        assert_eq!(batch.step.duration_ms, 20_000);
    }

    #[test]
    fn an_incident_waits_for_its_stack_and_is_written_once() {
        let mut recorder = Recorder::default();
        let mut now = snapshot(vec![sample::sqlite()], 10_000);
        let id = sample::sqlite().id;
        let mut mapping = Mapping {
            number: 1,
            id,
            comm: "sqlite3".to_owned(),
            tid: 1,
            ns: u64::MAX,
            unix_ms: now.window.end_unix_ms - 100,
            address: 0x7f00_0000,
            bytes: 4096,
            nb: 4096,
            mmap_ns: 10,
            nth: 1,
            weight: 1,
            stack: None,
        };
        now.mappings = vec![Arc::new(mapping.clone())];
        assert!(commit(&mut recorder, &now, 1).incidents.is_empty(), "its stack may still come");
        mapping.stack = Some(Arc::new(Stack::default()));
        now.mappings = vec![Arc::new(mapping)];
        let batch = commit(&mut recorder, &now, 2);
        assert_eq!(batch.incidents[0].incident.image, Some(1));
        assert!(commit(&mut recorder, &now, 2).incidents.is_empty());
    }

    #[test]
    fn incidents_that_fell_out_before_they_were_written_are_counted() {
        // LOSS-1
        let mut recorder = Recorder::default();
        let mut now = snapshot(Vec::new(), 10_000);
        let raise = |number| {
            let id = ProcessId { pid: 1, start_ticks: 1 };
            let (comm, chunk_bytes, stack, mapped_by) = (String::new(), None, None, None);
            let (from_bytes, to_bytes) = (1, 2);
            let (tid, ns, unix_ms) = (1, 1, 1);
            Arc::new(Raise { number, id, comm, tid, ns, unix_ms, from_bytes, to_bytes, chunk_bytes, stack, mapped_by })
        };
        now.raises = vec![raise(4), raise(5)];
        assert_eq!(commit(&mut recorder, &now, 1).incidents.len(), 2);
        assert_eq!(recorder.missed, 3);
    }
}
