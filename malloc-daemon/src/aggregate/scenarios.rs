//! What the tracker and the aggregation make of things that happen: the same code as in the kernel, simulated.

use std::sync::Arc;

use malloc_common::abi::{CHAIN_HAS_CALL, EVENT_CHAIN, EVENT_MAPPED, EVENT_RAISE, EVENT_SYSCALL, Origin, Syscall};
use malloc_common::depth::Depth;
use malloc_common::function::Function::{self, Calloc, Free, Malloc, PosixMemalign, Realloc};
use malloc_common::loss::Loss;
use malloc_common::site::{Cookie, HeapEvent, MpLayout, PtRegsWord, Role, largest_heap};
use malloc_common::tracker::Mp;
use proptest::prelude::*;

use super::model::{End, LossReason, Process, Snapshot, ThresholdMode};
use super::{Aggregate, Facts, Keep, Moment};
use crate::collect::sim::{Room, Sim};
use crate::collect::{Collector, RawImage};

mod chunks;
mod faults;
mod killed;
mod spared;
mod unchanged;

const KEEP: Keep =
    Keep { ended_ns: u64::MAX, ended_images: 64, killed_ns: u64::MAX, killed_images: 64, unchanged_ns: 0 };
/// `mmap(NULL, len, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)`
const fn map_args(len: u64) -> [u64; 6] {
    [0, len, 3, 34, u64::MAX, 0]
}
const MAPPED: u64 = 0x7f00_0000_0000;
const ENOMEM: u64 = (-12i64) as u64;

fn at_depth(depth: Depth) -> impl Fn(&RawImage) -> Facts {
    move |_| Facts { depth, ..Facts::default() }
}

fn snapshot(sim: &mut Sim) -> Snapshot {
    Aggregate::new(KEEP).apply(&sim.collect(), Moment::default(), &at_depth(Depth::Call))
}

fn only(sim: &mut Sim) -> Arc<Process> {
    let snapshot = snapshot(sim);
    assert_eq!(snapshot.processes.len(), 1, "{:?}", snapshot.processes);
    Arc::clone(&snapshot.processes[0])
}

fn counted(process: &Process, function: Function) -> (u64, u64, u64) {
    let held = process.functions.as_ref().expect("calls are measured").iter().find(|f| f.function == function);
    held.map_or((0, 0, 0), |f| (f.calls, f.bytes.unwrap_or(0), f.failed.unwrap_or(0)))
}

fn by_origin(process: &Process, origin: Origin) -> u64 {
    let all = &process.syscalls;
    let held = [&all.mmap, &all.munmap, &all.mremap, &all.brk]
        .into_iter()
        .flat_map(|s| &s.by_origin)
        .find(|(o, _)| *o == origin)
        .and_then(|(_, count)| *count);
    held.expect("every origin is told").calls
}

fn mp(threshold: u64, pinned: u32) -> Mp {
    let largest_heap = largest_heap(0);
    let held = Mp { mmapped_chunks: 1, mmapped_bytes: 4096, most_chunks: 65_536, largest_heap, ..Mp::default() };
    Mp { threshold, trim_threshold: 2 * threshold, pinned, ..held }
}

#[test]
fn a_call_is_counted_once_with_its_bytes() {
    // COUNT-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42)
        .call(Malloc, [100, 0, 0])
        .call(Calloc, [10, 20, 0])
        .call(Free, [MAPPED, 0, 0])
        .call(Free, [0, 0, 0]);
    let process = only(&mut sim);
    assert_eq!(counted(&process, Malloc), (1, 100, 0));
    assert_eq!(counted(&process, Calloc), (1, 200, 0));
    assert_eq!(counted(&process, Free), (1, 0, 0), "free(NULL) is no call");
    assert_eq!(process.funnel.call.map(|c| (c.calls, c.bytes)), Some((2, 300)));
}

#[test]
fn realloc_that_tail_jumps_into_malloc_is_one_realloc() {
    // COUNT-2
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).call(Realloc, [0, 100, 0]).transfer(Malloc, [100, 0, 0]);
    let process = only(&mut sim);
    assert_eq!(counted(&process, Realloc), (1, 100, 0));
    assert_eq!(counted(&process, Malloc), (0, 0, 0));
    assert_eq!(process.functions.as_ref().map(Vec::len), Some(1));
}

