//! The counters of an image at one step, and by how much they grew since the step before.

use super::codec::{In, Out};
use crate::aggregate::model::{Count, End, Process};

/// Version of the layout of a row.
const VERSION: u8 = 1;

/// How a figure behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows: steps add up.
    Counter,
    /// It stands for its moment: the last one holds.
    Level,
}

/// The figures of a row: name in the answers, behaviour. Their order is the layout on disk: new ones go to the end.
pub const FIELDS: [(&str, Kind); 32] = [
    ("calls", Kind::Counter),
    ("call_bytes", Kind::Counter),
    ("frees", Kind::Counter),
    ("arena_calls", Kind::Counter),
    ("arena_bytes", Kind::Counter),
    ("sysmalloc_calls", Kind::Counter),
    ("sysmalloc_bytes", Kind::Counter),
    ("heap_growths", Kind::Counter),
    ("heap_growth_bytes", Kind::Counter),
    ("mappings", Kind::Counter),
    ("mapping_bytes", Kind::Counter),
    ("crossings", Kind::Counter),
    ("crossing_bytes", Kind::Counter),
    ("raises", Kind::Counter),
    ("threshold_bytes", Kind::Level),
    ("trim_threshold_bytes", Kind::Level),
    ("mmapped_chunks", Kind::Level),
    ("mmapped_bytes", Kind::Level),
    ("mmap_calls", Kind::Counter),
    ("mmap_failed", Kind::Counter),
    ("mmap_bytes", Kind::Counter),
    ("munmap_calls", Kind::Counter),
    ("munmap_failed", Kind::Counter),
    ("munmap_bytes", Kind::Counter),
    ("mremap_calls", Kind::Counter),
    ("mremap_failed", Kind::Counter),
    ("mremap_bytes", Kind::Counter),
    ("brk_calls", Kind::Counter),
    ("brk_failed", Kind::Counter),
    ("brk_grown_bytes", Kind::Counter),
    ("brk_shrunk_bytes", Kind::Counter),
    ("losses", Kind::Counter),
];

/// Places in [`FIELDS`].
pub mod field {
    #![allow(missing_docs, reason = "the names are those of the table")]
    pub const CALLS: usize = 0;
    pub const CALL_BYTES: usize = 1;
    pub const FREES: usize = 2;
    pub const SYSMALLOC_CALLS: usize = 5;
    pub const CROSSINGS: usize = 11;
    pub const CROSSING_BYTES: usize = 12;
    pub const RAISES: usize = 13;
    pub const THRESHOLD_BYTES: usize = 14;
    pub const MMAP_CALLS: usize = 18;
    pub const MMAP_BYTES: usize = 20;
    pub const MUNMAP_CALLS: usize = 21;
    pub const MUNMAP_BYTES: usize = 23;
    pub const MREMAP_CALLS: usize = 24;
    pub const BRK_CALLS: usize = 27;
    pub const BRK_GROWN_BYTES: usize = 29;
    pub const BRK_SHRUNK_BYTES: usize = 30;
    pub const LOSSES: usize = 31;
}

/// Figures by their place in [`FIELDS`]; what is not measured is absent, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    present: u32,
    values: [u64; FIELDS.len()],
}

impl Figures {
    /// Nothing measured.
    pub const NONE: Self = Self { present: 0, values: [0; FIELDS.len()] };

