//! Images of which nothing new is known are not made again, and nothing new is missed by that.

use super::*;
use crate::aggregate::{Knowledge, Stamp};
use crate::collect::RawSnapshot;

const SECOND: u64 = 1_000_000_000;

#[test]
fn an_idle_process_is_made_once_and_what_it_counts_or_becomes_known_for_shows_at_once() {
    let mut sim = Sim::new(Room::default(), None);
    let mut aggregate = Aggregate::new(Keep { unchanged_ns: 10 * SECOND, ..KEEP });
    let mut later = |sim: &mut Sim, ns: u64, facts: &Facts| {
        let raw = RawSnapshot { now_ns: SECOND + ns, ..sim.collect() };
        Arc::clone(&aggregate.apply(&raw, Moment::default(), &|_: &RawImage| facts.clone()).processes[0])
    };
    sim.run(42, 42).call(Malloc, [5, 0, 0]);
    let call = Facts { depth: Depth::Call, ..Facts::default() };
    let first = later(&mut sim, 0, &call);
    let second = later(&mut sim, SECOND, &call);
    assert!(Arc::ptr_eq(&first, &second), "nothing was counted");
    sim.run(42, 42).call(Malloc, [6, 0, 0]);
    let third = later(&mut sim, 2 * SECOND, &call);
    assert_eq!((counted(&third, Malloc), third.observed_ms - first.observed_ms), ((2, 11, 0), 2000));
    let named = Facts { comm: Some("renamed".to_owned()), ..call.clone() };
    assert_eq!(later(&mut sim, 3 * SECOND, &named).comm, "renamed");
    let old = later(&mut sim, 4 * SECOND, &named);
    let anew = later(&mut sim, 14 * SECOND, &named);
    assert_eq!(anew.observed_ms - third.observed_ms, 12_000, "made anew after ten seconds");
    assert!(!Arc::ptr_eq(&old, &anew));
}

/// Knows a name, and says by its stamp which one.
struct Named(&'static str, std::cell::Cell<u32>);

impl Knowledge for Named {
    fn stamp(&self, _row: &RawImage) -> Option<Stamp> {
        Some([self.0.len() as u64; 6])
    }

    fn facts(&self, _row: &RawImage) -> Facts {
        self.1.set(self.1.get() + 1);
        Facts { comm: Some(self.0.to_owned()), ..Facts::default() }
    }
}

#[test]
fn what_is_known_of_an_idle_process_is_asked_for_when_its_stamp_is_another_one() {
    let mut sim = Sim::new(Room::default(), None);
    let mut aggregate = Aggregate::new(Keep { unchanged_ns: 10 * SECOND, ..KEEP });
    sim.run(42, 42).call(Malloc, [5, 0, 0]);
    let mut later = |ns: u64, named: &Named| {
        let raw = RawSnapshot { now_ns: SECOND + ns, ..sim.collect() };
        aggregate.apply(&raw, Moment::default(), named).processes[0].comm.clone()
    };
    let short = Named("a", std::cell::Cell::new(0));
    assert_eq!((later(0, &short), later(SECOND, &short), later(2 * SECOND, &short)).2, "a");
    assert_eq!(short.1.get(), 1, "its stamp stayed the same");
    let long = Named("long", std::cell::Cell::new(0));
    assert_eq!((later(3 * SECOND, &long), long.1.get()), ("long".to_owned(), 1));
    assert_eq!((later(14 * SECOND, &long), long.1.get()), ("long".to_owned(), 2), "made anew after ten seconds");
}
