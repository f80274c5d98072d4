//! Page faults of mapped chunks, simulated.

use malloc_common::chunk::{WATCH_NS, WATCHES};

use super::chunks::{LENGTH, OTHER, cross_at, resize, unmap};
use super::*;
use crate::aggregate::model::ChunkFaults;

fn counting(_: &RawImage) -> Facts {
    Facts { depth: Depth::Call, faults: true, ..Facts::default() }
}

fn faults(sim: &mut Sim) -> ChunkFaults {
    let told = Aggregate::new(KEEP).apply(&sim.collect(), Moment::default(), &counting);
    assert_eq!(told.processes.len(), 1, "{:?}", told.processes);
    told.processes[0].crossings.as_ref().and_then(|c| c.faults.clone()).expect("faults are counted")
}

fn pages(address: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |page| address + 4096 * page)
}

#[test]
fn every_fault_in_a_chunk_is_its_own_and_none_beside_it() {
    // FAULT-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    sim.touch(pages(MAPPED, 7)).touch([MAPPED - 1, MAPPED + LENGTH, OTHER, 0]).touch([MAPPED + LENGTH - 1]);
    unmap(&sim, MAPPED, LENGTH, 0);
    sim.touch([MAPPED]);
    let told = faults(&mut sim);
    assert_eq!((told.watched.calls, told.watched.bytes, told.taken), (1, LENGTH, 8));
    assert_eq!((told.churned, told.churned_taken), (1, 8));
    assert_eq!(told.total.map(|t| (t.faults, t.coverage_ppm)), Some((8, 1_000_000)));
}

#[test]
fn faults_of_another_process_at_the_same_address_are_not_the_chunks() {
    // FAULT-1 IDENT-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    sim.run(43, 43).touch(pages(MAPPED, 5));
    sim.run(42, 42).touch(pages(MAPPED, 2));
    assert_eq!(faults(&mut sim).taken, 2, "and a fault makes no process known");
}

#[test]
fn a_chunk_that_moves_is_watched_where_it_is() {
    // FAULT-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    sim.touch(pages(MAPPED, 3));
    resize(&sim, MAPPED, 2 * LENGTH, OTHER);
    sim.touch(pages(MAPPED, 10)).touch(pages(OTHER + LENGTH, 2));
    assert_eq!(faults(&mut sim).taken, 5, "still mapped, and counted so far");
    unmap(&sim, OTHER, 2 * LENGTH, 0);
    let told = faults(&mut sim);
    assert_eq!((told.taken, told.watched.bytes, told.per_chunk.len()), (5, 2 * LENGTH, 1));
}

#[test]
fn more_chunks_than_places_make_an_estimate_and_say_so() {
    // FAULT-1 HONEST-1 BOUND-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42);
    let addresses: Vec<u64> = (0..2 * WATCHES as u64).map(|n| MAPPED + n * 2 * LENGTH).collect();
    for address in &addresses {
        cross_at(&sim, *address);
    }
    for address in &addresses {
        sim.touch(pages(*address, 9));
        unmap(&sim, *address, LENGTH, 0);
    }
    let told = faults(&mut sim);
    let total = told.total.expect("half of them were watched");
    assert_eq!((told.watched.calls, told.taken), (4, 36));
    assert_eq!((total.faults, total.coverage_ppm, total.interval_95), (72, 500_000, (72, 72)));
}

#[test]
fn a_chunk_that_had_its_time_gives_its_place_to_the_next() {
    // FAULT-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42);
    for n in 0..WATCHES as u64 {
        cross_at(&sim, MAPPED + n * LENGTH);
        sim.touch(pages(MAPPED + n * LENGTH, 1));
    }
    cross_at(&sim, OTHER);
    sim.touch(pages(OTHER, 100)).wait(WATCH_NS);
    cross_at(&sim, OTHER + LENGTH);
    sim.touch(pages(OTHER + LENGTH, 5)).touch(pages(MAPPED, 3));
    unmap(&sim, OTHER + LENGTH, LENGTH, 0);
    unmap(&sim, MAPPED, LENGTH, 0);
    let told = faults(&mut sim);
    assert_eq!((told.watched.calls, told.taken), (5, 4 + 5), "the first with what it took in its time");
    assert_eq!((told.churned, told.churned_taken), (1, 5));
}

#[test]
fn faults_that_nobody_counts_are_not_zero() {
    // HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    sim.faults.set(false);
    cross_at(sim.run(42, 42), MAPPED);
    sim.touch(pages(MAPPED, 7));
    let process = only(&mut sim);
    assert_eq!(process.crossings.as_ref().map(|c| c.faults.is_none()), Some(true));
}
