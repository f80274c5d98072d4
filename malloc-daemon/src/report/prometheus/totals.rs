//! Sums by name that never go backwards, although processes come and go.
//!
//! A scraper takes a counter that falls for one that restarted, and a sum over the processes of one name falls
//! when one of them leaves the snapshot. So the sums are kept here: each snapshot adds what each image counted
//! since the one before, and an image that has left stays in the sum.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use malloc_common::loss::LOSSES;

use super::Label;
use super::figures::{Figures, advance};
use super::own::Own;
use crate::aggregate::model::{Calibration, LossReason, Prices, Process, ProcessId, Snapshot};
use crate::report::escape::printable;

/// Names with series of their own unless configured otherwise; the rest share [`OTHER`].
pub const NAMES: usize = 200;
/// The name of all processes beyond the cap.
pub const OTHER: &str = "other";

/// Unasked, the sums take in a snapshot after so long, milliseconds, or when it holds so many images more: well before
/// one that ended has left it.
const UNASKED_MS: u64 = 10_000;
const UNASKED_IMAGES: usize = 512;

/// Reasons of the model: the kernel's and two of the daemon's.
const REASONS: usize = LOSSES + 4;

/// Letters of a control group in its label: a container's id alone has 64.
const CGROUP_LETTERS: usize = 256;
/// The label of processes whose control group could not be read.
const UNKNOWN: &str = "unknown";

/// Everything that `/metrics` counts. Bounded by the names with series of their own and the images of one snapshot.
#[derive(Debug)]
pub struct Totals {
    label: Label,
    room: usize,
    sums: Sums,
    /// Each on its own: a table of them would keep the room of the busiest time, a kilobyte for each.
    images: HashMap<(ProcessId, u64), Box<Image>>,
    lost_seen: [u64; REASONS],
    sequence: u64,
    /// Of the last snapshot: its time, and how many images it held.
    fed_ms: u64,
    fed_images: usize,
}

/// What is shown of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    names: BTreeMap<String, Figures>,
    other: Option<Figures>,
    lost: [u64; REASONS],
    hits: [Option<u64>; 4],
    folded: u64,
    own: Own,
    calibration: Arc<Calibration>,
}

/// What is already in the sums of one image.
#[derive(Clone, Debug, Default)]
struct Image {
    /// What it was when it was added last: the same again adds nothing.
    process: Weak<Process>,
    name: Arc<str>,
    /// Its gauges are those of then.
    seen: Figures,
    lost: [u64; REASONS],
    sequence: u64,
    /// It is in the sums, or in those of `other`.
    is_added: bool,
}

impl Default for Totals {
    fn default() -> Self {
        Self::new(Label::Comm, NAMES)
    }
}

impl Totals {
    /// Nothing yet; `names` get series of their own.
    #[must_use]
    pub fn new(label: Label, names: usize) -> Self {
        Self {
            label,
            room: names,
            sums: Sums::default(),
            images: HashMap::new(),
            lost_seen: [0; REASONS],
            sequence: 0,
            fed_ms: 0,
            fed_images: 0,
        }
    }

    /// What processes are summed by.
    pub(super) fn label(&self) -> Label {
        self.label
    }

