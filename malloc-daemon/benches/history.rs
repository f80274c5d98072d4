//! What a day of a thousand busy processes takes on disk and of the writer's time: one run, its figures printed.

mod rows;

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use malloc_common::abi::Counter;
use malloc_common::depth::Depth;
use malloc_common::origin::Origin;
use malloc_daemon::aggregate::{Aggregate, Facts, Keep, Moment};
use malloc_daemon::collect::RawImage;
use malloc_daemon::history::query::{Filter, Range};
use malloc_daemon::history::{DEFAULT_BYTES, FILE, History, view};
use rows::{PROCESSES, rows};

const STEP_NS: u64 = 10_000_000_000;
const DAY_STEPS: u64 = 8_640;
const START_UNIX_MS: u64 = 1_700_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    // `cargo test --benches` and lists of tests only want to know that it runs.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let steps = if is_bench { DAY_STEPS } else { 3 };
    let folder = tempfile::tempdir().expect("a folder");
    let taken = write(folder.path(), steps);
    let file = folder.path().join(FILE);
    let bytes = std::fs::metadata(&file).map_or(0, |data| data.len());
    println!("{steps} steps of 10 s, {PROCESSES} processes that all count in each");
    println!(
        "writing: {:.2} ms a step, {:.3} % of a processor",
        1e3 * taken / steps as f64,
        10.0 * taken / steps as f64
    );
    println!("on disk: {:.1} MB of at most {:.1} MB", bytes as f64 / 1e6, DEFAULT_BYTES as f64 / 1e6);
    let asked = Instant::now();
    let store = view(folder.path(), PATIENCE).expect("the store opens");
    let end_unix_ms = START_UNIX_MS + steps * STEP_NS / 1_000_000;
    let whole = Range { from_unix_ms: START_UNIX_MS, to_unix_ms: end_unix_ms, step_ms: None };
    let course = store.course(whole, &Filter::default()).expect("it is read");
    println!("the whole time: {} points in {:.0} ms", course.points.len(), 1e3 * asked.elapsed().as_secs_f64());
    let asked = Instant::now();
    let account = store.account(whole, &Filter::default()).expect("it is read");
    println!("by process: {} in {:.0} ms", account.changes.len(), 1e3 * asked.elapsed().as_secs_f64());
    let kept = store.kept().expect("it is read").map_or(0, |(from, to)| to - from);
    println!("it reaches back {:.1} h", kept as f64 / 3.6e6);
}

/// Writes so many steps; seconds that the writer's thread took of them.
fn write(folder: &Path, steps: u64) -> f64 {
    let mut history = History::start(folder, DEFAULT_BYTES).expect("a thread");
    let reader = history.reader();
    let keep = Keep { ended_ns: 0, ended_images: 0, killed_ns: 0, killed_images: 0, unchanged_ns: 0 };
    let mut aggregate = Aggregate::new(keep);
    let mut raw = rows();
    let mut taken = 0.0;
    let mut last = None;
    for step in 1..=steps {
        raw.now_ns += STEP_NS;
        for (n, image) in raw.images.iter_mut().enumerate() {
            let image = Arc::make_mut(image);
            image.slot.counters[Counter::OriginCalls(Origin::MmapCrossing).index()] += 1 + n as u64 % 7;
            image.slot.counters[Counter::OriginBytes(Origin::MmapCrossing).index()] += 135_168 * (1 + step % 5);
            if let Some((_, sizes)) = image.histograms.first_mut() {
                sizes.buckets[20] += 1000;
                sizes.sum += 64_000;
            }
        }
        let moment = Moment {
            unix_ms: START_UNIX_MS + step * STEP_NS / 1_000_000,
            window_since_ns: 1 << 40,
            ..Moment::default()
        };
        let facts = |_: &RawImage| Facts { depth: Depth::Call, ..Facts::default() };
        let snapshot = Arc::new(aggregate.apply(&raw, moment, &facts));
        let offered = Instant::now();
        history.offer(&snapshot);
        while reader.status().steps < step && offered.elapsed() < PATIENCE {
            sleep(Duration::from_micros(50));
        }
        taken += offered.elapsed().as_secs_f64();
        last = Some(snapshot);
    }
    let status = reader.status();
    println!("steps written {}, dropped {}, pruned {}", status.steps, status.dropped, status.pruned);
    history.stop(&last.expect("a step"));
    taken
}
