//! The store over months, and under faults.

use std::fs;
use std::path::Path;

use redb::{ReadableDatabase, ReadableTableMetadata};

use super::batch::Recorder;
use super::query::{Course, Filter, Range, View};
use super::row::{Figures, field};
use super::store::{self, Store, StoreError};
use super::*;
use crate::aggregate::model::{Process, ProcessId};
use crate::report::sample;

/// A wall clock of the tests: 2026-11-26 00:00 UTC.
const START_MS: u64 = 1_795_651_200_000;
const STEP_MS: u64 = TIERS[0].step_ms;
const PATIENCE: Duration = Duration::from_secs(60);

/// In memory where there is such a place: a commit waits for the disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Processes whose counters grow, a clock that can be set, a store.
struct Machine {
    folder: tempfile::TempDir,
    store: Option<Store>,
    recorder: Recorder,
    processes: Vec<Process>,
    /// Since the daemon began to observe.
    elapsed_ms: u64,
    /// What the wall clock shows more than that.
    clock_ms: u64,
}

impl Machine {
    fn new(processes: u32, max_bytes: u64) -> Self {
        let folder = folder();
        let store = Some(store::open(folder.path(), max_bytes, "x").unwrap().store);
        let processes = (0..processes).map(process).collect();
        Self { folder, store, recorder: Recorder::default(), processes, elapsed_ms: 0, clock_ms: START_MS }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = sample::snapshot(self.processes.clone());
        snapshot.window.duration_ms = self.elapsed_ms;
        snapshot.window.end_unix_ms = self.clock_ms + self.elapsed_ms;
        snapshot
    }

    /// One step, in which `busy` processes map 4,096 bytes.
    fn step(&mut self, busy: usize) {
        self.elapsed_ms += STEP_MS;
        for process in self.processes.iter_mut().take(busy) {
            process.syscalls.mmap.calls += 1;
            process.syscalls.mmap.bytes += 4096;
        }
        let snapshot = self.snapshot();
        let store = self.store.as_mut().unwrap();
        let pending = self.recorder.batch(&snapshot, store.next.image);
        store.append(&pending.batch).unwrap();
        self.recorder.committed(pending, &snapshot);
        store.keep_within(&self.recorder.live()).unwrap();
    }

    fn view(&self) -> View {
        view(self.folder.path(), PATIENCE).unwrap()
    }

    fn all(&self) -> Course {
        self.view().course(range(0, u64::MAX, 1), &Filter::default()).unwrap()
    }

    /// Ends this daemon and starts another.
    fn restart(&mut self, max_bytes: u64) {
        self.store = None;
        self.clock_ms += self.elapsed_ms;
        self.elapsed_ms = 0;
        self.recorder = Recorder::default();
        self.store = Some(store::open(self.folder.path(), max_bytes, "x").unwrap().store);
    }
}

fn process(number: u32) -> Process {
    let mut process = sample::at_depth_syscall();
    process.id = ProcessId { pid: 1000 + number, start_ticks: 5 };
    process.comm = format!("worker-{number}");
    process.ended = None;
    (process.syscalls.mmap.calls, process.syscalls.mmap.bytes) = (0, 0);
    process
}

fn sum(course: &Course, place: usize) -> u64 {
    course.points.iter().map(|point| point.delta.get(place).unwrap_or(0)).sum()
}

fn range(from_unix_ms: u64, to_unix_ms: u64, step_ms: u64) -> Range {
    Range { from_unix_ms, to_unix_ms, step_ms: Some(step_ms) }
}