    /// The figure at a place; `None`: not measured.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<u64> {
        let value = self.values.get(place)?;
        (self.present & (1 << place) != 0).then_some(*value)
    }

    /// Puts a figure at a place.
    pub fn set(&mut self, place: usize, value: Option<u64>) {
        if let (Some(held), Some(value)) = (self.values.get_mut(place), value) {
            *held = value;
            self.present |= 1 << place;
        }
    }

    /// The counters of a process now.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let mut figures = Self::NONE;
        let funnel = &process.funnel;
        // What is estimated may fall when more is known: it is no counter, and not in the history.
        let counted = |count: Option<Count>, is_estimated: bool| count.filter(|_| !is_estimated);
        let call = counted(funnel.call, funnel.call_estimate.is_some());
        let arena = counted(funnel.arena, funnel.arena_estimate.is_some());
        let frees = process.functions.as_ref().filter(|_| funnel.call_estimate.is_none()).map(|functions| {
            let frees = functions.iter().filter(|f| f.function == malloc_common::function::Function::Free);
            frees.map(|f| f.calls).sum::<u64>()
        });
        let crossings = process.crossings.as_ref().map(|crossings| crossings.count);
        let threshold = process.threshold.as_ref();
        let system = &process.syscalls;
        let pairs = |count: Option<Count>| [count.map(|c| c.calls), count.map(|c| c.bytes)];
        let calls = [&system.mmap, &system.munmap, &system.mremap].map(|s| [s.calls, s.failed, s.bytes].map(Some));
        let values = pairs(call)
            .into_iter()
            .chain([frees])
            .chain([arena, funnel.sysmalloc, funnel.brk, funnel.mmap, crossings].into_iter().flat_map(pairs))
            .chain([
                threshold.map(|t| t.raises),
                threshold.map(|t| t.bytes),
                threshold.map(|t| t.trim_bytes),
                threshold.map(|t| t.mmapped_chunks),
                threshold.map(|t| t.mmapped_bytes),
            ])
            .chain(calls.into_iter().flatten())
            .chain([system.brk.calls, system.brk.failed, system.brk_grown_bytes, system.brk_shrunk_bytes].map(Some))
            .chain([Some(process.losses.iter().map(|(_, count)| count).sum())]);
        for (place, value) in values.enumerate() {
            figures.set(place, value);
        }
        figures
    }

    /// By how much the counters of `self` are above those of `before`; levels are left out. A counter that `before` does
    /// not measure began at zero.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut delta = Self::NONE;
        for (place, (_, kind)) in FIELDS.iter().enumerate() {
            if *kind == Kind::Counter {
                let grown = self.get(place).map(|now| now.saturating_sub(before.get(place).unwrap_or(0)));
                delta.set(place, grown.filter(|grown| *grown != 0));
            }
        }
        delta
    }

    /// `self`, with no counter below what it was: a figure that is read while it is being written may be one low.
    #[must_use]
    pub fn not_below(mut self, before: &Self) -> Self {
        for (place, (_, kind)) in FIELDS.iter().enumerate() {
            if let (Kind::Counter, Some(now), Some(was)) = (kind, self.get(place), before.get(place)) {
                self.set(place, Some(now.max(was)));
            }
        }
        self
    }

    /// Adds the counters of `more`; levels are left as they are.
    pub fn add(&mut self, more: &Self) {
        for (place, (_, kind)) in FIELDS.iter().enumerate() {
            if let (Kind::Counter, Some(value)) = (kind, more.get(place)) {
                self.set(place, Some(self.get(place).unwrap_or(0).saturating_add(value)));
            }
        }
    }

    /// Puts a zero where `now` measures a counter that nothing was added to.
    pub fn measured_by(&mut self, now: &Self) {
        for (place, (_, kind)) in FIELDS.iter().enumerate() {
            if *kind == Kind::Counter && now.get(place).is_some() && self.get(place).is_none() {
                self.set(place, Some(0));
            }
        }
    }

    /// Bytes that the process took from the kernel.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        let bytes = [field::MMAP_BYTES, field::BRK_GROWN_BYTES].map(|place| self.get(place).unwrap_or(0));
        bytes.into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes that the process took from the kernel less those it gave back.
    #[must_use]
    pub fn growth_bytes(&self) -> i64 {
        let given = [field::MUNMAP_BYTES, field::BRK_SHRUNK_BYTES].map(|place| self.get(place).unwrap_or(0));
        let given = given.into_iter().fold(0, u64::saturating_add);
        let clamp = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        clamp(self.taken_bytes()) - clamp(given)
    }

    fn write(&self, out: &mut Out) {
        out.number(self.present.into());
        for place in 0..FIELDS.len() {
            if let Some(value) = self.get(place) {
                out.number(value);
            }
        }
    }

    /// Figures of a newer layout that has more places are read past.
    fn read(record: &mut In<'_>) -> Option<Self> {
        let present = record.number()?;
        let mut figures = Self::NONE;
        for place in (0..64).filter(|place| present & (1 << place) != 0) {
            let value = record.number()?;
            figures.set(place, Some(value));
        }
        Some(figures)
    }
}

/// What a step says of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The counters at the end of the step.
    pub now: Figures,
    /// By how much they grew within it; what did not is absent.
    pub delta: Figures,
    /// How the image ended within it, if it did.
    pub ended: Option<End>,
    /// Nothing was missing from its counts.
    pub complete: bool,
}

