//! Mapped chunks without a probe on the way to `mmap` and `munmap`, simulated.

use super::chunks::{LENGTH, OTHER};
use super::*;

const ARENA: u64 = 0x5500;
/// `nb` of a request that is mapped in a chunk of [`LENGTH`].
const NB: u64 = LENGTH - 80;

/// A process whose threshold is that of the beginning.
fn started() -> Sim {
    let sim = Sim::new(Room::default(), None);
    sim.run(42, 42).set_mp(mp(131_072, 0)).slow(Role::Sysmalloc, [64, ARENA, 0]);
    sim
}

fn map(sim: &Sim, bytes: u64, result: u64) {
    sim.push(176).syscall(Syscall::Mmap, map_args(bytes), result).push(-176);
}

fn unmap(sim: &Sim, address: u64, bytes: u64) {
    sim.push(16).syscall(Syscall::Munmap, [address, bytes, 0, 0, 0, 0], 0).push(-16);
}

fn origins(sim: &mut Sim) -> [u64; 5] {
    let process = only(sim);
    [Origin::MmapCrossing, Origin::MmapFallback, Origin::MmapOther, Origin::MunmapChunk, Origin::MunmapOther]
        .map(|origin| by_origin(&process, origin))
}

/// The first words of a chunk as glibc leaves them.
fn write_chunk(sim: &Sim, at: u64, before: u64, size: u64) {
    sim.words.borrow_mut().extend([(at, before), (at + 8, size)]);
}

#[test]
fn a_request_that_reaches_the_threshold_is_a_crossing() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [131_072, ARENA, 0]);
    map(&sim, 135_168, MAPPED);
    // Its own mapping from the same depth: nothing is expected any more.
    map(&sim, 135_168, OTHER);
    assert_eq!(origins(&mut sim), [1, 0, 1, 0, 0]);
    assert_eq!(only(&mut sim).crossings.as_ref().map(|c| c.count.bytes), Some(135_168));
}

#[test]
fn a_threshold_of_nothing_is_reached_by_everything_and_one_not_read_by_nothing() {
    // CROSS-1
    let mut sim = started();
    sim.set_mp(mp(0, 1)).slow(Role::Sysmalloc, [64, ARENA, 0]);
    map(&sim, 4096, MAPPED);
    sim.at(Cookie::new(Role::Sysmalloc), [NB, ARENA, 0]);
    map(&sim, LENGTH, OTHER);
    assert_eq!(origins(&mut sim), [1, 0, 1, 0, 0]);
}

#[test]
fn a_request_below_the_threshold_or_one_chunk_too_many_is_none() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [131_056, ARENA, 0]);
    map(&sim, 135_168, MAPPED);
    sim.set_mp(Mp { most_chunks: 1, ..mp(131_072, 1) }).slow(Role::Sysmalloc, [NB, ARENA, 0]);
    map(&sim, LENGTH, OTHER);
    assert_eq!(origins(&mut sim), [0, 0, 2, 0, 0]);
}

#[test]
fn what_cannot_be_the_chunk_that_is_expected_is_not_it() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [NB, ARENA, 0]);
    map(&sim, NB - 4096, MAPPED);
    sim.push(176).syscall(Syscall::Mmap, [0, LENGTH, 1, 2, 3, 0], MAPPED).push(-176);
    // A signal handler stands lower.
    sim.push(1100).syscall(Syscall::Mmap, map_args(LENGTH), MAPPED).push(-1100);
    map(&sim, LENGTH, OTHER);
    assert_eq!(origins(&mut sim), [1, 0, 2, 0, 0]);
}

#[test]
fn without_an_arena_every_request_is_mapped_and_only_a_large_one_crosses() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [64, 0, 0]);
    map(&sim, 4096, MAPPED);
    sim.slow(Role::Sysmalloc, [NB, 0, 0]);
    map(&sim, LENGTH, OTHER);
    assert_eq!(origins(&mut sim), [1, 1, 0, 0, 0]);
}