#[test]
fn sums_over_all_tiers_are_the_counters_whatever_the_resolution() {
    // HIST-1
    let mut machine = Machine::new(3, DEFAULT_BYTES);
    let steps = 2 * 360 + 17;
    (0..steps).for_each(|_| machine.step(2));
    let end = machine.clock_ms + machine.elapsed_ms;
    for step_ms in [1, 60_000, 3_600_000] {
        let course = machine.view().course(range(0, end, step_ms), &Filter::default()).unwrap();
        assert_eq!(sum(&course, field::MMAP_CALLS), 2 * steps, "at {step_ms} ms");
        let own = Filter { pid: Some(1001), ..Filter::default() };
        let course = machine.view().course(range(0, end, step_ms), &own).unwrap();
        assert_eq!(sum(&course, field::MMAP_CALLS), steps, "of one, at {step_ms} ms");
        let last = course.points.last().unwrap();
        assert_eq!(last.now.unwrap().get(field::MMAP_CALLS), Some(steps));
        assert_eq!((last.to_unix_ms, course.images.len()), (end, 1));
    }
    let idle = machine.view().course(range(0, end, 1), &Filter { pid: Some(1002), ..Filter::default() }).unwrap();
    assert_eq!(idle.points.len(), 1, "what does not change is written once");
}

#[test]
fn half_an_hour_is_kept_by_ten_seconds_and_a_day_by_minutes() {
    let mut machine = Machine::new(1, DEFAULT_BYTES);
    (0..400).for_each(|_| machine.step(1));
    let now = machine.clock_ms + machine.elapsed_ms;
    let fine = machine.view().course(range(now - 600_000, now, 1), &Filter::default()).unwrap();
    assert_eq!((fine.points.len(), fine.covered.step_ms), (60, STEP_MS));
    let older = machine.view().course(range(START_MS + 360_000, START_MS + 1_560_000, 1), &Filter::default()).unwrap();
    assert_eq!((older.points.len(), older.covered.step_ms), (20, 60_000));
    assert_eq!(sum(&older, field::MMAP_CALLS), 120);
}

#[test]
fn a_long_time_has_a_bounded_number_of_points_and_says_how_long_they_are() {
    let mut machine = Machine::new(1, DEFAULT_BYTES);
    (0..1300).for_each(|_| machine.step(1));
    let day = machine.view().course(range(START_MS, START_MS + 86_400_000, 10_000), &Filter::default()).unwrap();
    assert!(day.points.len() <= query::POINTS, "{}", day.points.len());
    assert!(day.covered.step_ms >= 60_000);
    assert_eq!(sum(&day, field::MMAP_CALLS), 1300);
}

#[test]
fn the_file_is_never_longer_than_it_may_be_and_the_oldest_hours_go_first() {
    // HIST-1 BOUND-1
    let max = LEAST_BYTES;
    let mut machine = Machine::new(600, max);
    let file = machine.folder.path().join(FILE);
    let mut longest = 0;
    for round in 0..160 {
        machine.step(600);
        longest = longest.max(fs::metadata(&file).unwrap().len());
        assert!(longest <= max, "{longest} bytes in round {round}");
    }
    assert!(machine.store.as_ref().unwrap().pruned > 0, "it was full: {longest} bytes");
    let course = machine.all();
    let recent: Vec<_> = course.points.iter().rev().take(3).map(|p| p.delta.get(field::MMAP_CALLS)).collect();
    assert_eq!(recent, [Some(600); 3], "the newest steps are whole");
    // It opens again, and is still within.
    machine.restart(max);
    machine.step(600);
    assert!(fs::metadata(&file).unwrap().len() <= max);
}

#[test]
fn a_smaller_size_at_the_next_start_holds_from_then_on() {
    let mut machine = Machine::new(600, 2 * LEAST_BYTES);
    (0..130).for_each(|_| machine.step(600));
    let file = machine.folder.path().join(FILE);
    assert!(fs::metadata(&file).unwrap().len() > LEAST_BYTES);
    machine.restart(LEAST_BYTES);
    assert!(fs::metadata(&file).unwrap().len() <= LEAST_BYTES, "{}", fs::metadata(&file).unwrap().len());
    machine.step(600);
    assert!(sum(&machine.all(), field::MMAP_CALLS) >= 600);
}