#[test]
fn realloc_to_nothing_is_one_realloc_and_no_free() {
    // COUNT-2
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).call(Realloc, [MAPPED, 0, 0]).transfer(Free, [MAPPED, 0, 0]).call(Free, [MAPPED, 0, 0]);
    let process = only(&mut sim);
    assert_eq!(counted(&process, Realloc), (1, 0, 0));
    assert_eq!(counted(&process, Free), (1, 0, 0), "the one that the program made");
}

#[test]
fn a_call_that_cannot_succeed_changes_the_failure_count_alone() {
    // COUNT-3
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42)
        .call(Malloc, [i64::MAX as u64, 0, 0])
        .call(PosixMemalign, [0x1000, 24, 64])
        .call(Realloc, [0, u64::MAX, 0])
        .transfer(Malloc, [u64::MAX, 0, 0]);
    let process = only(&mut sim);
    assert_eq!(counted(&process, Malloc), (0, 0, 1), "the transfer's failure is not the program's");
    assert_eq!(counted(&process, PosixMemalign), (0, 0, 1));
    assert_eq!(counted(&process, Realloc), (0, 0, 1));
    assert_eq!(process.funnel.call.map(|c| (c.calls, c.bytes)), Some((0, 0)));
}

#[test]
fn a_signal_handler_that_allocates_inside_malloc_is_a_call_of_its_own() {
    // COUNT-2
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).call(Malloc, [100, 0, 0]).arena(100).push(2000).call(Malloc, [7, 0, 0]).push(-2000).arena(100);
    assert_eq!(counted(&only(&mut sim), Malloc), (2, 107, 0));
}

#[test]
fn longjmp_out_of_an_allocation_leaves_nothing_behind() {
    let mut sim = Sim::new(Room::default(), None);
    // The branch was taken and a signal handler jumped away before the system call entered.
    sim.run(42, 42).call(Malloc, [1 << 20, 0, 0]).slow(Role::Sysmalloc, [1 << 20, 0, 0]).branch(Role::MapChunk, 0);
    sim.push(-4096).call(Malloc, [64, 0, 0]).syscall(Syscall::Mmap, map_args(8192), MAPPED);
    let process = only(&mut sim);
    assert_eq!(counted(&process, Malloc), (2, (1 << 20) + 64, 0));
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 0, "the program's own mmap stands higher on the stack");
    assert_eq!(by_origin(&process, Origin::MmapOther), 1);
}

#[test]
fn a_crossing_is_a_chunk_that_malloc_mapped() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).set_mp(mp(131_072, 0)).slow(Role::Sysmalloc, [1_048_592, 0, 0]).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args(1_052_672), MAPPED);
    let process = only(&mut sim);
    let crossings = process.crossings.as_ref().expect("measured");
    assert_eq!((crossings.count.calls, crossings.count.bytes), (1, 1_052_672));
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 1);
    assert_eq!(process.funnel.mmap.map(|c| c.bytes), Some(1_052_672));
}

#[test]
fn an_mmap_of_the_same_length_by_the_program_is_no_crossing() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [1_048_592, 0, 0]).push(64);
    sim.syscall(Syscall::Mmap, map_args(1_052_672), MAPPED);
    let process = only(&mut sim);
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 0);
    assert_eq!(by_origin(&process, Origin::MmapOther), 1);
}

#[test]
fn a_crossing_that_the_kernel_refuses_is_a_failed_mmap_and_no_crossing() {
    // CROSS-1 COUNT-3
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [1 << 40, 0, 0]).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args(1 << 40), ENOMEM);
    let process = only(&mut sim);
    assert_eq!(process.crossings.as_ref().map(|c| c.count.calls), Some(0));
    assert_eq!((process.syscalls.mmap.calls, process.syscalls.mmap.failed, process.syscalls.mmap.bytes), (1, 1, 0));
}

#[test]
fn the_mapping_after_a_brk_that_failed_is_the_fallback() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [4112, 0, 0]).branch(Role::Grow, 135_168);
    sim.syscall(Syscall::Brk, [0x6000_0000, 0, 0, 0, 0, 0], 0x5000_0000).push(-8);
    sim.branch(Role::MapChunk, 0).syscall(Syscall::Mmap, map_args(1 << 20), MAPPED);
    let process = only(&mut sim);
    assert_eq!(by_origin(&process, Origin::MmapFallback), 1);
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 0);
    assert_eq!((process.syscalls.brk.calls, process.syscalls.brk.failed), (1, 1));
}

