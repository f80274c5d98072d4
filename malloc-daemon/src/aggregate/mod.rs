//! Raw rows over time become what is true now: pure, one owner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use malloc_common::loss;

use crate::collect::{RawImage, RawSnapshot};

pub mod by_stack;
mod chunks;
pub mod explain;
pub mod heap;
mod image;
pub mod incidents;
mod knowledge;
pub mod model;
pub mod price;
mod recent;
pub mod what_if;

pub use image::{DeepFigures, Facts};
pub use knowledge::{Knowledge, Stamp};
use model::{
    Calibration, CrossingStacks, DaemonCost, End, Host, LossReason, Mapping, Probe, Process, ProcessId, Raise,
    Snapshot, Window,
};

/// What the daemon knows of a moment besides the rows.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Nanoseconds since boot since when everything is attached.
    pub tracking_since_ns: u64,
    /// Nanoseconds since boot when the window of the counts began.
    pub window_since_ns: u64,
    /// The machine.
    pub host: Host,
    /// Raises of thresholds, the oldest first.
    pub raises: Vec<Arc<Raise>>,
    /// Sampled mappings, the oldest first.
    pub mappings: Vec<Arc<Mapping>>,
    /// Sampled crossings by image and stack.
    pub stacks: Vec<Arc<CrossingStacks>>,
    /// Raises and mappings that were dropped, and stacks that were not named.
    pub incidents_lost: u64,
    /// Every probe.
    pub probes: Vec<Probe>,
    /// What the daemon costs.
    pub cost: DaemonCost,
    /// What a hit costs.
    pub calibration: Arc<Calibration>,
}

/// How long ended images stay and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Nanoseconds after its end; `u64::MAX`: for ever.
    pub ended_ns: u64,
    /// Ended images kept at most: the oldest goes first.
    pub ended_images: usize,
    /// The same for images that the kernel killed when memory ran out: nanoseconds, and images at most.
    pub killed_ns: u64,
    /// See `killed_ns`.
    pub killed_images: usize,
    /// An image of which nothing new is known is made anew only after so long, nanoseconds: its `observed_ms` is behind
    /// by that at most.
    pub unchanged_ns: u64,
}

type ImageKey = (ProcessId, u64);

/// Turns rows into snapshots.
#[derive(Debug)]
pub struct Aggregate {
    keep: Keep,
    sequence: u64,
    /// In the order of their ends, those killed for memory apart: others push none of them out.
    ended: Shelf,
    killed: Shelf,
    /// Images that live, with what they were made of.
    live: BTreeMap<ImageKey, Made>,
    dropped: u64,
}

/// An image and what it was made of.
#[derive(Debug)]
struct Made {
    row: Arc<RawImage>,
    stamp: Option<Stamp>,
    facts: Facts,
    at_ns: u64,
    process: Arc<Process>,
    /// Sequence of the last snapshot that its row was in.
    sequence: u64,
}

type Shelf = VecDeque<(u64, ImageKey, Arc<Process>)>;

impl Aggregate {
    /// Nothing yet.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        Self { keep, sequence: 0, ended: Shelf::new(), killed: Shelf::new(), live: BTreeMap::new(), dropped: 0 }
    }

    /// What is true after these rows.
    pub fn apply(&mut self, raw: &RawSnapshot, moment: Moment, knowledge: &dyn Knowledge) -> Snapshot {
        self.sequence += 1;
        let duration_ms = raw.now_ns.saturating_sub(moment.window_since_ns) / 1_000_000;
        for row in &raw.images {
            let id = ProcessId::of(&row.slot);
            let key = (id, row.slot.first_ns);
            let stamp = knowledge.stamp(row);
            let is_as_before = |made: &Made| {
                let is_fresh = raw.now_ns.saturating_sub(made.at_ns) < self.keep.unchanged_ns;
                is_fresh && (Arc::ptr_eq(&made.row, row) || made.row == *row)
            };
            let facts = match self.live.get_mut(&key).filter(|made| is_as_before(made)) {
                Some(made) if stamp.is_some() && made.stamp == stamp => {
                    made.sequence = self.sequence;
                    continue;
                }
                Some(made) => {
                    let facts = knowledge.facts(row);
                    if made.facts == facts {
                        (made.stamp, made.sequence) = (stamp, self.sequence);
                        continue;
                    }
                    facts
                }
                None => knowledge.facts(row),
            };
            let prices = moment.calibration.prices();
            let process = Arc::new(image::process(row, &facts, raw.now_ns, moment.tracking_since_ns, prices));
            match process.ended {
                Some(End::OomKilled) => self.killed.push_back((row.slot.end_ns, key, process)),
                Some(_) => self.ended.push_back((row.slot.end_ns, key, process)),
                None => {
                    let row = Arc::clone(row);
                    let (at_ns, sequence) = (raw.now_ns, self.sequence);
                    self.live.insert(key, Made { row, stamp, facts, at_ns, process, sequence });
                }
            }
        }
        // An image that ended was made anew, and is in one of the others.
        self.live.retain(|_, made| made.sequence == self.sequence);
        let Keep { ended_ns, ended_images, killed_ns, killed_images, .. } = self.keep;
        self.dropped += forget(&mut self.ended, raw.now_ns, ended_ns, ended_images);
        self.dropped += forget(&mut self.killed, raw.now_ns, killed_ns, killed_images);
        let ended = self.ended.iter().chain(&self.killed).map(|(_, key, process)| (*key, Arc::clone(process)));
        let live = self.live.iter().map(|(key, made)| (*key, Arc::clone(&made.process)));
        let mut processes: Vec<_> = ended.chain(live).collect();
        processes.sort_by_key(|(key, _)| *key);
        let losses = self.losses(raw, moment.incidents_lost);
        Snapshot {
            sequence: self.sequence,
            host: moment.host,
            window: Window {
                start_unix_ms: moment.unix_ms.saturating_sub(duration_ms),
                end_unix_ms: moment.unix_ms,
                duration_ms,
            },
            complete: losses.is_empty() && processes.iter().all(|(_, process)| process.complete),
            losses,
            processes: processes.into_iter().map(|(_, process)| process).collect(),
            processes_dropped: self.dropped,
            raises: moment.raises,
            mappings: moment.mappings,
            stacks: moment.stacks,
            probes: moment.probes,
            cost: moment.cost,
            calibration: moment.calibration,
        }
    }

    fn losses(&self, raw: &RawSnapshot, incidents: u64) -> Vec<(LossReason, u64)> {
        let kernel = loss::ALL.into_iter().map(|loss| (LossReason::Kernel(loss), raw.lost[loss as usize]));
        let rest = [
            (LossReason::ProgramMissed, raw.missed),
            (LossReason::ProcessDropped, self.dropped),
            (LossReason::IncidentDropped, incidents),
        ];
        kernel.chain(rest).filter(|(_, count)| *count != 0).collect()
    }
}

/// Lets go of images whose time is over, then of the oldest that are too many; returns how many these were.
fn forget(shelf: &mut Shelf, now_ns: u64, keep_ns: u64, images: usize) -> u64 {
    let mut dropped = 0;
    while let Some((end_ns, _, _)) = shelf.front() {
        if keep_ns != u64::MAX && now_ns.saturating_sub(*end_ns) > keep_ns {
            shelf.pop_front();
        } else if shelf.len() > images {
            shelf.pop_front();
            dropped += 1;
        } else {
            break;
        }
    }
    dropped
}

#[cfg(test)]
mod scenarios;