#[test]
fn a_clock_set_back_or_forward_destroys_nothing() {
    // HIST-1
    let mut machine = Machine::new(1, DEFAULT_BYTES);
    (0..30).for_each(|_| machine.step(1));
    machine.clock_ms -= 86_400_000;
    (0..30).for_each(|_| machine.step(1));
    machine.clock_ms += 366 * 86_400_000;
    (0..30).for_each(|_| machine.step(1));
    let all = machine.all();
    assert_eq!(sum(&all, field::MMAP_CALLS), 90, "a year ahead makes nothing old");
    assert!(all.points.is_sorted_by_key(|point| point.sequence));
    assert_eq!(all.covered.gaps.iter().filter(|gap| gap.clock_changed).count(), 2, "{:?}", all.covered.gaps);
    let before = machine.view().course(range(START_MS, START_MS + 400_000, 1), &Filter::default()).unwrap();
    assert_eq!(sum(&before, field::MMAP_CALLS), 30, "found by the clock of then");
    let day_before = START_MS - 86_400_000;
    let back = machine.view().course(range(day_before, day_before + 800_000, 1), &Filter::default()).unwrap();
    assert_eq!(sum(&back, field::MMAP_CALLS), 30);
}

#[test]
fn a_time_when_no_daemon_ran_is_told_and_counts_go_on_behind_it() {
    let mut machine = Machine::new(1, DEFAULT_BYTES);
    (0..5).for_each(|_| machine.step(1));
    machine.clock_ms += 600_000;
    machine.restart(DEFAULT_BYTES);
    machine.processes[0] = process(0);
    (0..5).for_each(|_| machine.step(1));
    let all = machine.all();
    assert_eq!(sum(&all, field::MMAP_CALLS), 10);
    let [gap] = all.covered.gaps[..] else { panic!("{:?}", all.covered.gaps) };
    assert!(gap.restarted && !gap.clock_changed);
    assert_eq!(gap.to_unix_ms - gap.from_unix_ms, 600_000);
    let minutes = machine.view().course(range(0, u64::MAX, 60_000), &Filter::default()).unwrap();
    assert_eq!(sum(&minutes, field::MMAP_CALLS), 10, "the minute that the end cut short is kept, too");
}

#[test]
fn what_changed_is_told_by_process_the_largest_first_also_of_those_that_ended() {
    let mut machine = Machine::new(4, DEFAULT_BYTES);
    machine.step(4);
    machine.processes[2].syscalls.brk_grown_bytes += 1 << 30;
    machine.step(0);
    let mut gone = machine.processes.remove(1);
    gone.ended = Some(crate::aggregate::model::End::Exited);
    machine.processes.push(gone);
    machine.step(0);
    machine.processes.pop();
    machine.step(1);
    let account = machine.view().account(range(0, u64::MAX, 1), &Filter::default()).unwrap();
    let pids: Vec<_> = account.changes.iter().map(|c| c.image.as_ref().unwrap().id.pid).collect();
    assert_eq!((pids[0], account.changes.len()), (1002, 4));
    let gone = account.changes.iter().find(|c| c.image.as_ref().unwrap().id.pid == 1001).unwrap();
    assert_eq!(gone.ended, Some(crate::aggregate::model::End::Exited));
    let late = range(machine.clock_ms + 35_000, u64::MAX, 1);
    let late = machine.view().account(late, &Filter::default()).unwrap();
    assert_eq!(late.changes.len(), 1, "only what changed in that step");
    assert_eq!(late.changes[0].delta.get(field::MMAP_CALLS), Some(1));
}

#[test]
fn images_that_nothing_refers_to_are_removed() {
    // BOUND-1
    let mut machine = Machine::new(2, DEFAULT_BYTES);
    machine.step(2);
    let images = |machine: &Machine| {
        let txn = machine.store.as_ref().unwrap().database().begin_read().unwrap();
        txn.open_table(store::IMAGES).unwrap().len().unwrap()
    };
    assert_eq!(images(&machine), 2);
    machine.processes.remove(0);
    (0..3).for_each(|_| machine.step(1));
    let live = machine.recorder.live();
    let store = machine.store.as_mut().unwrap();
    store.make_room(u64::MAX, &live).unwrap();
    assert_eq!(images(&machine), 1);
    machine.step(1);
    assert_eq!(machine.all().images[0].id.pid, 1001);
}