#[test]
fn the_next_sysmalloc_forgets_the_brk_that_failed() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [4112, 0, 0]).branch(Role::Grow, 135_168);
    sim.syscall(Syscall::Brk, [0x6000_0000, 0, 0, 0, 0, 0], 0x5000_0000).push(-8);
    sim.slow(Role::Sysmalloc, [1 << 20, 0, 0]).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args((1 << 20) + 4096), MAPPED);
    assert_eq!(by_origin(&only(&mut sim), Origin::MmapCrossing), 1);
}

#[test]
fn a_chunk_mapped_below_the_threshold_is_no_crossing() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).set_mp(mp(131_072, 0)).slow(Role::Sysmalloc, [4112, 0, 0]).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args(8192), MAPPED);
    let process = only(&mut sim);
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 0);
    assert_eq!(by_origin(&process, Origin::MmapFallback), 1);
}

#[test]
fn a_signal_handler_between_branch_and_system_call_does_not_take_its_place() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [1 << 20, 0, 0]).branch(Role::MapChunk, 0);
    sim.push(1200).syscall(Syscall::Mmap, map_args(4096), MAPPED).push(-1200);
    sim.syscall(Syscall::Mmap, map_args((1 << 20) + 4096), MAPPED);
    let process = only(&mut sim);
    assert_eq!(by_origin(&process, Origin::MmapOther), 1);
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 1);
    assert_eq!(process.crossings.as_ref().map(|c| c.count.bytes), Some((1 << 20) + 4096));
}

#[test]
fn the_break_grows_and_shrinks_by_what_it_moved() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).syscall(Syscall::Brk, [0; 6], 0x1000_0000);
    sim.slow(Role::Sysmalloc, [64, 0, 0]).branch(Role::Grow, 0x21000);
    sim.syscall(Syscall::Brk, [0x1002_1000, 0, 0, 0, 0, 0], 0x1002_1000).push(-8);
    sim.slow(Role::Systrim, [0, 0, 0]).branch(Role::Trim, (-0x1000i64) as u64);
    sim.syscall(Syscall::Brk, [0x1002_0000, 0, 0, 0, 0, 0], 0x1002_0000);
    let process = only(&mut sim);
    assert_eq!((process.syscalls.brk_grown_bytes, process.syscalls.brk_shrunk_bytes), (0x21000, 0x1000));
    assert_eq!(by_origin(&process, Origin::BrkGrowth), 1);
    assert_eq!(by_origin(&process, Origin::BrkTrim), 1);
    assert_eq!(by_origin(&process, Origin::BrkOther), 1, "the query");
    assert_eq!(process.funnel.brk.map(|c| (c.calls, c.bytes)), Some((1, 0x21000)));
}

#[test]
fn the_query_before_the_first_growth_is_not_the_growth() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [656, 0, 0]).branch(Role::Grow, 0x21000);
    sim.syscall(Syscall::Brk, [0; 6], 0x1000_0000);
    sim.syscall(Syscall::Brk, [0x1002_1000, 0, 0, 0, 0, 0], 0x1002_1000);
    let process = only(&mut sim);
    assert_eq!(process.funnel.brk.map(|c| (c.calls, c.bytes)), Some((1, 0x21000)));
    assert_eq!(by_origin(&process, Origin::BrkOther), 1);
}

#[test]
fn files_and_thread_stacks_are_told_by_their_arguments() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).syscall(Syscall::Mmap, [0, 4096, 1, 2, 3, 0], MAPPED);
    sim.syscall(Syscall::Mmap, [0, 8 << 20, 0, 0x2_0022, u64::MAX, 0], MAPPED);
    let process = only(&mut sim);
    assert_eq!(by_origin(&process, Origin::MmapFile), 1);
    assert_eq!(by_origin(&process, Origin::MmapThreadStack), 1);
}