    /// The same as [`Self::feed`], but not for each snapshot: when nobody looks it is enough that nothing is missed.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let since_ms = snapshot.window.duration_ms.saturating_sub(self.fed_ms);
        let more = snapshot.processes.len().saturating_sub(self.fed_images);
        if self.sequence == 0 || since_ms >= UNASKED_MS || more >= UNASKED_IMAGES {
            self.feed(snapshot);
        }
    }

    /// Adds what happened since the snapshot fed before; one that is not newer adds nothing.
    pub fn feed(&mut self, snapshot: &Snapshot) {
        if snapshot.sequence <= self.sequence {
            return;
        }
        self.sequence = snapshot.sequence;
        (self.fed_ms, self.fed_images) = (snapshot.window.duration_ms, snapshot.processes.len());
        self.sums.own = self.sums.own.renewed(snapshot);
        self.sums.calibration = Arc::clone(&snapshot.calibration);
        self.choose_names(snapshot);
        for figures in self.sums.names.values_mut().chain(&mut self.sums.other) {
            figures.clear_gauges();
        }
        for process in &snapshot.processes {
            self.add(process);
        }
        self.images.retain(|_, image| image.sequence == snapshot.sequence);
        for (reason, count) in &snapshot.losses {
            if let (Some(total), Some(seen)) =
                (self.sums.lost.get_mut(index(*reason)), self.lost_seen.get_mut(index(*reason)))
            {
                advance(total, seen, *count);
            }
        }
    }

    /// What is shown now.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Gives names to those that have none, those who take most from the kernel first. When all are taken, a name of
    /// which no process is left is given up; should it return, it begins at zero, which a scraper reads as a restart.
    fn choose_names(&mut self, snapshot: &Snapshot) {
        let mut present: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for process in &snapshot.processes {
            let image = self.images.entry((process.id, process.image_ns)).or_default();
            if !std::ptr::eq(image.process.as_ptr(), Arc::as_ptr(process)) {
                let name = name(self.label, process);
                if *image.name != *name {
                    image.name = name.into();
                }
            }
            if *image.name != *OTHER {
                let bytes = present.entry(Arc::clone(&image.name)).or_default();
                *bytes = bytes.saturating_add(size(process));
            }
        }
        let is_new = |name: &str| !self.sums.names.contains_key(name);
        let mut wanted: Vec<(&str, u64)> =
            present.iter().filter(|(name, _)| is_new(name)).map(|(name, bytes)| (&**name, *bytes)).collect();
        wanted.sort_by_key(|(name, bytes)| (Reverse(*bytes), *name));
        let excess = (self.sums.names.len() + wanted.len()).saturating_sub(self.room);
        if excess > 0 {
            let left: BTreeSet<String> = self
                .sums
                .names
                .keys()
                .filter(|name| !present.contains_key(name.as_str()))
                .take(excess)
                .cloned()
                .collect();
            self.sums.names.retain(|name, _| !left.contains(name));
        }
        let room = self.room.saturating_sub(self.sums.names.len());
        let named: Vec<String> = wanted.into_iter().take(room).map(|(name, _)| name.to_owned()).collect();
        self.sums.names.extend(named.into_iter().map(|name| (name, Figures::default())));
    }

    fn add(&mut self, process: &Arc<Process>) {
        let image = self.images.entry((process.id, process.image_ns)).or_default();
        image.sequence = self.sequence;
        let sums = match self.sums.names.get_mut(&*image.name) {
            Some(sums) => sums,
            None => {
                self.sums.folded += u64::from(!image.is_added && *image.name != *OTHER);
                self.sums.other.get_or_insert_default()
            }
        };
        image.is_added = true;
        if !std::ptr::eq(image.process.as_ptr(), Arc::as_ptr(process)) {
            image.process = Arc::downgrade(process);
            let now = Figures::of(process);
            let before = sums.hits;
            sums.grow(&mut image.seen, &now);
            image.seen.keep_gauges(&now);
            for ((total, before), after) in self.sums.hits.iter_mut().zip(before).zip(sums.hits) {
                if let Some(after) = after {
                    *total = Some(total.unwrap_or(0).saturating_add(after.saturating_sub(before.unwrap_or(0))));
                }
            }
            for (reason, count) in &process.losses {
                if let (Some(total), Some(seen)) =
                    (self.sums.lost.get_mut(index(*reason)), image.lost.get_mut(index(*reason)))
                {
                    advance(total, seen, *count);
                }
            }
        }
        if process.ended.is_none() {
            sums.add_gauges(&image.seen);
        }
    }
}

impl Sums {
    /// Each name with its sums; `other` last, when it was needed.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &Figures)> {
        let named = self.names.iter().map(|(name, figures)| (name.as_str(), figures));
        named.chain(self.other.iter().map(|figures| (OTHER, figures)))
    }

    /// Every reason, zeros too.
    pub(super) fn lost(&self) -> impl Iterator<Item = (LossReason, u64)> {
        reasons().zip(self.lost)
    }

    /// By depth, the cheapest first.
    pub(super) fn hits(&self) -> [Option<u64>; 4] {
        self.hits
    }

    /// The daemon's own figures.
    pub(super) fn own(&self) -> &Own {
        &self.own
    }

    /// What a hit costs, when it was measured.
    pub(super) fn prices(&self) -> Option<&Prices> {
        self.calibration.prices()
    }

    /// Images that began under the name `other`.
    pub(super) fn folded(&self) -> u64 {
        self.folded
    }
}