impl Row {
    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::versioned(VERSION);
        out.number(end_number(self.ended) << 1 | u64::from(self.complete));
        self.now.write(&mut out);
        self.delta.write(&mut out);
        out.bytes().to_vec()
    }

    /// `None`: not a row of a layout that is known.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = In::versioned(bytes, VERSION)?;
        let state = record.number()?;
        let (now, delta) = (Figures::read(&mut record)?, Figures::read(&mut record)?);
        Some(Self { now, delta, ended: end_of(state >> 1), complete: state & 1 != 0 })
    }

    /// Two consecutive rows of an image as one.
    #[must_use]
    pub fn then(mut self, later: &Self) -> Self {
        self.delta.add(&later.delta);
        Self {
            now: later.now,
            delta: self.delta,
            ended: later.ended.or(self.ended),
            complete: self.complete && later.complete,
        }
    }
}

fn end_number(ended: Option<End>) -> u64 {
    match ended {
        None => 0,
        Some(End::Exited) => 1,
        Some(End::Replaced) => 2,
        Some(End::OomKilled) => 3,
    }
}

fn end_of(number: u64) -> Option<End> {
    match number {
        1 => Some(End::Exited),
        2 => Some(End::Replaced),
        3 => Some(End::OomKilled),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::sample;
    use proptest::prelude::*;

    /// Any figures at all.
    pub(in crate::history) fn figures() -> impl Strategy<Value = Figures> {
        proptest::collection::vec(proptest::option::of(any::<u64>()), FIELDS.len()).prop_map(|values| {
            let mut figures = Figures::NONE;
            values.into_iter().enumerate().for_each(|(place, value)| figures.set(place, value));
            figures
        })
    }

    proptest! {
        #[test]
        fn a_row_reads_back_as_it_was(now in figures(), delta in figures(), complete: bool, end in 0u64..4) {
            let row = Row { now, delta, ended: end_of(end), complete };
            prop_assert_eq!(end_number(row.ended), end);
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
        }

        #[test]
        fn any_bytes_are_a_row_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Row::decode(&bytes);
        }

        #[test]
        fn the_deltas_of_steps_sum_to_the_difference_of_the_counters(readings in proptest::collection::vec(figures(), 2..8)) {
            // HIST-1
            let mut before = readings[0];
            let first = before;
            let mut sum = Figures::NONE;
            for reading in &readings[1..] {
                let now = reading.not_below(&before);
                // A figure stays measured once it is.
                let mut held = before;
                (0..FIELDS.len()).for_each(|place| held.set(place, now.get(place)));
                sum.add(&held.since(&before));
                before = held;
            }
            for (place, (name, kind)) in FIELDS.iter().enumerate() {
                if *kind == Kind::Counter {
                    let difference = before.get(place).unwrap_or(0) - first.get(place).unwrap_or(0);
                    prop_assert_eq!(sum.get(place).unwrap_or(0), difference, "{}", name);
                }
            }
        }
    }

    #[test]
    fn figures_of_a_process_stand_at_their_names() {
        let process = sample::sqlite();
        let figures = Figures::of(&process);
        let named = |name: &str| figures.get(FIELDS.iter().position(|(n, _)| *n == name).expect("a name"));
        assert_eq!(named("calls"), process.funnel.call.map(|c| c.calls));
        assert_eq!(named("crossing_bytes"), process.crossings.as_ref().map(|c| c.count.bytes));
        assert_eq!(named("threshold_bytes"), process.threshold.map(|t| t.bytes));
        assert_eq!(named("mremap_bytes"), Some(process.syscalls.mremap.bytes));
        assert_eq!(named("brk_calls"), Some(process.syscalls.brk.calls));
        assert_eq!(named("brk_shrunk_bytes"), Some(process.syscalls.brk_shrunk_bytes));
        assert_eq!(named("losses"), Some(0));
    }

    #[test]
    fn what_is_not_measured_is_absent_from_a_row() {
        // HONEST-1
        let figures = Figures::of(&sample::at_depth_syscall());
        assert_eq!((figures.get(field::CALLS), figures.get(field::CROSSINGS)), (None, None));
        assert!(figures.get(field::MMAP_CALLS).is_some());
    }
}