#[test]
fn code_of_a_file_that_comes_into_a_process_is_told() {
    let (read, read_exec, private, anonymous) = (1, 5, 2, 0x20);
    let sim = Sim::new(Room::default(), None);
    sim.run(1, 1);
    for (prot, flags, result) in
        [(read, private, 0x7000), (read_exec, private | anonymous, 0x8000), (read_exec, private, -12i64 as u64)]
    {
        sim.syscall(Syscall::Mmap, [0, 4096, prot, flags, 3, 0], result);
    }
    assert!(sim.events.borrow().iter().all(|event| event.kind != EVENT_MAPPED), "no code, no file, no mapping");
    sim.syscall(Syscall::Mmap, [0, 4096, read_exec, private, 3, 0], 0x9000);
    let told: Vec<_> = sim.events.borrow().iter().copied().filter(|event| event.kind == EVENT_MAPPED).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].tgid, 1);
    assert_eq!(told[0].values[..3], [0x9000, 4096, 0], "address, bytes, offset");
}

#[test]
fn a_threshold_that_rises_is_a_raise_unless_it_was_pinned() {
    // THRESH-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).set_mp(mp(131_072, 0)).slow(Role::Sysmalloc, [64, 0, 0]);
    sim.set_mp(mp(1_052_672, 0)).slow(Role::MunmapChunk, [MAPPED, 0, 0]).slow(Role::Sysmalloc, [64, 0, 0]);
    let threshold = only(&mut sim).threshold.expect("it was read");
    assert_eq!((threshold.bytes, threshold.raises, threshold.mode), (1_052_672, 1, ThresholdMode::Dynamic));
    sim.run(43, 43).set_mp(mp(131_072, 1)).slow(Role::Sysmalloc, [64, 0, 0]).set_mp(mp(1 << 20, 1));
    sim.slow(Role::Sysmalloc, [64, 0, 0]);
    let pinned = snapshot(&mut sim).processes[1].threshold.expect("it was read");
    assert_eq!((pinned.raises, pinned.mode), (0, ThresholdMode::Pinned));
}

#[test]
fn a_raise_that_a_static_probe_tells_counts_once() {
    // THRESH-1
    let mut sim = Sim::new(Room::default(), None);
    let word = PtRegsWord::x86_64(0).expect("rax");
    let told = |role| Cookie::new(role).with_mp(MpLayout::From243, 64).with_raises_told();
    sim.run(42, 42).set_mp(mp(131_072, 0)).at(told(Role::Sysmalloc), [64, 0, 0]);
    // The stores to mp_ may come after the probe: another thread still reads the old threshold, then the new one.
    sim.user_registers.borrow_mut().insert(word.offset(), 1_052_672);
    sim.at(told(Role::Raise).with_word(word), [0; 3]).at(told(Role::Sysmalloc), [64, 0, 0]);
    sim.set_mp(mp(1_052_672, 0)).at(told(Role::MunmapChunk), [MAPPED, 0, 0]).at(told(Role::Sysmalloc), [64, 0, 0]);
    let raised: Vec<_> =
        sim.events.borrow().iter().filter(|event| event.kind == EVENT_RAISE).map(|event| event.values).collect();
    assert_eq!(raised.len(), 1);
    assert_eq!(raised[0][..3], [131_072, 1_052_672, 1_052_672], "from, to, and the chunk that did it");
    let threshold = only(&mut sim).threshold.expect("it was read");
    assert_eq!((threshold.bytes, threshold.trim_bytes, threshold.raises), (1_052_672, 2 * 1_052_672, 1));
    // Another chunk of just that size: glibc sets what it has, and the probe is passed.
    sim.at(told(Role::Raise).with_word(word), [0; 3]);
    assert_eq!(only(&mut sim).threshold.map(|threshold| threshold.raises), Some(1));
}

