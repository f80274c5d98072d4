//! The life of mapped chunks, simulated.

use malloc_common::chunk::CHURN_NS;

use super::*;
use crate::aggregate::model::{ChunkEnds, Crossings};

pub(super) const LENGTH: u64 = 1_052_672;
pub(super) const OTHER: u64 = 0x7e00_0000_0000;

pub(super) fn cross_at(sim: &Sim, address: u64) {
    sim.slow(Role::Sysmalloc, [LENGTH - 80, 0, 0]).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args(LENGTH), address).push(-8);
}

pub(super) fn unmap(sim: &Sim, address: u64, bytes: u64, result: u64) {
    sim.slow(Role::MunmapChunk, [address, 0, 0]).branch(Role::UnmapChunk, address);
    sim.syscall(Syscall::Munmap, [address, bytes, 0, 0, 0, 0], result).push(-8);
}

pub(super) fn resize(sim: &Sim, address: u64, bytes: u64, result: u64) {
    sim.branch(Role::RemapChunk, address);
    sim.syscall(Syscall::Mremap, [address, LENGTH, bytes, 1, 0, 0], result).push(-8);
}

fn crossings(sim: &mut Sim) -> Crossings {
    only(sim).crossings.clone().expect("crossings are measured")
}

fn ends(sim: &mut Sim) -> ChunkEnds {
    crossings(sim).ends.expect("their ends are measured")
}

#[test]
fn a_chunk_unmapped_within_a_second_is_churn_and_an_older_one_is_not() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    cross_at(&sim, OTHER);
    sim.wait(CHURN_NS / 2);
    unmap(&sim, MAPPED, LENGTH, 0);
    sim.wait(CHURN_NS);
    unmap(&sim, OTHER, LENGTH, 0);
    let held = crossings(&mut sim);
    assert_eq!(held.mmap_ns, 2_000, "two calls of a microsecond");
    let ends = held.ends.expect("measured");
    assert_eq!((ends.churned.calls, ends.churned.bytes, ends.ended()), (1, LENGTH, 2));
    assert_eq!((ends.munmap_ns, ends.mremap_ns, ends.birth_unknown), (2_000, 0, 0));
    let ages: Vec<_> = ends.lifetime_ns.iter().map(|b| (b.lo <= CHURN_NS, b.calls)).collect();
    assert_eq!(ages, [(true, 1), (false, 1)]);
}

#[test]
fn the_chunk_at_an_address_used_again_is_another_one() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    sim.wait(2 * CHURN_NS);
    unmap(&sim, MAPPED, LENGTH, 0);
    cross_at(&sim, MAPPED);
    unmap(&sim, MAPPED, LENGTH, 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.ended(), ends.churned.calls), (2, 1));
}

#[test]
fn a_thread_that_maps_where_another_is_just_unmapping_gets_a_birth_of_its_own() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42).start_thread(), MAPPED);
    sim.wait(2 * CHURN_NS);
    // The first thread's munmap is done in the kernel and has not returned when the second is given the address.
    sim.slow(Role::MunmapChunk, [MAPPED, 0, 0]).branch(Role::UnmapChunk, MAPPED);
    sim.enter(Syscall::Munmap, [MAPPED, LENGTH, 0, 0, 0, 0]);
    cross_at(sim.run(42, 43), MAPPED);
    sim.run(42, 42).leave(Syscall::Munmap, 0);
    unmap(sim.run(42, 43), MAPPED, LENGTH, 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.ended(), ends.churned.calls, ends.birth_unknown), (2, 1, 0));
}

#[test]
fn a_chunk_that_moves_keeps_its_birth() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    sim.wait(2 * CHURN_NS);
    resize(&sim, MAPPED, 2 * LENGTH, OTHER);
    unmap(&sim, OTHER, 2 * LENGTH, 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.ended(), ends.churned.calls, ends.birth_unknown), (1, 0, 0));
    assert_eq!((ends.mremap_ns, ends.munmap_ns), (1_000, 1_000));
}