/// What stands in the label.
fn name(label: Label, process: &Process) -> String {
    match label {
        Label::Comm => printable(&process.comm, 32),
        Label::Cgroup => process.cgroup.as_deref().map_or(UNKNOWN.to_owned(), |path| printable(path, CGROUP_LETTERS)),
    }
}

/// What decides who gets a name: bytes taken from the kernel.
fn size(process: &Process) -> u64 {
    let s = &process.syscalls;
    s.mmap.bytes.saturating_add(s.mremap.bytes).saturating_add(s.brk_grown_bytes)
}

fn reasons() -> impl Iterator<Item = LossReason> {
    let kernel = malloc_common::loss::ALL.into_iter().map(LossReason::Kernel);
    kernel
        .chain([LossReason::ProgramMissed, LossReason::ProcessDropped])
        .chain([LossReason::IncidentDropped, LossReason::HistoryDropped])
}

/// The place of a reason in [`reasons`].
fn index(reason: LossReason) -> usize {
    match reason {
        LossReason::Kernel(loss) => loss as usize,
        LossReason::ProgramMissed => LOSSES,
        LossReason::ProcessDropped => LOSSES + 1,
        LossReason::IncidentDropped => LOSSES + 2,
        LossReason::HistoryDropped => LOSSES + 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use proptest::prelude::*;

    fn fed(totals: &mut Totals, sequence: u64, processes: Vec<Process>) {
        totals.feed(&Snapshot { sequence, ..sample::snapshot(processes) });
    }

    fn crossings(totals: &Totals, name: &str) -> Option<u64> {
        totals.sums().names().find(|(other, _)| *other == name).and_then(|(_, figures)| figures.crossings)
    }

    fn process(pid: u32, comm: &str, crossings: u64) -> Process {
        let mut process = sample::sqlite();
        process.id.pid = pid;
        process.comm = comm.to_owned();
        process.crossings.as_mut().unwrap().count.calls = crossings;
        process
    }

    #[test]
    fn a_sum_does_not_fall_when_a_process_leaves() {
        let mut totals = Totals::default();
        fed(&mut totals, 1, vec![process(1, "a", 5), process(2, "a", 7)]);
        fed(&mut totals, 2, vec![process(2, "a", 8)]);
        assert_eq!(crossings(&totals, "a"), Some(13));
        fed(&mut totals, 3, vec![]);
        assert_eq!(crossings(&totals, "a"), Some(13));
        assert!(totals.images.is_empty());
    }

    #[test]
    fn a_pid_used_again_is_counted_from_zero() {
        let mut totals = Totals::default();
        fed(&mut totals, 1, vec![process(1, "a", 5)]);
        let mut again = process(1, "a", 2);
        again.id.start_ticks += 1;
        fed(&mut totals, 2, vec![again]);
        assert_eq!(crossings(&totals, "a"), Some(7));
    }

    #[test]
    fn a_process_that_changes_its_name_takes_nothing_from_the_old_one() {
        let mut totals = Totals::default();
        fed(&mut totals, 1, vec![process(1, "a", 5)]);
        fed(&mut totals, 2, vec![process(1, "b", 9)]);
        assert_eq!((crossings(&totals, "a"), crossings(&totals, "b")), (Some(5), Some(4)));
    }

    #[test]
    fn a_snapshot_fed_twice_counts_once() {
        let mut totals = Totals::default();
        fed(&mut totals, 1, vec![process(1, "a", 5)]);
        fed(&mut totals, 1, vec![process(1, "a", 9)]);
        assert_eq!(crossings(&totals, "a"), Some(5));
    }

    #[test]
    fn unasked_a_snapshot_is_taken_in_when_it_is_late_or_holds_many_more() {
        let mut totals = Totals::default();
        let snapshot = |sequence, duration_ms, images: u32| {
            let processes = (0..images).map(|pid| process(pid, "a", 1)).collect();
            let mut snapshot = Snapshot { sequence, ..sample::snapshot(processes) };
            snapshot.window.duration_ms = duration_ms;
            snapshot
        };
        let mut followed = |sequence, duration_ms, images| {
            totals.follow(&snapshot(sequence, duration_ms, images));
            crossings(&totals, "a")
        };
        assert_eq!(followed(1, 1000, 1), Some(1));
        assert_eq!(followed(2, 2000, 2), Some(1));
        assert_eq!(followed(3, 1000 + UNASKED_MS, 2), Some(2));
        assert_eq!(followed(4, 2000 + UNASKED_MS, 2 + UNASKED_IMAGES as u32), Some(2 + UNASKED_IMAGES as u64));
    }

    #[test]
    fn names_beyond_the_cap_are_folded_and_counted() {
        let mut totals = Totals::default();
        let processes: Vec<Process> = (0..NAMES as u32 + 3).map(|pid| process(pid, &format!("p{pid}"), 1)).collect();
        fed(&mut totals, 1, processes.clone());
        fed(&mut totals, 2, processes);
        assert_eq!(totals.sums().names().count(), NAMES + 1);
        assert_eq!((crossings(&totals, OTHER), totals.sums().folded()), (Some(3), 3));
    }

    #[test]
    fn the_largest_get_the_names() {
        let mut totals = Totals::default();
        let mut processes: Vec<Process> = (0..NAMES as u32).map(|pid| process(pid, &format!("p{pid}"), 1)).collect();
        let mut large = process(1000, "zz-large", 1);
        large.syscalls.brk_grown_bytes += 1;
        processes.push(large);
        fed(&mut totals, 1, processes);
        assert_eq!(crossings(&totals, "zz-large"), Some(1));
    }

    #[test]
    fn a_process_named_other_makes_no_second_series_of_that_name() {
        let mut totals = Totals::default();
        let mut processes: Vec<Process> =
            (0..NAMES as u32 + 1).map(|pid| process(pid, &format!("p{pid}"), 1)).collect();
        processes.push(process(1000, OTHER, 1));
        fed(&mut totals, 1, processes);
        assert_eq!(totals.sums().names().filter(|(name, _)| *name == OTHER).count(), 1);
        assert_eq!((crossings(&totals, OTHER), totals.sums().folded()), (Some(2), 1));
    }

    #[test]
    fn a_name_without_processes_makes_room() {
        let mut totals = Totals::default();
        fed(&mut totals, 1, (0..NAMES as u32).map(|pid| process(pid, &format!("p{pid}"), 1)).collect());
        fed(&mut totals, 2, vec![process(9000, "new", 4)]);
        assert_eq!((crossings(&totals, "new"), totals.sums().folded()), (Some(4), 0));
        assert_eq!(totals.sums().names().count(), NAMES);
    }

    #[test]
    fn losses_of_processes_and_of_all_are_added() {
        let mut totals = Totals::default();
        totals.feed(&sample::lossy());
        totals.feed(&Snapshot { sequence: 43, ..sample::lossy() });
        let lost: Vec<(&str, u64)> = totals.sums().lost().map(|(r, c)| (r.name(), c)).filter(|(_, c)| *c > 0).collect();
        assert_eq!(lost, [("process_table_full", 3), ("histogram_pool_full", 12), ("program_missed", 1234)]);
    }

    #[test]
    fn the_threshold_is_of_those_that_run() {
        let mut totals = Totals::default();
        let mut ended = process(1, "a", 5);
        ended.ended = Some(crate::aggregate::model::End::Exited);
        fed(&mut totals, 1, vec![ended]);
        assert_eq!(totals.sums().names().next().unwrap().1.threshold, None);
    }

    proptest! {
        #[test]
        fn no_counter_goes_backwards(steps in prop::collection::vec(
            prop::collection::vec((0u32..6, 0usize..3, any::<u32>()), 0..6), 1..12)
        ) {
            let mut totals = Totals::default();
            let mut before: BTreeMap<String, u64> = BTreeMap::new();
            for (sequence, step) in steps.into_iter().enumerate() {
                let processes: BTreeMap<u32, Process> = step
                    .into_iter()
                    .map(|(pid, name, count)| (pid, process(pid, ["a", "b", "c"][name], u64::from(count))))
                    .collect();
                fed(&mut totals, sequence as u64 + 1, processes.into_values().collect());
                for (name, figures) in totals.sums().names() {
                    let now = figures.crossings.unwrap_or(0);
                    prop_assert!(before.get(name).is_none_or(|before| now >= *before));
                    before.insert(name.to_owned(), now);
                }
            }
        }
    }
}