#[test]
fn a_child_raises_the_threshold_from_where_its_parent_had_it() {
    // THRESH-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).set_mp(mp(1_052_672, 0)).slow(Role::Sysmalloc, [64, 0, 0]);
    // Its first event is the free of a larger chunk that it was forked with.
    sim.fork(43).set_mp(mp(2_101_248, 0)).slow(Role::MunmapChunk, [MAPPED, 0, 0]);
    sim.run(42, 42).fork(44).slow(Role::MunmapChunk, [MAPPED, 0, 0]);
    sim.run(42, 42).fork(45).exec().set_mp(mp(2_101_248, 0)).slow(Role::Sysmalloc, [64, 0, 0]);
    let snapshot = snapshot(&mut sim);
    let raises: Vec<_> = snapshot.processes.iter().map(|process| process.threshold.map(|read| read.raises)).collect();
    assert_eq!(raises, [Some(0), Some(1), Some(0), Some(0)], "another program begins anew");
    let raised = sim.events.borrow().iter().find(|event| event.kind == EVENT_RAISE).expect("a raise").values;
    assert_eq!(raised[..2], [1_052_672, 2_101_248]);
}

#[test]
fn a_raise_whose_register_cannot_be_read_is_none() {
    // HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42)
        .at(Cookie::new(Role::Raise), [1 << 20, 0, 0])
        .at(Cookie::new(Role::Told(HeapEvent::SbrkMore)), [0; 3]);
    assert_eq!(only(&mut sim).threshold, None);
    assert!(sim.events.borrow().is_empty());
}

#[test]
fn what_static_probes_tell_is_counted_by_event_and_null_where_there_is_none() {
    // HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    let told = |event| Cookie::new(Role::Told(event));
    sim.run(42, 42).at(told(HeapEvent::ArenaMade), [0; 3]).at(told(HeapEvent::CallRetried), [0; 3]);
    sim.at(told(HeapEvent::CallRetried), [0; 3]);
    let rows = sim.collect();
    let events = |told: Vec<HeapEvent>| {
        let facts = |_: &RawImage| Facts { depth: Depth::Sysmalloc, told: told.clone(), ..Facts::default() };
        let snapshot = Aggregate::new(KEEP).apply(&rows, Moment::default(), &facts);
        snapshot.processes[0].heap_events.clone()
    };
    assert_eq!(events(Vec::new()), None);
    let held = events(vec![HeapEvent::ArenaMade, HeapEvent::CallRetried, HeapEvent::HeapMade]).expect("it has some");
    let of = |event| held.iter().find(|(other, _)| *other == event).and_then(|(_, count)| *count);
    assert_eq!(
        (of(HeapEvent::ArenaMade), of(HeapEvent::CallRetried), of(HeapEvent::HeapMade)),
        (Some(1), Some(2), Some(0))
    );
    assert_eq!(of(HeapEvent::ArenaReused), None);
}

#[test]
fn nb_is_read_where_an_inlined_sysmalloc_has_it() {
    // CROSS-1
    let mut sim = Sim::new(Room::default(), None);
    let word = PtRegsWord::x86_64(3).expect("rbx");
    sim.user_registers.borrow_mut().insert(word.offset(), 1_048_592);
    sim.run(42, 42).set_mp(mp(131_072, 0));
    sim.at(Cookie::new(Role::Sysmalloc).with_mp(MpLayout::From235, 64).with_word(word), [7, 7, 7]);
    sim.branch(Role::MapChunk, 0).syscall(Syscall::Mmap, map_args(1_052_672), MAPPED);
    let process = only(&mut sim);
    assert_eq!(process.funnel.sysmalloc.expect("measured").bytes, 1_048_592);
    assert_eq!(by_origin(&process, Origin::MmapCrossing), 1);
}

#[test]
fn the_same_thread_id_in_another_process_has_a_state_of_its_own() {
    // IDENT-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).slow(Role::Sysmalloc, [1 << 20, 0, 0]).branch(Role::MapChunk, 0).exit();
    sim.run(42, 42).push(8).syscall(Syscall::Mmap, map_args((1 << 20) + 4096), MAPPED);
    let snapshot = snapshot(&mut sim);
    assert_eq!(snapshot.processes.len(), 2);
    let second = &snapshot.processes[1];
    assert_eq!(by_origin(second, Origin::MmapCrossing), 0, "what the first process was about to do is forgotten");
}

#[test]
fn a_pid_used_again_is_another_process() {
    // IDENT-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).call(Malloc, [1, 0, 0]).exit();
    sim.run(42, 42).call(Malloc, [2, 0, 0]).call(Malloc, [2, 0, 0]);
    let snapshot = snapshot(&mut sim);
    let counts: Vec<_> = snapshot.processes.iter().map(|p| (p.id.pid, p.ended, counted(p, Malloc).0)).collect();
    assert_eq!(counts, [(42, Some(End::Exited), 1), (42, None, 2)]);
    assert_ne!(snapshot.processes[0].id, snapshot.processes[1].id);
}