#[test]
fn two_daemons_do_not_write_one_store_and_reading_goes_on_beside_one() {
    let mut machine = Machine::new(1, DEFAULT_BYTES);
    machine.step(1);
    let second = store::open(machine.folder.path(), DEFAULT_BYTES, "x").err().unwrap();
    assert!(matches!(second, StoreError::InUse(_)), "{second}");
    let reader = machine.view();
    machine.step(1);
    assert_eq!(sum(&machine.all(), field::MMAP_CALLS), 2);
    drop(reader);
}

#[test]
fn a_missing_folder_is_no_history_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let mut history = History::start(&missing, DEFAULT_BYTES).unwrap();
    let machine = Machine::new(1, DEFAULT_BYTES);
    history.offer(&Arc::new(machine.snapshot()));
    let reader = history.reader();
    history.stop(&Arc::new(machine.snapshot()));
    let State::Off(why) = reader.status().state else { panic!("{:?}", reader.status()) };
    assert!(why.contains("there is no history") && !missing.exists(), "{why}");
    assert_eq!(reader.status().dropped, 2);
    assert!(reader.view(PATIENCE).is_err());
}

#[test]
fn a_link_in_place_of_the_store_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.path().join(FILE)).unwrap();
    assert!(store::open(folder.path(), DEFAULT_BYTES, "x").is_err());
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
}

/// A closed store of 20 steps with 50 processes each.
fn closed() -> &'static [u8] {
    static CLOSED: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    CLOSED.get_or_init(|| {
        let mut machine = Machine::new(50, DEFAULT_BYTES);
        (0..20).for_each(|_| machine.step(50));
        machine.store = None;
        fs::read(machine.folder.path().join(FILE)).unwrap()
    })
}

/// What is there when that store is opened after `damage`.
fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> (bool, u64, tempfile::TempDir) {
    let folder = folder();
    let mut bytes = closed().to_vec();
    damage(&mut bytes);
    fs::write(folder.path().join(FILE), &bytes).unwrap();
    let opened = store::open(folder.path(), DEFAULT_BYTES, "20261126T030000Z").unwrap();
    let aside = opened.set_aside.is_some();
    drop(opened.store);
    let all = view(folder.path(), PATIENCE).unwrap().course(range(0, u64::MAX, 1), &Filter::default()).unwrap();
    (aside, sum(&all, field::MMAP_CALLS), folder)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_damaged_store_is_set_aside_and_a_new_one_begins() {
    // HIST-1
    let (aside, sum, folder) = damaged(|bytes| bytes.truncate(5000));
    assert!(aside && sum == 0);
    assert_eq!(names(folder.path()), ["history.redb", "history.redb.damaged-20261126T030000Z"]);
    let (aside, ..) = damaged(|bytes| bytes[..100].fill(7));
    assert!(aside);
    let (aside, ..) = damaged(|bytes| {
        let middle = bytes.len() / 2;
        bytes[4096..middle].iter_mut().for_each(|byte| *byte ^= 0x55);
    });
    assert!(aside);
}

mod any_byte {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_store_with_flipped_bytes_is_whole_or_set_aside(flips in proptest::collection::vec((any::<u32>(), 1..=255u8), 1..4)) {
            // HIST-1
            let (aside, sum, _folder) = damaged(|bytes| {
                for (place, bits) in flips {
                    let place = place as usize % bytes.len();
                    bytes[place] ^= bits;
                }
            });
            // Flips that nothing refers to change nothing; those of the newest commit alone leave the one before it.
            prop_assert!(if aside { sum == 0 } else { sum == 1000 || sum == 950 }, "{aside} {sum}");
        }
    }
}

