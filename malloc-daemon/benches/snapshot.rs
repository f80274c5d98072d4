//! How long a thousand processes take from rows to a snapshot, and from a snapshot to JSON and metrics.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use malloc_common::abi::{Counter, Histogram, SLOT_LIVE, Series, Slot};
use malloc_common::depth::Depth;
use malloc_common::function::Function;
use malloc_common::histogram::bucket;
use malloc_common::loss::LOSSES;
use malloc_common::origin::{Origin, Syscall};
use malloc_daemon::aggregate::model::Snapshot;
use malloc_daemon::aggregate::{Aggregate, Facts, Keep, Moment};
use malloc_daemon::collect::{RawImage, RawSnapshot};
use malloc_daemon::report::{json, prometheus};

const PROCESSES: u32 = 1000;

/// Every process with sizes of three functions, of the slow path and of two system calls, in twenty buckets each.
fn rows() -> RawSnapshot {
    let series = [
        Series::Call(Function::Malloc),
        Series::Call(Function::Calloc),
        Series::Call(Function::Realloc),
        Series::Arena,
        Series::Sysmalloc,
        Series::Sizes(Syscall::Mmap),
        Series::Latency(Syscall::Mmap),
        Series::Latency(Syscall::Brk),
    ];
    let image = |n: u32| {
        let mut slot =
            Slot { tgid: n + 1, state: SLOT_LIVE, start_ns: u64::from(n) * 20_000_000, first_ns: 1, ..Slot::FREE };
        slot.comm = *b"a-process\0\0\0\0\0\0\0";
        slot.comm[9] = b'0' + (n % 10) as u8;
        for counter in [Counter::Free, Counter::OriginCalls(Origin::MmapCrossing), Counter::BrkGrown] {
            slot.counters[counter.index()] = u64::from(n) + 17;
        }
        let mut histogram = Histogram::EMPTY;
        for exponent in 4..24 {
            histogram.buckets[bucket(1 << exponent) as usize] = u64::from(n) + exponent;
            histogram.sum += 1 << exponent;
        }
        RawImage { slot, histograms: series.iter().map(|series| (series.index(), histogram)).collect() }
    };
    RawSnapshot { now_ns: 1 << 40, images: (0..PROCESSES).map(image).collect(), lost: [0; LOSSES], missed: 0 }
}

fn snapshot(raw: &RawSnapshot) -> Snapshot {
    let mut aggregate =
        Aggregate::new(Keep { ended_ns: 0, ended_images: 0, killed_ns: 0, killed_images: 0, unchanged_ns: 0 });
    aggregate.apply(raw, Moment::default(), &|_| Facts { depth: Depth::Call, ..Facts::default() })
}

fn thousand(criterion: &mut Criterion) {
    let raw = rows();
    criterion.bench_function("aggregate 1,000 processes", |bencher| bencher.iter(|| snapshot(black_box(&raw))));
    let made = snapshot(&raw);
    criterion.bench_function("1,000 processes as JSON", |bencher| {
        bencher.iter(|| json::to_vec(&json::snapshot(black_box(&made))));
    });
    criterion.bench_function("1,000 processes as a list", |bencher| {
        bencher.iter(|| json::to_vec(&json::process_list(black_box(&made))));
    });
    let mut totals = prometheus::Totals::default();
    totals.feed(&made);
    criterion.bench_function("1,000 processes as metrics", |bencher| {
        bencher.iter(|| prometheus::render(black_box(&totals), "0", prometheus::Format::OpenMetrics));
    });
}

criterion_group!(benches, thousand);
criterion_main!(benches);