#[test]
fn exec_begins_another_image() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).call(Malloc, [1, 0, 0]).exec().call(Malloc, [2, 0, 0]);
    let snapshot = snapshot(&mut sim);
    let ends: Vec<_> = snapshot.processes.iter().map(|p| (p.ended, p.from_start, counted(p, Malloc).1)).collect();
    assert_eq!(ends, [(Some(End::Replaced), true, 1), (None, true, 2)]);
}

#[test]
fn a_process_ends_with_its_last_thread() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).start_thread().call(Malloc, [1, 0, 0]).exit();
    sim.run(42, 43).call(Malloc, [1, 0, 0]);
    assert_eq!(only(&mut sim).ended, None, "the first thread left, the second counts on");
    sim.run(42, 43).call(Malloc, [1, 0, 0]).exit();
    let process = only(&mut sim);
    assert_eq!((process.ended, counted(&process, Malloc).0), (Some(End::Exited), 3));
}

#[test]
fn children_of_a_recorded_process_are_recorded_and_strangers_are_not() {
    // IDENT-1
    let mut sim = Sim::new(Room::default(), Some(&[42]));
    sim.run(42, 42).call(Malloc, [1, 0, 0]).fork(43).call(Malloc, [2, 0, 0]).fork(44).call(Malloc, [3, 0, 0]);
    sim.run(99, 99).call(Malloc, [4, 0, 0]).fork(100).call(Malloc, [5, 0, 0]).exec().call(Malloc, [6, 0, 0]);
    let pids: Vec<_> = snapshot(&mut sim).processes.iter().map(|p| p.id.pid).collect();
    assert_eq!(pids, [42, 43, 44]);
}

#[test]
fn a_process_without_a_slot_is_a_loss_of_the_whole_snapshot() {
    // LOSS-1 BOUND-1
    let mut sim = Sim::new(Room { slots: 1, ..Room::default() }, None);
    sim.run(42, 42).call(Malloc, [1, 0, 0]);
    sim.run(43, 43).call(Malloc, [1, 0, 0]).call(Malloc, [1, 0, 0]);
    let snapshot = snapshot(&mut sim);
    assert!(!snapshot.complete);
    assert_eq!(snapshot.losses, [(LossReason::Kernel(Loss::ProcessTableFull), 2)]);
}

#[test]
fn a_call_without_a_histogram_is_a_loss_of_its_process() {
    // LOSS-1 BOUND-1 COUNT-1
    let mut sim = Sim::new(Room { histograms: 1, ..Room::default() }, None);
    sim.run(42, 42).call(Malloc, [1, 0, 0]).call(Calloc, [1, 1, 0]).call(Calloc, [1, 1, 0]);
    let process = only(&mut sim);
    assert!(!process.complete);
    assert_eq!(process.losses, [(LossReason::Kernel(Loss::HistogramPoolFull), 2)]);
    assert_eq!(process.funnel.call.map(|c| c.calls), Some(1));
}

#[test]
fn a_thread_without_a_state_is_a_loss_of_its_process() {
    // LOSS-1 BOUND-1
    let mut sim = Sim::new(Room { flights: 0, ..Room::default() }, None);
    sim.run(42, 42).enter(Syscall::Mmap, map_args(4096));
    let process = only(&mut sim);
    assert_eq!(process.losses, [(LossReason::Kernel(Loss::ThreadTableFull), 1)]);
    assert!(!process.complete);
}

#[test]
fn a_full_event_ring_loses_events_and_no_counts() {
    // LOSS-1
    let mut sim = Sim::new(Room { events: 1, ..Room::default() }, None);
    sim.run(42, 42).exec().exec().call(Malloc, [1, 0, 0]);
    let snapshot = snapshot(&mut sim);
    assert_eq!(snapshot.losses, [(LossReason::Kernel(Loss::EventRingFull), 1)]);
    assert_eq!(snapshot.processes.last().map(|p| counted(p, Malloc).0), Some(1));
}