#[test]
fn what_no_heap_can_hold_is_mapped_below_the_threshold() {
    // CROSS-1
    let mut sim = started();
    sim.set_mp(mp(1 << 30, 1)).slow(Role::Sysmalloc, [100 << 20, ARENA, 0]);
    map(&sim, (100 << 20) + 4096, MAPPED);
    // The main arena grows.
    sim.slow(Role::Sysmalloc, [100 << 20, ARENA, 0]).branch(Role::Grow, 100 << 20);
    sim.syscall(Syscall::Brk, [0x6000_0000, 0, 0, 0, 0, 0], 0x6000_0000).push(-8);
    map(&sim, (100 << 20) + 4096, OTHER);
    // Heaps of huge pages are smaller.
    sim.set_mp(Mp { largest_heap: largest_heap(2 << 20), ..mp(1 << 30, 1) });
    sim.slow(Role::Sysmalloc, [9 << 20, ARENA, 0]);
    map(&sim, (9 << 20) + 4096, OTHER);
    assert_eq!(origins(&mut sim), [0, 2, 1, 0, 0]);
}

#[test]
fn plain_pages_after_huge_ones_that_were_refused_are_the_same_crossing() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [4 << 20, ARENA, 0]);
    map(&sim, 6 << 20, ENOMEM);
    map(&sim, (4 << 20) + 4096, MAPPED);
    assert_eq!(origins(&mut sim), [1, 0, 0, 0, 0]);
    assert_eq!(only(&mut sim).syscalls.mmap.failed, 1);
}

#[test]
fn a_mapping_after_a_brk_or_a_heap_that_failed_is_the_fallback() {
    // CROSS-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [4112, ARENA, 0]).branch(Role::Grow, 135_168);
    sim.syscall(Syscall::Brk, [0x6000_0000, 0, 0, 0, 0, 0], 0x5000_0000).push(-8);
    map(&sim, 1 << 20, MAPPED);
    sim.slow(Role::Sysmalloc, [4112, ARENA, 0]).push(200).branch(Role::MapHeap, 0);
    sim.syscall(Syscall::Mmap, map_args(64 << 20), ENOMEM).push(-208);
    map(&sim, 8192, OTHER);
    assert_eq!(origins(&mut sim), [0, 2, 0, 0, 0]);
}

#[test]
fn a_heap_that_fails_outside_of_sysmalloc_leads_to_no_chunk() {
    // CROSS-1
    let mut sim = started();
    // The arena of a new thread is made below other frames.
    sim.push(2000).branch(Role::MapHeap, 0).syscall(Syscall::Mmap, map_args(64 << 20), ENOMEM).push(-2008);
    map(&sim, 8192, MAPPED);
    assert_eq!(origins(&mut sim), [0, 0, 1, 0, 0]);
}

#[test]
fn a_chunk_is_given_back_by_who_unmaps_it_whole() {
    // CHUNK-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [NB, ARENA, 0]);
    map(&sim, LENGTH, MAPPED);
    unmap(&sim, MAPPED + 4096, LENGTH - 4096);
    unmap(&sim, MAPPED, 4096);
    assert_eq!(origins(&mut sim), [1, 0, 0, 0, 2], "parts of it are the program's doing");
    unmap(&sim, MAPPED, LENGTH);
    assert_eq!(origins(&mut sim), [1, 0, 0, 1, 2]);
    // What lies there now is another's.
    unmap(&sim, MAPPED, LENGTH);
    assert_eq!(origins(&mut sim), [1, 0, 0, 1, 3]);
    assert_eq!(only(&mut sim).crossings.as_ref().and_then(|c| c.ends.as_ref()).map(|ends| ends.birth_unknown), Some(0));
}

#[test]
fn a_chunk_whose_birth_was_not_seen_is_known_by_its_first_words() {
    // CHUNK-1
    let mut sim = started();
    write_chunk(&sim, MAPPED, 0, LENGTH | 2);
    unmap(&sim, MAPPED, LENGTH);
    // From 2.43 on: the size without the two words, and a bit for huge pages.
    write_chunk(&sim, OTHER, 1, (LENGTH - 16) | 2);
    unmap(&sim, OTHER, LENGTH);
    assert_eq!(origins(&mut sim), [0, 0, 0, 2, 0]);
    let strange = [(0, LENGTH | 1), (0, LENGTH), (0, (LENGTH - 8) | 2), (64, LENGTH | 2), (0, 2)];
    for (before, size) in strange {
        write_chunk(&sim, OTHER, before, size);
        unmap(&sim, OTHER, LENGTH);
    }
    assert_eq!(origins(&mut sim), [0, 0, 0, 2, 5]);
    assert_eq!(only(&mut sim).crossings.as_ref().and_then(|c| c.ends.as_ref()).map(|ends| ends.birth_unknown), Some(2));
}