#[test]
fn figures_are_small_on_disk() {
    let row = row::Row { now: Figures::of(&process(1)), delta: Figures::NONE, ended: None, complete: true };
    assert!(row.encode().len() < 64, "{}", row.encode().len());
}

/// What a writer in another process counts before it is killed, and where it writes.
const CHILD: &str = "MALLOC_DAEMON_HISTORY_TEST";

/// This very test in a process of its own.
fn myself(test: &str, folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--quiet"]).env(CHILD, folder);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    command
}

#[test]
fn a_writer_that_is_killed_loses_at_most_its_last_step() {
    // HIST-1
    use std::io::{BufRead, BufReader};
    if let Some(folder) = std::env::var_os(CHILD) {
        let mut machine = Machine::new(40, DEFAULT_BYTES);
        machine.store = Some(store::open(Path::new(&folder), DEFAULT_BYTES, "x").unwrap().store);
        loop {
            machine.step(40);
            println!("written");
        }
    }
    let folder = folder();
    let mut written = 0;
    for round in 0..8u64 {
        let test = "history::tests::a_writer_that_is_killed_loses_at_most_its_last_step";
        let mut child = myself(test, folder.path()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The kill comes while later steps are being written.
        let mut own = 0;
        for line in lines {
            own += u64::from(line.unwrap() == "written");
            if own == 3 + round * 2 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(own >= 3 + round * 2);
        written += own;
        let opened = store::open(folder.path(), DEFAULT_BYTES, "x").unwrap();
        assert_eq!(opened.set_aside, None, "in round {round}");
        drop(opened);
        let all = view(folder.path(), PATIENCE).unwrap().course(range(0, u64::MAX, 1), &Filter::default()).unwrap();
        let held = sum(&all, field::MMAP_CALLS);
        // One step may be on disk that the writer had not told of.
        assert!((written * 40..=(written + 1) * 40).contains(&held), "round {round}: {held} of {}", written * 40);
        written = held / 40;
    }
}

#[test]
fn a_disk_that_is_full_costs_the_oldest_steps_and_no_newer_ones() {
    // HIST-1
    let test = "history::tests::a_disk_that_is_full_costs_the_oldest_steps_and_no_newer_ones";
    let Some(folder) = std::env::var_os(CHILD) else {
        // A file system of 700 KiB that only the child sees.
        let folder = folder();
        let ended = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg(format!("mount -t tmpfs -o size=700k tmpfs \"${CHILD}\" && exec \"$0\" --exact {test} --nocapture"))
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, folder.path())
            .output()
            .unwrap();
        let said = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success() && said.0.contains("it was full"), "{said:?}");
        return;
    };
    let mut history = History::start(Path::new(&folder), DEFAULT_BYTES).unwrap();
    let mut machine = Machine::new(100, LEAST_BYTES);
    let reader = history.reader();
    for step in 1..=200 {
        machine.elapsed_ms += STEP_MS;
        for process in &mut machine.processes {
            process.syscalls.mmap.calls += 1;
        }
        history.offer(&Arc::new(machine.snapshot()));
        while reader.status().steps < step {
            assert_eq!(reader.status().dropped, 0, "{:?}", reader.status());
            std::thread::yield_now();
        }
    }
    let status = reader.status();
    assert!(status.pruned > 0 && status.bytes <= 700 << 10 && status.state == State::Recording, "{status:?}");
    println!("it was full: {status:?}");
    machine.elapsed_ms += 1;
    history.stop(&Arc::new(machine.snapshot()));
    let all = view(Path::new(&folder), PATIENCE).unwrap().course(range(0, u64::MAX, 1), &Filter::default()).unwrap();
    let newest: Vec<_> = all.points.iter().rev().take(5).map(|p| p.delta.get(field::MMAP_CALLS)).collect();
    assert_eq!(newest, [Some(100); 5]);
}