#[test]
fn slots_and_histograms_are_used_again() {
    // BOUND-1
    let mut sim = Sim::new(Room { slots: 1, histograms: 2, ..Room::default() }, None);
    let mut aggregate = Aggregate::new(Keep { ended_images: 3, ..KEEP });
    for pid in 1..=10 {
        sim.run(pid, pid).call(Malloc, [u64::from(pid), 0, 0]).call(Calloc, [1, 1, 0]).exit();
        let snapshot = aggregate.apply(&sim.collect(), Moment::default(), &at_depth(Depth::Call));
        let last = snapshot.processes.last().expect("one just ended");
        assert_eq!(counted(last, Malloc), (1, u64::from(pid), 0), "nothing of the one before");
    }
    let snapshot = aggregate.apply(&sim.collect(), Moment::default(), &at_depth(Depth::Call));
    assert_eq!((snapshot.processes.len(), snapshot.processes_dropped), (3, 7));
    assert_eq!(snapshot.losses, [(LossReason::ProcessDropped, 7)], "LOSS-1");
}

#[test]
fn what_is_not_probed_is_not_zero() {
    // HONEST-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).syscall(Syscall::Mmap, map_args(4096), MAPPED);
    let raw = sim.collect();
    let shallow = Aggregate::new(KEEP).apply(&raw, Moment::default(), &at_depth(Depth::Syscall));
    let process = &shallow.processes[0];
    assert_eq!((process.funnel.call, process.funnel.sysmalloc, process.funnel.brk), (None, None, None));
    assert!(process.functions.is_none() && process.crossings.is_none() && process.threshold.is_none());
    let told: Vec<_> = process.syscalls.mmap.by_origin.iter().map(|(o, c)| (*o, c.is_some())).collect();
    assert!(told.contains(&(Origin::MmapFile, true)) && told.contains(&(Origin::MmapCrossing, false)));
    let slow = Aggregate::new(KEEP).apply(&raw, Moment::default(), &at_depth(Depth::Sysmalloc));
    assert_eq!(slow.processes[0].funnel.sysmalloc.map(|c| c.calls), Some(0), "measured, and none");
    assert_eq!(slow.processes[0].funnel.arena, None);
}

#[test]
fn a_traced_chain_carries_the_arguments_that_the_steps_had() {
    let sim = Sim::new(Room::default(), None);
    sim.tracing.set(true);
    sim.run(42, 42).call(Malloc, [1 << 20, 0, 0]).push(64).arena(1 << 20).push(200);
    sim.slow(Role::Sysmalloc, [1_048_592, 0x7f00, 0]).push(64).branch(Role::MapChunk, 0);
    sim.syscall(Syscall::Mmap, map_args(1_052_672), MAPPED);
    let events = sim.events.borrow();
    let chain = events.iter().find(|e| e.kind == EVENT_CHAIN).expect("a chain");
    assert_eq!(chain.values, [Malloc as u64, 1 << 20, 0, 0, 0x7f00, 1 << 20, 1_048_592, 0x7f00, 0x403, 0x1040]);
    let syscall = events.iter().find(|e| e.kind == EVENT_SYSCALL).expect("its system call");
    assert_eq!(&syscall.values[..8], &[0, 1_052_672, 3, 34, u64::MAX, 0, MAPPED, 1_000]);
    assert_eq!(syscall.chain, chain.chain);
}

#[test]
fn a_chain_does_not_claim_the_arena_of_an_earlier_call() {
    // HONEST-1
    let sim = Sim::new(Room::default(), None);
    sim.tracing.set(true);
    sim.run(42, 42).call(Malloc, [1 << 20, 0, 0]).push(64).arena(1 << 20).push(-64);
    sim.call(Free, [MAPPED, 0, 0]).push(200).slow(Role::MunmapChunk, [MAPPED, 0, 0]);
    let events = sim.events.borrow();
    let chain = events.iter().find(|e| e.kind == EVENT_CHAIN).expect("a chain");
    assert_eq!(chain.values[8] & 0xff, CHAIN_HAS_CALL, "free, and nothing of the malloc before it");
}