#[test]
fn a_chunk_that_the_kernel_does_not_move_or_unmap_lives_on() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    resize(&sim, MAPPED, 2 * LENGTH, ENOMEM);
    unmap(&sim, MAPPED, LENGTH, ENOMEM);
    assert_eq!(ends(&mut sim).ended(), 0);
    unmap(&sim, MAPPED, LENGTH, 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.ended(), ends.birth_unknown), (1, 0));
}

#[test]
fn a_birth_that_was_not_seen_is_counted_apart() {
    // CHUNK-1 HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    unmap(sim.run(42, 42), MAPPED, LENGTH, 0);
    resize(&sim, OTHER, 2 * LENGTH, OTHER + LENGTH);
    unmap(&sim, OTHER + LENGTH, 2 * LENGTH, 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.birth_unknown, ends.ended(), ends.churned.calls), (2, 0, 0));
}

#[test]
fn the_programs_own_munmap_ends_no_chunk() {
    // CHUNK-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).syscall(Syscall::Munmap, [MAPPED, LENGTH, 0, 0, 0, 0], 0);
    let ends = ends(&mut sim);
    assert_eq!((ends.ended(), ends.birth_unknown, ends.munmap_ns), (0, 0, 0));
}

#[test]
fn a_forked_child_and_the_next_program_know_nothing_of_their_predecessors_chunks() {
    // CHUNK-1 IDENT-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    unmap(sim.fork(43), MAPPED, LENGTH, 0);
    sim.run(42, 42).exec();
    unmap(&sim, MAPPED, LENGTH, 0);
    let snapshot = snapshot(&mut sim);
    let told: Vec<_> = snapshot.processes.iter().map(|p| p.crossings.clone().expect("measured")).collect();
    let ended: Vec<_> = told.iter().filter_map(|c| c.ends.as_ref()).map(|e| (e.ended(), e.birth_unknown)).collect();
    assert_eq!(ended, [(0, 0), (0, 1), (0, 1)]);
}

#[test]
fn a_chunk_without_room_is_a_loss_of_its_process() {
    // LOSS-1 BOUND-1 CHUNK-1
    let mut sim = Sim::new(Room { chunks: 1, ..Room::default() }, None);
    cross_at(sim.run(42, 42), MAPPED);
    cross_at(&sim, OTHER);
    unmap(&sim, OTHER, LENGTH, 0);
    unmap(&sim, MAPPED, LENGTH, 0);
    let process = only(&mut sim);
    assert_eq!(process.losses, [(LossReason::Kernel(Loss::ChunkTableFull), 1)]);
    let ends = process.crossings.as_ref().and_then(|c| c.ends.clone()).expect("measured");
    assert_eq!((ends.ended(), ends.birth_unknown), (1, 1));
    assert!(!process.complete);
}

#[test]
fn chunks_of_processes_that_ended_leave_their_room_to_others() {
    // BOUND-1
    let mut sim = Sim::new(Room { chunks: 2, ..Room::default() }, None);
    for pid in 1..=10 {
        cross_at(sim.run(pid, pid), MAPPED);
        cross_at(sim.exec(), MAPPED + LENGTH);
        sim.exit();
        let told = snapshot(&mut sim);
        assert!(told.complete, "process {pid}: {:?}", told.losses);
    }
}

#[test]
fn what_no_probe_tells_has_no_lifetime() {
    // HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    cross_at(sim.run(42, 42), MAPPED);
    let facts = |_: &RawImage| Facts { depth: Depth::Call, untold: vec![Origin::MunmapChunk], ..Facts::default() };
    let told = Aggregate::new(KEEP).apply(&sim.collect(), Moment::default(), &facts);
    let held = told.processes[0].crossings.as_ref().expect("crossings are told");
    assert_eq!((held.count.calls, held.ends.as_ref()), (1, None));
}
