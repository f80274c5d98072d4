//! Processes that the kernel kills when memory runs out.

use super::*;

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_process_killed_for_memory_is_marked_and_keeps_its_counts() {
    // OOM-1
    let mut sim = Sim::new(Room::default(), None);
    sim.run(42, 42).start_thread().call(Malloc, [5, 0, 0]).choose_for_memory().exit();
    sim.run(42, 43).call(Malloc, [6, 0, 0]);
    assert_eq!(only(&mut sim).ended, None, "a chosen process counts until its last thread is gone");
    sim.run(42, 43).exit();
    sim.run(77, 77).call(Malloc, [7, 0, 0]).exit();
    let snapshot = snapshot(&mut sim);
    let ends: Vec<_> = snapshot.processes.iter().map(|p| (p.id.pid, p.ended, counted(p, Malloc))).collect();
    let expected = [(42, Some(End::OomKilled), (2, 11, 0)), (77, Some(End::Exited), (1, 7, 0))];
    assert_eq!(ends, expected);
    assert!(snapshot.complete);
}

#[test]
fn a_pid_used_again_after_a_kill_is_not_marked() {
    // OOM-1, IDENT-1
    let mut sim = Sim::new(Room { slots: 1, ..Room::default() }, None);
    sim.run(42, 42).call(Malloc, [1, 0, 0]).choose_for_memory().exit();
    assert_eq!(only(&mut sim).ended, Some(End::OomKilled));
    sim.run(42, 42).call(Malloc, [1, 0, 0]);
    assert_eq!(only(&mut sim).ended, None, "the slot was free again");
    sim.run(42, 42).exit();
    assert_eq!(only(&mut sim).ended, Some(End::Exited));
}

#[test]
fn killed_images_are_kept_longer_and_no_other_pushes_them_out() {
    // OOM-1, LOSS-1
    let mut sim = Sim::new(Room::default(), None);
    let keep = Keep { ended_ns: SECOND, ended_images: 2, killed_ns: 60 * SECOND, killed_images: 3, unchanged_ns: 0 };
    let mut aggregate = Aggregate::new(keep);
    let mut pids = |sim: &mut Sim, later_ns: u64| {
        let mut raw = sim.collect();
        raw.now_ns += later_ns;
        let snapshot = aggregate.apply(&raw, Moment::default(), &at_depth(Depth::Call));
        (snapshot.processes.iter().map(|p| p.id.pid).collect::<Vec<_>>(), snapshot.processes_dropped)
    };
    sim.run(1, 1).call(Malloc, [1, 0, 0]).choose_for_memory().exit();
    for pid in 2..=5 {
        sim.run(pid, pid).call(Malloc, [1, 0, 0]).exit();
    }
    assert_eq!(pids(&mut sim, 0), (vec![1, 4, 5], 2));
    assert_eq!(pids(&mut sim, 2 * SECOND), (vec![1], 2), "the time of the others is over");
    for pid in 6..=8 {
        sim.run(pid, pid).call(Malloc, [1, 0, 0]).choose_for_memory().exit();
    }
    assert_eq!(pids(&mut sim, 2 * SECOND), (vec![6, 7, 8], 3), "one too many is counted");
    assert_eq!(pids(&mut sim, 61 * SECOND), (vec![], 3), "whose time is over is not lost");
}