#[test]
fn a_free_that_raises_the_threshold_is_seen_at_its_munmap() {
    // THRESH-1
    let mut sim = started();
    for (moved_up, from, to) in [(0, 131_072, LENGTH), (4080, LENGTH, 2 * LENGTH - 4080)] {
        let bytes = to + moved_up;
        sim.slow(Role::Sysmalloc, [bytes - 80, ARENA, 0]);
        map(&sim, bytes, MAPPED);
        write_chunk(&sim, MAPPED + moved_up, moved_up, to | 2);
        sim.set_mp(mp(to, 0));
        unmap(&sim, MAPPED, bytes);
        let raise = sim.events.borrow().iter().rev().find(|event| event.kind == EVENT_RAISE).expect("a raise").values;
        assert_eq!(raise[..4], [from, to, to, MAPPED + moved_up], "from, to, the chunk that did it, and where");
        sim.slow(Role::Sysmalloc, [64, ARENA, 0]);
    }
    assert_eq!(only(&mut sim).threshold.map(|t| (t.bytes, t.raises)), Some((2 * LENGTH - 4080, 2)));
}

#[test]
fn a_munmap_of_another_chunk_sees_a_raise_and_not_its_cause() {
    // THRESH-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [NB, ARENA, 0]);
    map(&sim, LENGTH, MAPPED);
    write_chunk(&sim, MAPPED, 0, LENGTH | 2);
    sim.set_mp(mp(3 * LENGTH, 0));
    unmap(&sim, MAPPED, LENGTH);
    let raise = sim.events.borrow().iter().find(|event| event.kind == EVENT_RAISE).expect("a raise").values;
    assert_eq!(raise[..4], [131_072, 3 * LENGTH, 0, 0]);
    assert_eq!(only(&mut sim).threshold.map(|t| t.raises), Some(1));
}

#[test]
fn a_raise_that_a_static_probe_is_about_to_tell_is_left_to_it() {
    // THRESH-1
    let mut sim = Sim::new(Room::default(), None);
    let word = PtRegsWord::x86_64(0).expect("rax");
    let told = |role| Cookie::new(role).with_mp(MpLayout::From235, 64).with_raises_told();
    sim.run(42, 42).set_mp(mp(131_072, 0)).at(told(Role::Sysmalloc), [NB, ARENA, 0]);
    map(&sim, LENGTH, MAPPED);
    // Another thread has stored the new threshold and not reached its probe.
    sim.set_mp(Mp { mmapped_chunks: 7, ..mp(2 * LENGTH, 0) });
    unmap(&sim, MAPPED, LENGTH);
    assert_eq!(only(&mut sim).threshold.map(|t| (t.bytes, t.raises)), Some((131_072, 0)));
    sim.user_registers.borrow_mut().insert(word.offset(), 2 * LENGTH);
    sim.at(told(Role::Raise).with_word(word), [0; 3]);
    assert_eq!(only(&mut sim).threshold.map(|t| (t.bytes, t.raises)), Some((2 * LENGTH, 1)));
    // A threshold that stands: the other fields are read.
    write_chunk(&sim, OTHER, 0, LENGTH | 2);
    unmap(&sim, OTHER, LENGTH);
    assert_eq!(only(&mut sim).threshold.map(|t| (t.mmapped_chunks, t.raises)), Some((7, 1)));
}

#[test]
fn a_child_sees_the_raise_by_a_chunk_that_it_was_forked_with() {
    // THRESH-1
    let mut sim = started();
    sim.slow(Role::Sysmalloc, [NB, ARENA, 0]);
    map(&sim, LENGTH, MAPPED);
    write_chunk(&sim, MAPPED, 0, LENGTH | 2);
    sim.fork(43).set_mp(mp(LENGTH, 0));
    unmap(&sim, MAPPED, LENGTH);
    let raises: Vec<_> = snapshot(&mut sim).processes.iter().map(|p| p.threshold.map(|t| t.raises)).collect();
    assert_eq!(raises, [Some(0), Some(1)]);
}