#[test]
fn a_resize_begins_a_chain_of_its_own() {
    let sim = Sim::new(Room::default(), None);
    sim.tracing.set(true);
    sim.run(42, 42).call(Malloc, [1 << 20, 0, 0]).slow(Role::Sysmalloc, [1_048_592, 0x7f00, 0]);
    sim.branch(Role::MapChunk, 0).syscall(Syscall::Mmap, map_args(1_052_672), MAPPED).push(-8);
    sim.call(Realloc, [MAPPED, 2 << 20, 0]).branch(Role::RemapChunk, MAPPED);
    sim.syscall(Syscall::Mremap, [MAPPED, 1_052_672, 2_101_248, 1, 0, 0], MAPPED);
    let events = sim.events.borrow();
    let chains: Vec<_> = events.iter().filter(|e| e.kind == EVENT_CHAIN).map(|e| (e.chain, e.values[0])).collect();
    assert_eq!(chains, [(1, Malloc as u64), (2, Realloc as u64)]);
    let syscalls: Vec<_> = events.iter().filter(|e| e.kind == EVENT_SYSCALL).map(|e| e.chain).collect();
    assert_eq!(syscalls, [1, 2]);
}

#[test]
fn a_system_call_under_way_when_the_probes_come_is_no_loss() {
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).leave(Syscall::Mmap, MAPPED).syscall(Syscall::Mmap, map_args(4096), MAPPED);
    let snapshot = snapshot(&mut sim);
    assert!(snapshot.complete, "{:?}", snapshot.losses);
    assert_eq!(snapshot.processes[0].syscalls.mmap.calls, 1);
}

#[test]
fn a_chain_does_not_claim_the_call_that_a_signal_handler_made() {
    let sim = Sim::new(Room::default(), None);
    sim.tracing.set(true);
    sim.run(42, 42).call(Malloc, [1 << 20, 0, 0]).push(64).arena(1 << 20);
    sim.push(2000).call(Malloc, [7, 0, 0]).push(-2000).push(200).slow(Role::Sysmalloc, [1_048_592, 0x7f00, 0]);
    let events = sim.events.borrow();
    let chain = events.iter().find(|e| e.kind == EVENT_CHAIN).expect("a chain");
    assert_eq!(chain.values[8] & 0xff, 0, "neither the handler's call nor the arena entry before it is claimed");
}

proptest! {
    #[test]
    fn sums_over_buckets_are_the_calls(sizes in prop::collection::vec(0u64..1 << 40, 0..200)) {
        // COUNT-1
        let mut sim = Sim::new(Room::default(), None);
        sim.run(42, 42).call(Malloc, [0, 0, 0]);
        for size in &sizes {
            sim.call(Malloc, [*size, 0, 0]);
        }
        let process = only(&mut sim);
        let malloc = &process.functions.as_ref().expect("measured")[0];
        let sum: u64 = malloc.sizes.as_ref().expect("sized").iter().map(|b| b.calls).sum();
        prop_assert_eq!(malloc.calls, sizes.len() as u64 + 1);
        prop_assert_eq!(sum, malloc.calls);
        prop_assert_eq!(malloc.bytes, Some(sizes.iter().sum()));
    }

    #[test]
    fn calls_of_a_system_call_are_failures_and_origins(
        calls in prop::collection::vec((0u8..4, prop::bool::ANY, 0usize..4), 0..100)
    ) {
        let mut sim = Sim::new(Room::default(), None);
        sim.run(42, 42).syscall(Syscall::Brk, [0; 6], 0x1000);
        for (syscall, fails, branch) in calls {
            let syscall = Syscall::from_index(syscall).expect("below 4");
            let roles = [None, Some(Role::MapChunk), Some(Role::UnmapChunk), Some(Role::Grow)];
            if let Some(role) = roles[branch] {
                sim.branch(role, 1).push(-8);
            }
            let result = match (syscall, fails) { (Syscall::Brk, true) => 1, (Syscall::Brk, false) => 0x2000, (_, true) => ENOMEM, _ => MAPPED };
            sim.syscall(syscall, [0x2000, 4096, 3, 34, 0, 0], result);
        }
        let process = only(&mut sim);
        for held in [&process.syscalls.mmap, &process.syscalls.munmap, &process.syscalls.mremap, &process.syscalls.brk] {
            let origins: u64 = held.by_origin.iter().map(|(_, c)| c.expect("told").calls).sum();
            prop_assert_eq!(held.calls, held.failed + origins);
        }
    }
}
